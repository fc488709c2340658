# SPDX-License-Identifier: Apache-2.0
"""Backward optical flow, from a frame to the previous one, by dense inverse search.

Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016: overlapping patches of
each level of a pyramid are matched with zero mean, so that a step of the exposure does not matter.
On a CPU OpenCV computes it. Elsewhere the patches of a level are matched all at once, each begun
at the best displacement found near it on the coarser level, and the finest level is half size.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpt_ros.engine.output import postprocess
from dpt_ros.engine.triton_launch import has_twin

FLOW_WIDTH = 320  # of the images for optical flow at most, pixels
# OpenCV 5.0's DIS reads outside of smaller images: its coarsest scale has no room for a patch,
# and the process may crash.
MIN_SIZE = 32
PATCH, STRIDE = 8, 4  # pixels of a level
ITERATIONS = 4  # of Gauss-Newton
# Weight of the displacement at which a patch begins, squared grey levels per squared pixel: it
# stays there where texture does not say otherwise.
PRIOR = 64.0
HALF_CONTRAST = 2.0  # grey levels per pixel of half size by which motion is measured well
RED, GREEN, BLUE = 0.299, 0.587, 0.114  # shares of grey, as in OpenCV
_TRITON = "dpt_ros.engine.smoothing.triton_flow"


def flow_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the grey image for an image's size: at most 320 pixels wide."""
    if width <= FLOW_WIDTH:
        return height, width
    return max(8, round(height * FLOW_WIDTH / width)), FLOW_WIDTH


def grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w) uint8, at most 320 pixels wide."""
    size = flow_size(*rgb.shape[:2])
    if size != rgb.shape[:2]:
        rgb = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


@has_twin(_TRITON)
def luma_of(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Grey levels of a network's input, averaged over areas.

    Args:
        images: (B, 3, H, W) floating, normalised; any strides.
        scale, offset: (3,) float32 on the same device: image * scale + offset is red, green and
            blue from 0 to 255.

    Returns:
        (B, h, w) float32, at most 320 pixels wide.
    """
    red, green, blue = (images.float() * scale[:, None, None] + offset[:, None, None]).unbind(1)
    luma = RED * red + GREEN * green + BLUE * blue
    height, width = luma.shape[1:]
    size = flow_size(height, width)
    if size == (height, width):
        return luma
    rows, columns = _areas(height, size[0], luma), _areas(width, size[1], luma)
    return rows @ luma @ columns.T


def optical_flow(luma: Tensor, previous: Tensor, out: Tensor | None = None) -> Tensor:
    """Backward flow, how well it fits, and how well it can be known.

    Args:
        luma, previous: (B, h, w) float32 grey levels 0..255 of this frame and of the previous
            one.
        out: on a CPU, for the result.

    Returns:
        (B, 5, h, w) float32: displacement x and y in pixels, what is at (x, y) was at (x, y) +
        displacement; photometric error, grey levels, after the exposures are made equal; and
        0..1, how well texture determines the motion along x and y. Zeros for images of less than
        32 pixels a side. Where ``previous`` is not finite, so is the result.
    """
    if min(luma.shape[1:]) < MIN_SIZE:
        none = torch.zeros((len(luma), 5, *luma.shape[1:]), device=luma.device)
        return none if out is None else out.zero_()
    if postprocess.on_host(luma):
        return _flow_on_host(luma, previous, out)
    return inverse_search(luma, previous)


def inverse_search(luma: Tensor, previous: Tensor) -> Tensor:
    """``optical_flow`` as a device computes it, of images of at least 32 pixels a side."""
    levels = pyramid(luma, previous)
    flow = torch.zeros((len(luma), 2, 1, 1), device=luma.device)
    for level in reversed(levels):
        if min(level.shape[2:]) >= PATCH:
            flow = search(level, flow)
    return finish(luma, previous, levels[-1], dense(levels[0], flow))


