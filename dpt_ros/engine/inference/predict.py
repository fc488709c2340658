# SPDX-License-Identifier: Apache-2.0
"""Prediction of one picture, exactly as in the published scripts."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.engine.output.label_groups import of_logits
from dpt_ros.engine.output.postprocess import classify, resize_depth
from dpt_ros.engine.settings import Settings
from dpt_ros.model.heads import MIN_INVERSE_DEPTH, upsample2

if TYPE_CHECKING:
    from dpt_ros.model import DPT

KITTI_CROP = (352, 1216)
_DEFAULTS = Settings()


def predict_image(
    model: DPT | Network | Networks,
    rgb: np.ndarray,
    kitti_crop: bool = False,
    settings: Settings = _DEFAULTS,
) -> dict[str, np.ndarray]:
    """Predict as ``run_monodepth.py`` and ``run_segmentation.py`` of isl-org/DPT do.

    Args:
        model: from ``create_model``, on any device; or the networks of a node (``load_networks``)
            with their device, precision and backend.
        rgb: (H, W, 3) uint8.
        kitti_crop: predict the bottom centre 352 x 1216 only, as KITTI's benchmark does.
        settings: size of the input, factor on metres and largest range; not used with a DPT.

    Returns:
        By task name: "depth" (H, W) float32, relative inverse depth, which can be below 0 where
        bicubic upsampling overshoots, as published; or metres from a metric network, clipped to
        the range that it predicted. "labels" (H, W) uint8, class ids from 1.

    Raises:
        ValueError: the picture is not (H, W, 3) uint8, smaller than the crop, or too long.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ValueError(
            f"The picture is {rgb.dtype} of shape {rgb.shape}, but must be uint8 (H, W, 3)."
        )
    if kitti_crop:
        rgb = crop(rgb)
    height, width = rgb.shape[:2]
    if isinstance(model, Network | Networks):
        output, metric = _run(model, rgb, settings)
    else:
        spec, parameter, metric = model.spec, next(model.parameters()), model.metric
        size = network_size(height, width, spec.net_height, spec.net_width, spec.multiple_of)
        images = network_input(rgb, size, spec.mean, spec.std, parameter.device)
        with torch.inference_mode():
            output = model(images.to(parameter.dtype))
    result = {}
    if "depth" in output:
        result["depth"] = resize_depth(output["depth"], (height, width))[0].cpu().numpy()
        if metric:
            # Bicubic upsampling overshoots at edges, down to negative metres.
            own = output["depth"][0].float().cpu().numpy()
            low, high = (function.reduce(own, axis=None) for function in (np.fmin, np.fmax))
            result["depth"] = np.clip(result["depth"], low, high)
            if settings.max_range:
                result["depth"][result["depth"] > settings.max_range] = np.inf
    if "labels" in output:
        result["labels"] = classify(output["labels"], (height, width))[0][0].cpu().numpy()
    return result


@torch.inference_mode()
def _run(
    model: Network | Networks, rgb: np.ndarray, settings: Settings
) -> tuple[dict[str, torch.Tensor], bool]:
    """What ``DPT.forward`` gives, of one or two networks; and whether depth is in metres."""
    if isinstance(model, Networks):
        depth, labels, groups = model.depth, model.labels, model.groups
    else:
        depth, labels, groups = model, model, None
    output, warn = {}, partial(warnings.warn, stacklevel=2)
    for network in dict.fromkeys(one for one in (depth, labels) if one is not None):
        spec = network.spec
        size = network.input_size(rgb.shape[0], rgb.shape[1], settings)
        images = network_input(rgb, size, spec.mean, spec.std, network.device)
        maps = network.retried(warn, images, network is depth, network is labels)
        if "inverse_depth" in maps:
            output["depth"] = maps["inverse_depth"]
            if spec.invert:
                metres = output["depth"].clamp(min=MIN_INVERSE_DEPTH).reciprocal()
                output["depth"] = metres * settings.scale_factor
        if "logits" in maps:
            logits = maps["logits"].float()
            output["labels"] = upsample2(logits if groups is None else of_logits(logits, groups))
    return output, depth is not None and depth.spec.invert


def crop(rgb: np.ndarray) -> np.ndarray:
    """The part of a picture that KITTI's benchmark uses: (352, 1216, ...), a view.

    Args:
        rgb: (H, W, 3), or (H, W) of its truth.

    Raises:
        ValueError: the picture is smaller.
    """
    height, width = KITTI_CROP
    if rgb.shape[0] < height or rgb.shape[1] < width:
        raise ValueError(
            f"The picture has {rgb.shape[0]} x {rgb.shape[1]} pixels, but KITTI's crop needs at "
            f"least {height} x {width}."
        )
    top, left = rgb.shape[0] - height, (rgb.shape[1] - width) // 2
    return rgb[top:, left : left + width]
