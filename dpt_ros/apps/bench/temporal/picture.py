# SPDX-License-Identifier: Apache-2.0
"""Images of the effect of the temporal filter: a strip of frames, and an animation, off and on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from dpt_ros.apps.bench.temporal.run import Job, filter_smoother, label_image, predict
from dpt_ros.apps.bench.temporal.shots import make_shot
from dpt_ros.data import palette
from dpt_ros.engine.output.color import depth_to_color, labels_to_color, with_words
from dpt_ros.engine.output.legend import bar_legend, class_legend, depth_legend
from dpt_ros.world import CLASSES, View

_FLICKER = 0.12  # relative change that is drawn brightest


@dataclass
class Film:
    """A video without and with the filter.

    Args:
        views: the frames and their truth.
        far: metres at the dark end of the colours.
        inverse: per "off" and "on", (H, W) of each frame, 1/m.
        labels: the same of labels, (H, W) uint8.
    """

    views: list[View]
    far: float
    inverse: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"off": [], "on": []})
    labels: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"off": [], "on": []})

    def depth_image(self, which: str, k: int) -> np.ndarray:
        """The depth of frame ``k``, "off" or "on", (H, W, 3) uint8."""
        with np.errstate(divide="ignore"):
            depth = 1 / np.maximum(self.inverse[which][k], 0)
        return depth_to_color(depth.astype(np.float32), self.far)

    def label_image(self, which: str, k: int) -> np.ndarray:
        """The labels of frame ``k``, "off" or "on", (H, W, 3) uint8."""
        return labels_to_color(self.labels[which][k], palette("labels_world.json"))

    def flicker_image(self, which: str, k: int) -> np.ndarray:
        """Change of the error since the last frame, along the true flow, (H, W, 3) uint8."""
        view, values = self.views[k], self.inverse[which]
        height, width = view.depth.shape
        place = view.flow + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
        error, before = (values[i] / np.maximum(1 / self.views[i].depth, 1e-3) for i in (k, k - 1))
        moved = cv2.remap(
            before.astype(np.float32), place.astype(np.float32), None, cv2.INTER_NEAREST
        )
        seen = view.flow_valid & np.isfinite(view.depth)
        level = np.where(seen, np.clip(np.abs(error - moved) / _FLICKER, 0, 1), 0)
        return _colored(level, cv2.COLORMAP_INFERNO)

    def legends(self, width: int) -> list[np.ndarray]:
        """Those of depth and of labels."""
        classes = dict(enumerate(CLASSES, start=1))
        labels = class_legend(width, classes, palette("labels_world.json"))
        return [depth_legend(width, self.far), labels]


def film(job: Job, source: str) -> Film:
    """Run the filter over the first condition of a job, for one of its sources."""
    job = replace(job, frames=min(job.frames, 60))
    shot = make_shot(job.shot, job.seed, job.frames, job.width, job.height)
    depth = np.concatenate([view.depth[::8, ::8].ravel() for view in shot.views])
    found = Film(shot.views, float(np.percentile(depth[np.isfinite(depth)], 98)))
    smooth = filter_smoother(job.conditions[0], shot, job, [])
    for k, given in enumerate(predict(source, shot, job.seed, True, job.cache)):
        inverse, labels = smooth(k, shot.views[k], given)
        assert given.logits is not None
        plain = label_image(given.logits, (job.height, job.width))
        found.inverse["off"].append(given.anchored)
        found.inverse["on"].append(inverse.copy())
        found.labels["off"].append(plain)
        found.labels["on"].append(plain if labels is None else labels.copy())
    return found


def _colored(level: np.ndarray, colors: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB of levels from 0 to 1."""
    picture = cv2.applyColorMap((level * 255).astype(np.uint8), colors)
    return np.ascontiguousarray(picture[..., ::-1])


