# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the temporal filter does: a strip of frames, a slice through time, off | on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from dpt_ros.apps.bench.temporal.run import (
    CONDITIONS,
    Job,
    filter_smoother,
    label_image,
    odometry,
    predict,
)
from dpt_ros.apps.bench.temporal.shots import make_shot
from dpt_ros.data import palette
from dpt_ros.engine.output.color import depth_to_color, labels_to_color, with_words
from dpt_ros.engine.output.legend import bar_legend, class_legend, depth_legend
from dpt_ros.world import CLASSES, View

_FLICKER = 0.12  # relative change that is drawn brightest


_CLASSES = dict(enumerate(CLASSES, start=1))


@dataclass(frozen=True)
class Film:
    """A video before and after the filter.

    Args:
        views: the frames and their truth.
        raw, steady: inverse depth of each, (H, W), 1/m.
        raw_labels, steady_labels: (H, W) uint8 of each.
        far: metres at the dark end of the colours.
    """

    views: list[View]
    raw: list[np.ndarray]
    steady: list[np.ndarray]
    raw_labels: list[np.ndarray]
    steady_labels: list[np.ndarray]
    far: float


def film(job: Job, source: str) -> Film:
    """Run the filter over the first condition of a job, for one of its sources."""
    job = replace(job, frames=min(job.frames, 60))
    shot = make_shot(job.shot, job.seed, job.frames, job.width, job.height)
    poses = odometry(CONDITIONS[job.conditions[0]][1], shot, job.seed)
    smooth = filter_smoother(poses, [], job.settings, job.device)
    found = Film(shot.views, [], [], [], [], _far(shot.views))
    for k, given in enumerate(predict(source, shot, job.seed, True, job.cache)):
        inverse, labels = smooth(k, shot.views[k], given)
        assert given.logits is not None
        size = (job.height, job.width)
        chosen = label_image(given.logits, size)
        found.raw.append(given.anchored)
        found.steady.append(inverse.copy())
        found.raw_labels.append(chosen)
        found.steady_labels.append(chosen if labels is None else labels.copy())
    return found


def _far(views: list[View]) -> float:
    depth = np.concatenate([view.depth[::8, ::8].ravel() for view in views])
    return float(np.percentile(depth[np.isfinite(depth)], 98))


def _depth(inverse: np.ndarray, far: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return depth_to_color((1 / np.maximum(inverse, 0)).astype(np.float32), far)


def _flicker(film: Film, values: list[np.ndarray], k: int) -> np.ndarray:
    """How much the error changed since the last frame, along the true flow, as a picture."""
    view = film.views[k]
    height, width = view.depth.shape
    place = view.flow + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    place = place.astype(np.float32)
    truth = np.maximum(1 / view.depth, 1e-3)
    before = np.maximum(1 / film.views[k - 1].depth, 1e-3)
    change = values[k] / truth - cv2.remap(
        (values[k - 1] / before).astype(np.float32), place, None, cv2.INTER_NEAREST
    )
    seen = view.flow_valid & np.isfinite(view.depth)
    level = np.where(seen, np.clip(np.abs(change) / _FLICKER, 0, 1) * 255, 0)
    return cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def strip(film: Film, file: Path, columns: int = 6) -> None:
    """Write a strip of frames: picture, depth off and on, flicker off and on; and a slice through
    time, off and on."""
    count = len(film.views)
    chosen = np.linspace(count // 3, count - 1, columns).astype(int)
    width = film.views[0].camera.width
    rows = [
        ("camera", [film.views[k].rgb.copy() for k in chosen]),
        ("depth, off", [_depth(film.raw[k], film.far) for k in chosen]),
        ("depth, on", [_depth(film.steady[k], film.far) for k in chosen]),
        ("flicker, off", [_flicker(film, film.raw, k) for k in chosen]),
        (
            f"flicker, on (bright: {_FLICKER:.0%})",
            [_flicker(film, film.steady, k) for k in chosen],
        ),
        ("labels, off", [_labels(film.raw_labels[k]) for k in chosen]),
        ("labels, on", [_labels(film.steady_labels[k]) for k in chosen]),
    ]
    lines = []
    for words, pictures in rows:
        line = [np.ascontiguousarray(picture) for picture in pictures]
        with_words(line[0], words)
        lines.append(np.hstack(line))
    wide = width * columns
    for words, values in (("off", film.raw), ("on", film.steady)):
        # what one row of the picture reads, relative to the truth: time runs to the right
        row = film.views[0].camera.height * 6 // 10
        truth = np.stack([1 / view.depth[row] for view in film.views], 1)
        read = np.stack([value[row] for value in values], 1)
        error = np.divide(read, truth, out=np.ones_like(read), where=truth > 0) - 1
        level = np.clip(error / (4 * _FLICKER) + 0.5, 0, 1) * 255
        picture = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_TWILIGHT_SHIFTED)[
            ..., ::-1
        ]
        size = (wide, film.views[0].camera.height)
        picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_NEAREST)
        corner = np.ascontiguousarray(picture[:, :width])
        picture[:, :width] = with_words(corner, f"{words}: error of a row over time")
        lines.append(picture)
    image = np.vstack(lines)
    image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    image = np.vstack([image, *_legends(film, image.shape[1])])
    _write(file, image)