@has_twin(_TRITON)
def pyramid(luma: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both images at a half, a quarter, an eighth and a sixteenth of their size.

    Args:
        luma, previous: (B, h, w) float32.

    Returns:
        (B, 2, h // k, w // k) float32, k = 2, 4, 8, 16: averages of k x k pixels; what does not
        fill such a square, at the right and at the bottom, is left out.
    """
    half = F.avg_pool2d(torch.stack([luma, previous], 1), 2)
    quarter = F.avg_pool2d(half, 2)
    eighth = F.avg_pool2d(quarter, 2)
    return half, quarter, eighth, F.avg_pool2d(eighth, 2)


@has_twin(_TRITON)
def search(level: Tensor, coarse: Tensor) -> Tensor:
    """Match patches of this frame in the previous one.

    A patch begins at the best of nine displacements found around its place on the coarser level,
    and is moved by Gauss-Newton steps, each of which must lower its error.

    Args:
        level: (B, 2, h, w) float32, this frame and the previous one, at least 8 pixels a side.
        coarse: (B, 2, n', m') float32, displacements of the coarser level's patches, x and y in
            its pixels.

    Returns:
        (B, 2, n, m) float32, displacements of patches of 8 x 8 pixels, every 4 pixels.
    """
    luma, previous = level[:, 0], level[:, 1:]
    parts = _patches(torch.stack([luma, *_slopes(luma)]))
    template, slope_x, slope_y = parts - parts.mean(-1, keepdim=True)  # (B, n, m, 1, 64) each
    a, b = slope_x.square().sum(-1) + PRIOR, slope_y.square().sum(-1) + PRIOR
    c = (slope_x * slope_y).sum(-1)
    determinant = a * b - c * c
    y, x = (_patches(one) for one in _places(luma))

    def match(at: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        # Displacements (B, 2, n, m, K) -> errors (B, 1, n, m, K), and the steps to take.
        here_x, here_y = x + at[:, 0, ..., None], y + at[:, 1, ..., None]
        found = _sample(previous, here_x.flatten(1), here_y.flatten(1)).view(here_x.shape)
        difference = found - found.mean(-1, keepdim=True) - template
        prior = PRIOR * (at - start)
        down_x = (slope_x * difference).sum(-1) + prior[:, 0]
        down_y = (slope_y * difference).sum(-1) + prior[:, 1]
        step = torch.stack([c * down_y - b * down_x, c * down_x - a * down_y], 1)
        error = difference.square().sum(-1, keepdim=True).movedim(-1, 1)
        return error + ((at - start) * prior).sum(1, keepdim=True), step / determinant[:, None]

    rows, columns = (
        torch.arange(count, device=level.device) // 2 for count in template.shape[1:3]
    )
    around = F.pad(coarse, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    rows, columns = rows.clamp(max=coarse.shape[2] - 1), columns.clamp(max=coarse.shape[3] - 1)
    begin = 2 * around.flatten(4)[:, :, rows][:, :, :, columns]
    error, step = match(begin, begin)
    error, index = error.min(-1, keepdim=True)
    index = index.expand(-1, 2, -1, -1, -1)
    flow = begin = begin.gather(-1, index)
    step = step.gather(-1, index)
    for _ in range(ITERATIONS):
        trial = flow + step
        trial_error, trial_step = match(trial, begin)
        lower = trial_error < error
        flow, error = torch.where(lower, trial, flow), torch.where(lower, trial_error, error)
        step = torch.where(lower, trial_step, 0.5 * step)
    return flow[..., 0]


@has_twin(_TRITON)
def dense(level: Tensor, flow: Tensor) -> Tensor:
    """Displacement and texture of every pixel of a level.

    Args:
        level: (B, 2, h, w) float32, this frame and the previous one, of half size.
        flow: (B, 2, n, m), of ``search``.

    Returns:
        (B, 4, h, w) float32: displacement x and y, of the patches that cover the pixel, weighted
        by how well they fit there; 0..1, how well texture determines the motion along x and y:
        the structure tensor's diagonal over noise and the other axis.
    """
    y, x = _places(level)
    rows, columns = (y[:, 0] / STRIDE).long(), (x[0] / STRIDE).long()
    total = torch.zeros_like(level)
    weights = torch.zeros_like(level[:, :1])
    for i in (1, 0):
        for j in (1, 0):
            row = (rows - i).clamp(0, flow.shape[2] - 1)
            column = (columns - j).clamp(0, flow.shape[3] - 1)
            at = flow[:, :, row][..., column]
            found = _sample(level[:, 1:], x + at[:, 0], y + at[:, 1])
            weight = 1 / (found - level[:, :1]).abs().clamp(min=1.0)
            total, weights = total + at * weight, weights + weight
    squares = F.pad(torch.stack(_slopes(level[:, 0]), 1).square(), (1, 1, 1, 1), mode="reflect")
    squares = F.avg_pool2d(squares, 3, 1)
    texture = squares / (squares.sum(1, keepdim=True) + HALF_CONTRAST**2)
    return torch.cat([total / weights, texture], 1)


@has_twin(_TRITON)
def finish(luma: Tensor, previous: Tensor, small: Tensor, half: Tensor) -> Tensor:
    """The result of ``optical_flow`` from maps of half size.

    Args:
        luma, previous: (B, h, w) float32.
        small: (B, 2, h', w'), both at any size, for their mean brightness.
        half: (B, 4, h // 2, w // 2), of ``dense``.
    """
    y, x = _places(luma)
    maps = _sample(half, x.expand_as(luma) / 2 - 0.25, y.expand_as(luma) / 2 - 0.25)
    displacement = 2 * maps[:, :2]
    mean = small.mean((2, 3))[..., None, None]
    gain = mean[:, :1] / mean[:, 1:].clamp(min=1.0)
    moved = _sample(previous[:, None], x + displacement[:, 0], y + displacement[:, 1])
    return torch.cat([displacement, (luma[:, None] - gain * moved).abs(), maps[:, 2:]], 1)


def _areas(source: int, target: int, like: Tensor) -> Tensor:
    # (target, source): the share of each source pixel in the target pixels.
    edges = torch.arange(target + 1, device=like.device) * (source / target)
    pixels = torch.arange(source, device=like.device)
    first, last = edges[:-1, None].maximum(pixels), edges[1:, None].minimum(pixels + 1)
    return (last - first).clamp(min=0) * (target / source)


def _places(like: Tensor) -> tuple[Tensor, Tensor]:
    # y and x of every pixel of maps, (height, width) each.
    height, width = like.shape[-2:]
    y = torch.arange(height, device=like.device, dtype=torch.float32)
    x = torch.arange(width, device=like.device, dtype=torch.float32)
    return y[:, None].expand(height, width), x.expand(height, width)


def _patches(maps: Tensor) -> Tensor:
    # (..., h, w) -> (..., n, m, 1, 64)
    return maps.unfold(-2, PATCH, STRIDE).unfold(-2, PATCH, STRIDE).flatten(-2)[..., None, :]


def _slopes(luma: Tensor) -> tuple[Tensor, Tensor]:
    # Sobel's along x and y, grey levels per pixel, (B, h, w) each.
    padded = F.pad(luma[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    right = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return (down[..., 2:] - down[..., :-2]) / 8, (right[:, 2:] - right[:, :-2]) / 8


def _sample(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # Bilinear, (B, C, h, w) at the pixels x, y (B, ...) -> (B, C, ...); outside as at the edge.
    height, width = maps.shape[2:]
    grid = torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], -1)
    grid = grid.view(len(maps), 1, -1, 2)
    found = F.grid_sample(maps, grid, padding_mode="border", align_corners=True)
    return found.view(*maps.shape[:2], *x.shape[1:])


def _flow_on_host(luma: Tensor, previous: Tensor, out: Tensor | None) -> Tensor:
    out = torch.empty((len(luma), 5, *luma.shape[1:])) if out is None else out
    for maps, *images in zip(out.numpy(), luma.numpy(), previous.numpy(), strict=True):
        now, before = (cv2.convertScaleAbs(image) for image in images)
        # Made anew, which takes 10 us: it has a memory, and may be used by one thread only.
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        displacement = dis.calc(now, before, None)
        cv2.split(displacement, [maps[0], maps[1]])
        places = cv2.add(displacement, _host_places(*now.shape), displacement)
        cv2.remap(images[1], places, None, cv2.INTER_LINEAR, maps[2], cv2.BORDER_REPLICATE)
        gain = cv2.mean(now)[0] / max(cv2.mean(before)[0], 1.0)
        maps[2] *= np.float32(gain)
        cv2.absdiff(images[0], maps[2], maps[2])
        small = cv2.resize(now, (now.shape[1] // 2, now.shape[0] // 2), None, 0, 0, cv2.INTER_AREA)
        squares = [
            cv2.boxFilter(cv2.multiply(slope, slope, None, 1 / 64, cv2.CV_32F), -1, (3, 3))
            for slope in cv2.spatialGradient(small)
        ]
        total = squares[0] + squares[1]
        total += np.float32(HALF_CONTRAST**2)
        for weight, square in zip(maps[3:], squares, strict=True):
            square /= total
            cv2.resize(square, now.shape[::-1], weight)
    return out


@lru_cache(maxsize=8)
def _host_places(height: int, width: int) -> np.ndarray:
    # (height, width, 2) float32: x and y of every pixel.
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    return np.stack(np.meshgrid(x, y), -1)
