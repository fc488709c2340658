# SPDX-License-Identifier: Apache-2.0
"""The demo's contact sheet and video: camera, depth and labels beside the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from dpt_ros.data import palette
from dpt_ros.engine.output import color
from dpt_ros.world import CLASSES

# Depth at the dark end of the colours, metres.
_FAR = 15.0
_FONT, _WHITE = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
_COLUMNS = ("camera", "depth", "true depth", "labels", "true labels")

Images = Mapping[str, np.ndarray]


def contact_sheet(path: Path, frames: Sequence[Images]) -> None:
    """A PNG of six frames, evenly spread, with a column per image and a legend; ``frames``: per
    frame "image", "depth/image", "semantic/labels", "truth/depth", "truth/labels"."""
    # The middle of each of six equal parts.
    chosen = [frames[(2 * row + 1) * len(frames) // 12] for row in range(6)]
    tiles = [np.hstack(_tiles(frame)) for frame in chosen]
    width = _tiles(chosen[0])[0].shape[1]
    titles = np.hstack([color.title(name, width) for name in _COLUMNS])
    sheet = np.vstack([titles, *tiles, _legend(titles.shape[1])])
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def video(path: Path, frames: Sequence[Images], rate: float) -> None:
    """An MP4: camera, depth and labels above; the truth below."""
    writer = None
    for frame in frames:
        camera, depth, true_depth, labels, true_labels = _tiles(frame)
        width = camera.shape[1]
        note = np.zeros_like(camera)
        for y, text in ((110, "above: dpt_ros"), (140, "below: the truth")):
            cv2.putText(note, text, (20, y), _FONT, 0.7, _WHITE, 1, cv2.LINE_AA)
        titles = np.hstack([color.title(name, width) for name in ("camera", "depth", "labels")])
        above, below = (camera, depth, labels), (note, true_depth, true_labels)
        rows = [titles, np.hstack(above), np.hstack(below), _legend(titles.shape[1])]
        picture = np.vstack(rows)
        if writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(path), code, rate, picture.shape[1::-1])
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()


def _tiles(frame: Images) -> list[np.ndarray]:
    colors = palette("labels_world.json")
    pictures = [
        frame["image"],
        color.depth_to_color(frame["depth/image"], _FAR),
        color.depth_to_color(frame["truth/depth"], _FAR),
        color.labels_to_color(frame["semantic/labels"], colors),
        color.labels_to_color(frame["truth/labels"], colors),
    ]
    return [np.pad(picture, ((1, 1), (1, 1), (0, 0))) for picture in pictures]


def _legend(width: int) -> np.ndarray:
    names = dict(enumerate(CLASSES, start=1))
    classes = color.class_legend(width, names, palette("labels_world.json"))
    return np.vstack([color.depth_legend(width, _FAR), classes])
