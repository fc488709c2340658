# SPDX-License-Identifier: Apache-2.0
"""Prediction of one picture, exactly as in the published scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.engine.output.postprocess import classify, resize_depth

if TYPE_CHECKING:
    from dpt_ros.model import DPT

KITTI_CROP = (352, 1216)


def predict_image(model: DPT, rgb: np.ndarray, kitti_crop: bool = False) -> dict[str, np.ndarray]:
    """Predict as ``run_monodepth.py`` and ``run_segmentation.py`` of isl-org/DPT do.

    Args:
        model: from ``create_model``, on any device.
        rgb: (H, W, 3) uint8.
        kitti_crop: predict the bottom centre 352 x 1216 only, as KITTI's benchmark does.

    Returns:
        By task name: "depth" (H, W) float32, relative inverse depth, which can be below 0 where
        bicubic upsampling overshoots, as published; or metres from a metric network, clipped to
        the range that it predicted. "labels" (H, W) uint8, class ids from 1.

    Raises:
        ValueError: the picture is not (H, W, 3) uint8, or smaller than the crop.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ValueError(
            f"The picture is {rgb.dtype} of shape {rgb.shape}, but must be uint8 (H, W, 3)."
        )
    if kitti_crop:
        rgb = _crop(rgb)
    height, width = rgb.shape[:2]
    spec = model.spec
    size = network_size(height, width, spec.net_height, spec.net_width, spec.multiple_of)
    parameter = next(model.parameters())
    images = network_input(rgb, size, spec.mean, spec.std, parameter.device)
    with torch.inference_mode():
        output = model(images.to(parameter.dtype))
    result = {}
    if "depth" in output:
        result["depth"] = resize_depth(output["depth"], (height, width))[0].cpu().numpy()
        if model.metric:
            # Bicubic upsampling overshoots at edges, down to negative metres.
            own = output["depth"][0].float().cpu().numpy()
            low, high = (function.reduce(own, axis=None) for function in (np.fmin, np.fmax))
            result["depth"] = np.clip(result["depth"], low, high)
    if "labels" in output:
        result["labels"] = classify(output["labels"], (height, width))[0][0].cpu().numpy()
    return result


def _crop(rgb: np.ndarray) -> np.ndarray:
    height, width = KITTI_CROP
    if rgb.shape[0] < height or rgb.shape[1] < width:
        raise ValueError(
            f"The picture has {rgb.shape[0]} x {rgb.shape[1]} pixels, but KITTI's crop needs at "
            f"least {height} x {width}."
        )
    top, left = rgb.shape[0] - height, (rgb.shape[1] - width) // 2
    return rgb[top:, left : left + width]