def _legends(film: Film, width: int) -> list[np.ndarray]:
    levels = np.arange(256, dtype=np.uint8)[None]
    flicker, error = (
        cv2.applyColorMap(levels, colors)[0, :, ::-1]
        for colors in (cv2.COLORMAP_INFERNO, cv2.COLORMAP_TWILIGHT_SHIFTED)
    )
    return [
        depth_legend(width, film.far),
        bar_legend(width, "flicker 0", f"{_FLICKER:.0%} and more", flicker),
        bar_legend(width, f"error {-2 * _FLICKER:.0%}", f"{2 * _FLICKER:+.0%}", error),
        class_legend(width, _CLASSES, palette("labels_world.json")),
    ]


def _labels(labels: np.ndarray) -> np.ndarray:
    return labels_to_color(labels, palette("labels_world.json"))


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

    def small(picture: np.ndarray, words: str) -> np.ndarray:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return with_words(np.ascontiguousarray(picture), words)

    gap = (film.views[1].stamp_ns - film.views[0].stamp_ns) * 1e-6
    every = max(round(66 / gap), 1)
    frames = []
    legends = (
        depth_legend(2 * width, film.far),
        class_legend(2 * width, _CLASSES, palette("labels_world.json")),
    )
    for k in range(0, len(film.views), every):
        panels = (
            small(_depth(film.raw[k], film.far), "depth, off"),
            small(_depth(film.steady[k], film.far), "depth, on"),
            small(_labels(film.raw_labels[k]), "labels, off"),
            small(_labels(film.steady_labels[k]), "labels, on"),
        )
        frames.append(np.vstack([np.hstack(panels[:2]), np.hstack(panels[2:]), *legends]))
    # one palette for all frames, so that colours do not flicker by themselves
    sample = Image.fromarray(np.vstack(frames[:: max(len(frames) // 4, 1)]))
    colors = sample.quantize(128, dither=Image.Dither.NONE)
    pictures = [
        Image.fromarray(frame).quantize(palette=colors, dither=Image.Dither.NONE)
        for frame in frames
    ]
    shown = max(round(gap * every / 10) * 10, 20)  # GIF counts in hundredths of a second
    rest = pictures[1:]
    pictures[0].save(
        file, save_all=True, append_images=rest, duration=shown, loop=0, optimize=True
    )


def _write(file: Path, rgb: np.ndarray) -> None:
    done, data = cv2.imencode(file.suffix or ".png", np.ascontiguousarray(rgb[..., ::-1]))
    if not done:
        raise ValueError(f"Pictures cannot be written as {file.suffix}: use .png or .jpg.")
    file.write_bytes(data.tobytes())