def strip(film: Film, file: Path, columns: int = 6) -> None:
    """Write a strip of frames: image, depth, flicker and labels, off and on; and the error of one
    row over time.

    Raises:
        ValueError: images cannot be written in the format of ``file``.
    """
    count = len(film.views)
    chosen = np.linspace(count // 3, count - 1, columns).astype(int)
    lines = [_line("camera", [film.views[k].rgb for k in chosen])]
    for name, draw in (
        ("depth", film.depth_image),
        (f"flicker (bright: {_FLICKER:.0%})", film.flicker_image),
        ("labels", film.label_image),
    ):
        for which in ("off", "on"):
            lines.append(_line(f"{name}, {which}", [draw(which, k) for k in chosen]))
    height, width = film.views[0].depth.shape
    row = height * 6 // 10
    truth = np.stack([1 / view.depth[row] for view in film.views], 1)
    for which, values in film.inverse.items():
        read = np.stack([value[row] for value in values], 1)
        error = np.divide(read, truth, out=np.ones_like(read), where=truth > 0) - 1
        level = np.clip(error / (4 * _FLICKER) + 0.5, 0, 1)
        picture = _colored(level, cv2.COLORMAP_TWILIGHT_SHIFTED)
        size = (width * columns, height)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
        pictures = np.split(picture, columns, 1)
        lines.append(_line(f"{which}: error of a row over time", pictures))
    image = cv2.resize(np.vstack(lines), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    bars = [
        _colored(np.linspace(0, 1, 256)[None], colors)[0]
        for colors in (cv2.COLORMAP_INFERNO, cv2.COLORMAP_TWILIGHT_SHIFTED)
    ]
    depth, labels = film.legends(image.shape[1])
    flicker = bar_legend(image.shape[1], "flicker 0", f"{_FLICKER:.0%} and more", bars[0])
    low, high = f"error {-2 * _FLICKER:.0%}", f"{2 * _FLICKER:+.0%}"
    error_legend = bar_legend(image.shape[1], low, high, bars[1])
    image = np.vstack([image, depth, flicker, error_legend, labels])
    try:
        written = cv2.imwrite(str(file), image[..., ::-1])
    except cv2.error:  # an ending that OpenCV does not know
        written = False
    if not written:
        raise ValueError(f"{file} cannot be written: give a file that ends in .png or .jpg.")


def _line(words: str, pictures: list[np.ndarray]) -> np.ndarray:
    first = with_words(np.ascontiguousarray(pictures[0]).copy(), words)
    return np.hstack([first, *pictures[1:]])


def animation(film: Film, file: Path, width: int = 240) -> None:
    """Write a GIF: depth off and on; below, labels off and on. At most 15 frames/s, to stay small.

    Raises:
        ImportError: Pillow is not installed; the message says how to get it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "An animation needs Pillow: pip install pillow, or leave out --gif."
        ) from error
    camera = film.views[0].camera
    size = (width, width * camera.height // camera.width)

    def half(name: str, draw: Callable[[str, int], np.ndarray], k: int) -> np.ndarray:
        pictures = [
            with_words(cv2.resize(draw(which, k), size, interpolation=cv2.INTER_AREA), words)
            for which, words in (("off", f"{name}, off"), ("on", f"{name}, on"))
        ]
        return np.hstack(pictures)

    gap = (film.views[1].stamp_ns - film.views[0].stamp_ns) * 1e-6
    every = max(round(66 / gap), 1)
    legends = film.legends(2 * width)
    frames = [
        np.vstack(
            [half("depth", film.depth_image, k), half("labels", film.label_image, k), *legends]
        )
        for k in range(0, len(film.views), every)
    ]
    # One palette for all frames, so that the colours are constant.
    sample = Image.fromarray(np.vstack(frames[:: max(len(frames) // 4, 1)]))
    colors = sample.quantize(128, dither=Image.Dither.NONE)
    first, *rest = (
        Image.fromarray(frame).quantize(palette=colors, dither=Image.Dither.NONE)
        for frame in frames
    )
    shown = max(round(gap * every / 10) * 10, 20)  # GIF counts in hundredths of a second
    first.save(file, save_all=True, append_images=rest, duration=shown, loop=0, optimize=True)
