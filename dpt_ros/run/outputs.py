# SPDX-License-Identifier: Apache-2.0
"""Results as files: the formats of isl-org/DPT's scripts, NumPy, colours, one video."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from PIL import Image

from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.color import (
    depth_to_color,
    inverse_to_color,
    labels_to_color,
    with_words,
)
from dpt_ros.run.results import Result

_MOST = 65535
_WIDEST = 3840  # pixels, of a video of several pictures side by side
_RANDOM = "RANDOM WEIGHTS: this means nothing"


def published_factor(networks: Networks) -> float:
    """What isl-org/DPT's run_monodepth.py multiplies depth by before it writes it: 256 with the
    KITTI network, 1000 (millimetres) with the NYU network, as here with any other metric one."""
    if not networks.metric:
        return 1.0
    return 256.0 if networks.depth_name == "dpt_hybrid_kitti" else 1000.0


def pfm_file(values: np.ndarray) -> bytes:
    """A PFM file as isl-org/DPT's util/io.py writes it: one channel, little endian, rows from
    the bottom up.

    Args:
        values: (H, W) float32.
    """
    header = f"Pf\n{values.shape[1]} {values.shape[0]}\n{-1:f}\n"
    return header.encode() + np.flipud(values).astype("<f4").tobytes()


def depth_png(values: np.ndarray, absolute: bool) -> bytes:
    """A 16-bit PNG file as isl-org/DPT's util/io.py writes it, uncompressed.

    Args:
        values: (H, W) float32; NaN becomes 0.
        absolute: the values themselves, cut off below and limited to 0..65535; else these are
            stretched from the smallest to the largest finite one.
    """
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (np.float32(0), np.float32(0))
    if absolute:
        stretched = values
    elif high - low > np.finfo(float).eps:
        stretched = _MOST * (values - low) / (high - low)
    else:
        stretched = np.zeros_like(values)
    limited = np.clip(np.nan_to_num(stretched, nan=0.0, posinf=_MOST, neginf=0.0), 0, _MOST)
    return _png(limited.astype(np.uint16), compression=0)


def overlay_file(picture: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG file, RGBA, as isl-org/DPT's util/io.py writes it: half the picture, half the colours
    of the labels.

    Args:
        picture: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 class ids.
        palette: (256, 3) uint8 RGB, indexed by id.
    """
    mask = Image.fromarray(labels_to_color(labels, palette)).convert("RGBA")
    blended = Image.blend(Image.fromarray(picture).convert("RGBA"), mask, 0.5)
    file = BytesIO()
    blended.save(file, "PNG")
    return file.getvalue()


class Files:
    """Converts the results of one source into files, ``dpt_ros.run.OUTPUTS`` by name.

    ``absolute`` as of ``depth_png``; ``color_range`` is depth at the far end of the colours in m.
    """

    def __init__(
        self, networks: Networks, outputs: tuple[str, ...], absolute: bool, color_range: float
    ) -> None:
        self._networks = networks
        self._outputs = outputs
        self._absolute = absolute
        self._far = color_range
        self._factor = published_factor(networks)
        self._near = 0.0  # inverse depth of the brightest colour, of all frames of a video

    def files(self, result: Result) -> dict[str, bytes]:
        """The contents of the files of a result, by output; those that exist."""
        made: dict[str, bytes] = {}
        depth = result.inverse_depth if result.depth is None else result.depth
        if depth is not None:
            makers = {
                "png": lambda: depth_png(depth * np.float32(self._factor), self._absolute),
                "pfm": lambda: pfm_file(depth * np.float32(self._factor)),
                "npy": lambda: _npy(depth),
                "color": lambda: _png(cv2.cvtColor(self._color(result), cv2.COLOR_RGB2BGR)),
            }
            made |= {name: make() for name, make in makers.items() if name in self._outputs}
        labels = result.labels
        if labels is not None and "labels" in self._outputs:
            made["labels"] = _png(labels)
        if labels is not None and "overlay" in self._outputs:
            picture = self._marked(result.picture.copy())
            made["overlay"] = overlay_file(picture, labels, self._networks.palette)
        return made

    def side_by_side(self, result: Result) -> np.ndarray:
        """Image, depth and labels, (h, w, 3) uint8 RGB."""
        panels = [result.picture]
        if self._networks.depth is not None:
            panels.append(self._color(result))
        if result.labels is not None:
            panels.append(self._marked(labels_to_color(result.labels, self._networks.palette)))
        joined = np.hstack(panels)
        height, width = joined.shape[:2]
        if width <= _WIDEST:
            return joined
        size = (_WIDEST, round(height * _WIDEST / width))
        return cv2.resize(joined, size, interpolation=cv2.INTER_AREA)

    def _color(self, result: Result) -> np.ndarray:
        if result.depth is not None:
            return self._marked(depth_to_color(result.depth, self._far))
        assert result.inverse_depth is not None
        inverse = result.inverse_depth.clip(min=0)
        self._near = self._near or float(np.percentile(inverse, 99)) or 1.0
        return self._marked(inverse_to_color(inverse, self._near))

    def _marked(self, picture: np.ndarray) -> np.ndarray:
        return with_words(picture, _RANDOM) if self._networks.random else picture


def _png(pixels: np.ndarray, compression: int | None = None) -> bytes:
    options = [] if compression is None else [cv2.IMWRITE_PNG_COMPRESSION, compression]
    return cv2.imencode(".png", pixels, options)[1].tobytes()


def _npy(values: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()
