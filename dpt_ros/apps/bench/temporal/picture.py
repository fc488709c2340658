# SPDX-License-Identifier: Apache-2.0
"""Images of the effect of the temporal filter: a strip of frames, and an animation, off and on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from dpt_ros.apps.bench.temporal.run import Job, filter_smoother, label_image, predict
from dpt_ros.apps.bench.temporal.shots import make_shot
from dpt_ros.data import palette
from dpt_ros.engine.output import color
from dpt_ros.world import CLASSES, View

_FLICKER = 0.12  # relative change that is drawn brightest
_COLORS = palette("labels_world.json")
_WIDTH = 240  # pixels of a picture of the animation
_SLICE = "error of a row over time"
Images = dict[str, np.ndarray]  # by title, (H, W, 3) uint8 RGB; the slice has a column


def draw(job: Job, source: str, strip: Path | None, gif: Path | None) -> None:
    """Run the filter over the first condition of a job, and write what files are given."""
    job = replace(job, frames=min(job.frames, 60))
    shot = make_shot(job.shot, job.seed, job.frames, job.width, job.height)
    depth = np.concatenate([view.depth[::8, ::8].ravel() for view in shot.views])
    far = float(np.percentile(depth[np.isfinite(depth)], 98))
    smooth = filter_smoother(job.conditions[0], shot, job, [])
    frames: list[Images] = []
    before: dict[str, np.ndarray] = {}
    for k, given in enumerate(predict(source, shot, job.seed, True, job.cache)):
        view = shot.views[k]
        steady, labels = smooth(k, view, given)
        assert given.logits is not None
        plain = label_image(given.logits, view.depth.shape)
        images = {"camera": view.rgb}
        filtered = plain if labels is None else labels
        for which, inverse, ids in (("off", given.anchored, plain), ("on", steady, filtered)):
            ratio = (inverse / np.maximum(1 / view.depth, 1e-3)).astype(np.float32)
            with np.errstate(divide="ignore"):
                shown = (1 / np.maximum(inverse, 0)).astype(np.float32)
            images[f"depth, {which}"] = color.depth_to_color(shown, far)
            images[f"flicker, {which}"] = _flicker(view, ratio, before.get(which, ratio))
            images[f"labels, {which}"] = color.labels_to_color(ids, _COLORS)
            row = view.camera.height * 6 // 10
            error = np.where(np.isfinite(view.depth[row]), ratio[row] - 1, 0)
            level = np.clip(error / (4 * _FLICKER) + 0.5, 0, 1)
            images[f"{which}: {_SLICE}"] = _colored(level[:, None], cv2.COLORMAP_TWILIGHT_SHIFTED)
            before[which] = ratio
        frames.append(images)
    if strip:
        _write_strip(frames, far, strip)
    if gif:
        period = (shot.views[1].stamp_ns - shot.views[0].stamp_ns) * 1e-6
        _write_animation(frames, far, period, gif)


def _flicker(view: View, ratio: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Change of predicted / true inverse depth since the last frame, along the true flow."""
    place = view.flow + np.stack(np.meshgrid(*map(np.arange, ratio.shape[::-1])), -1)
    moved = cv2.remap(before, place.astype(np.float32), None, cv2.INTER_NEAREST)
    seen = view.flow_valid & np.isfinite(view.depth)
    level = np.where(seen, np.clip(np.abs(ratio - moved) / _FLICKER, 0, 1), 0)
    return _colored(level, cv2.COLORMAP_INFERNO)


def _colored(level: np.ndarray, colors: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB of levels from 0 to 1."""
    image = cv2.applyColorMap((level * 255).astype(np.uint8), colors)
    return np.ascontiguousarray(image[..., ::-1])


def _legends(width: int, far: float) -> list[np.ndarray]:
    classes = dict(enumerate(CLASSES, start=1))
    return [color.depth_legend(width, far), color.class_legend(width, classes, _COLORS)]


def _write_strip(frames: list[Images], far: float, file: Path, columns: int = 6) -> None:
    """Frames side by side, a row per title; the slice shows all of them."""
    chosen = np.linspace(len(frames) // 3, len(frames) - 1, columns).astype(int)
    height, width = frames[0]["camera"].shape[:2]
    lines = []
    for title in sorted(frames[0], key=lambda title: (_SLICE in title, title.split(",")[0])):
        images = [frames[k][title] for k in chosen]
        if _SLICE in title:
            slice_of_all = np.hstack([frame[title] for frame in frames])
            size = (width * columns, height)
            image = cv2.resize(slice_of_all, size, interpolation=cv2.INTER_NEAREST)
            images = np.split(image, columns, 1)
        lines.append(np.hstack([color.with_words(images[0].copy(), title), *images[1:]]))
    image = cv2.resize(np.vstack(lines), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    wide, limit = image.shape[1], 2 * _FLICKER
    legends = _legends(wide, far)
    for low, high, colors in (
        ("flicker 0", f"{_FLICKER:.0%} and more", cv2.COLORMAP_INFERNO),
        (f"error {-limit:.0%}", f"{limit:+.0%}", cv2.COLORMAP_TWILIGHT_SHIFTED),
    ):
        bar = _colored(np.linspace(0, 1, 256)[None], colors)[0]
        legends.append(color.bar_legend(wide, low, high, bar))
    if not cv2.haveImageWriter(str(file)):
        raise ValueError(f"{file} cannot be written: give a file that ends in .png or .jpg.")
    cv2.imwrite(str(file), np.vstack([image, *legends])[..., ::-1])


def _write_animation(frames: list[Images], far: float, period: float, file: Path) -> None:
    """A GIF: depth off and on; below, labels off and on. At most 15 frames/s, to stay small."""
    try:
        from PIL import Image
    except ImportError as error:
        needs = "An animation needs Pillow"
        raise ImportError(f"{needs}: pip install pillow, or leave out --gif.") from error
    height, wide = frames[0]["camera"].shape[:2]
    size = (_WIDTH, _WIDTH * height // wide)
    every = max(round(66 / period), 1)
    pictures = []
    for images in frames[::every]:
        small = {t: cv2.resize(i, size, interpolation=cv2.INTER_AREA) for t, i in images.items()}
        halves = [
            np.hstack([color.with_words(small[t], t) for t in (f"{name}, off", f"{name}, on")])
            for name in ("depth", "labels")
        ]
        pictures.append(np.vstack([*halves, *_legends(2 * _WIDTH, far)]))
    # One palette for all frames, so that the colours are constant.
    sample = Image.fromarray(np.vstack(pictures[:: max(len(pictures) // 4, 1)]))
    colors = sample.quantize(128, dither=Image.Dither.NONE)
    whole = map(Image.fromarray, pictures)
    first, *rest = (i.quantize(palette=colors, dither=Image.Dither.NONE) for i in whole)
    shown = max(round(period * every / 10) * 10, 20)  # GIF counts in hundredths of a second
    first.save(file, save_all=True, append_images=rest, duration=shown, loop=0, optimize=True)
