# SPDX-License-Identifier: Apache-2.0
"""The steps of a frame that keep nothing: preprocess, infer, finish."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.frame import Kind
from dpt_ros.engine.inference.backend import Maps
from dpt_ros.engine.inference.kernels import classify_upsampled
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput, rgb
from dpt_ros.engine.input.encodings import picture_size
from dpt_ros.engine.input.preprocess import network_input, to_rgb
from dpt_ros.engine.input.rectify import Rectifier
from dpt_ros.engine.output.flying_pixels import remove_flying_pixels
from dpt_ros.engine.output.fused_depth import SENSOR, FusionSettings, fuse, largest_ratio
from dpt_ros.engine.output.label_groups import of_logits
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.engine.output.postprocess import resize_depth
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.scale.estimator import limit_depth
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.flow import flow_size, grey, luma_of

FUSED = ("fused", "fused_origin", "fused_sigma")
Pixels = Tensor | Sequence[np.ndarray]


class Chain:
    """The steps for frames of one kind: rectify, preprocess, infer, finish.

    On a CPU, OpenCV rectifies and resizes.

    Args:
        networks: from ``load_networks``.
        kind: of the frames.
        smoothed: whether depth and labels are smoothed between ``infer`` and ``finish``.
        settings: sizes of the network's input and of the outputs; live settings are ignored.
        streams: the lanes of a GPU, on which the label network runs beside the depth network;
            ``Streams`` run the GPU's steps on a CPU. None for the CPU's own steps.

    Attributes:
        refined: whether depth is scaled or smoothed.
        map_size: (height, width) of the depth network's maps.
        label_shape: (C, h, w) of the logits; () without labels.
        luma_size: (height, width) of the images for optical flow.
        output_size: (height, width) of depth outputs.
        on_host: whether these are the CPU's own steps.
        metric, floor: see ``scale``.
        seen: (H, W) bool, false where a rectified picture looks past the raw one; None if it
            does nowhere.

    Raises:
        ValueError: the networks compute none of the requested outputs, or the lens is for
            pictures of another size.
    """

    def __init__(
        self,
        networks: Networks,
        kind: Kind,
        smoothed: bool,
        settings: Settings,
        streams: Streams | None = None,
    ) -> None:
        self.kind = kind
        self._all, self._settings = networks, settings
        self.smoothed = smoothed and networks.depth is not None
        scaled = settings.scale_source != "none"
        self.refined = networks.depth is not None and (smoothed or scaled)
        self._streams = streams
        self.on_host = streams is None
        self._size = picture_size(kind.shape, kind.encoding)
        # Of the pictures that everything after ``rectify`` gets.
        self._encoding, self._shape = kind.encoding, kind.shape
        self._rectify: Rectifier | None = None
        if kind.lens is not None:
            if kind.camera is None:
                raise ValueError("The frame has a lens, but no camera for which to rectify it.")
            device = None if self.on_host else networks.device
            self._rectify = Rectifier(kind.lens, kind.camera, kind.encoding, self._size, device)
            self._encoding, self._shape = "rgb8", (*self._size, 3)
        self.seen = self._rectify.seen if self._rectify else None
        outputs = kind.outputs
        self._gives_depth = networks.depth is not None and outputs.any_depth
        wants_labels = outputs.labels or outputs.confidence or outputs.points
        self._gives_labels = networks.labels is not None and wants_labels
        if not self._gives_depth and not self._gives_labels:
            raise ValueError("The networks compute none of the requested outputs.")
        # The temporal filter needs depth to know which pixels show the same place.
        self._depth = networks.depth if self._gives_depth or self.refined else None
        self._labels = networks.labels if self._gives_labels else None
        # The label network first; a network of both tasks once.
        self._networks = [one for one in dict.fromkeys((self._labels, self._depth)) if one]
        self._sizes = {
            id(network): network.input_size(*self._size, settings) for network in self._networks
        }
        self._device_inputs = [
            DeviceInput(
                self._encoding, self._shape, self._sizes[id(network)], network.spec.mean,
                network.spec.std, network.device, network.backend.input_dtype,
            )
            for network in (self._networks if streams is not None else ())
        ]  # fmt: skip
        self.map_size = self._sizes[id(self._depth)] if self._depth is not None else (0, 0)
        self.label_shape: tuple[int, ...] = ()
        if self._labels is not None:
            height, width = self._sizes[id(self._labels)]
            self.label_shape = (len(networks.class_names), height // 2, width // 2)
        own = self._size if streams is None else self.map_size
        self.luma_size = flow_size(*own)
        self.metric, self.floor = networks.metric, None
        if settings.scale_camera_height > 0 and networks.floor:
            self.floor = torch.tensor(networks.floor, device=networks.device)
        if self._depth is not None and streams is not None:
            spec = self._depth.spec
            numbers = torch.tensor([spec.std, spec.mean], device=networks.device) * 255
            self._to_rgb = numbers.unbind()
        self._min_confidence = settings.points_min_confidence if self._gives_labels else 0.0
        self._full_size = settings.output_size == "input"
        sizes = {self._size} if self._full_size else set(self._sizes.values())
        self._seen = {} if self.seen is None else _masks(self.seen, sizes, networks.device)
        self.output_size = self._size if self._full_size else self.map_size
        self._fused = outputs.fused and self.refined  # else nothing is known of the deviation
        self._fusion = FusionSettings(
            settings.fused_near, settings.fused_far,
            settings.fused_tolerance_metres, settings.fused_tolerance,
        )  # fmt: skip
        if kind.camera is not None and (incidence := settings.points_max_incidence) < 90:
            edge = largest_ratio(kind.camera, self.output_size[1], incidence)
            self._fusion = replace(self._fusion, edge=edge)
        self._points_fused = self._fused and settings.points_source == "fused"

    @torch.inference_mode()
    def rectify(self, pixels: Pixels) -> Pixels:
        """Rectified rgb8 pictures of ``step``'s pixels; the pixels themselves without a lens."""
        return pixels if self._rectify is None else self._rectify(pixels)

    @torch.inference_mode()
    def preprocess(self, pixels: Pixels) -> tuple[list[Tensor], Tensor | None]:
        """Convert, resize and normalise what ``rectify`` gives.

        Returns:
            per network (B, 3, h, w) in its ``input_dtype``; for optical flow (B, hl, wl) float32
            grey levels, None without smoothing.
        """
        if isinstance(pixels, Tensor):
            images = [prepare(pixels) for prepare in self._device_inputs]
            # The depth network is the last one.
            return images, luma_of(images[-1], *self._to_rgb) if self.smoothed else None
        pictures = [to_rgb(one, self._encoding) for one in pixels]
        images = []
        for network in self._networks:
            size, spec = self._sizes[id(network)], network.spec
            parts = [
                network_input(one, size, spec.mean, spec.std, exact=False) for one in pictures
            ]
            images.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        if not self.smoothed:
            return images, None
        luma = torch.from_numpy(np.stack([grey(one) for one in pictures]))
        return images, luma.float()

    @torch.inference_mode()
    def infer(self, images: list[Tensor]) -> Maps:
        """Run the networks on what ``preprocess`` gives.

        Returns:
            by name, those that are needed: "inverse_depth" (B, h, w) float32, 1/m from a metric
            network, else relative; "logits" (B, C, h / 2, w / 2).
        """
        results: dict[int, Maps] = {}
        last, streams = len(images) - 1, self._streams
        try:
            for k, network in enumerate(self._networks):
                tasks = {"depth": network is self._depth, "labels": network is self._labels}
                with nullcontext() if streams is None or k == last else streams.branch():
                    results[id(network)] = network(images[k], **tasks)
        finally:
            # Also after an error, or a capture ends with "unjoined work" instead of its cause.
            if streams is not None:
                streams.join()
        maps = {}
        if self._depth is not None:
            maps["inverse_depth"] = results[id(self._depth)]["inverse_depth"]
        if self._labels is not None:
            logits = results[id(self._labels)]["logits"]
            groups = self._all.groups
            maps["logits"] = logits if groups is None else of_logits(logits, groups)
        return maps

    def bounded(self, raw_inverse_depth: Tensor) -> Tensor:
        """A metric network's output saturates: beyond that it is unknown, 0."""
        if not self.metric:
            return raw_inverse_depth
        return torch.where(raw_inverse_depth > 1 / self._all.farthest, raw_inverse_depth, 0.0)

    @torch.inference_mode()
    def finish(
        self, maps: Maps, pixels: Pixels, limit: Tensor | float, sensor: Tensor | None = None
    ) -> Maps:
        """Resize, invert and limit the depth; classify; make points.

        Args:
            maps: from ``infer``; "variance" (B, h, w) relative, "reset_code" (B,) and "scale"
                (B, k) where ``refined``.
            pixels: from ``rectify``.
            limit: metres beyond which depth is +Inf; (B, 1, 1) or a number.
            sensor: (B, *output_size) metres of a depth camera, NaN unknown.

        Returns:
            those requested and possible: "depth" and "deviation" (B, H, W) float32, metres;
            "inverse" (B, H, W) float32, 1/m or relative; "labels" and "confidence" (B, H, W)
            uint8; "fused", "fused_origin" and "fused_sigma" of ``fused_depth.fuse``; "points"
            (B, H, W, 5) as ``point_cloud.points`` returns them; "uncertain" (B,) float32, how
            many pixels are for that reason no points; "reset_code" and "scale" as in ``maps``.
        """
        wanted = self.kind.outputs
        outputs: Maps = {}
        if self._gives_depth:
            outputs |= self._finish_depth(maps["inverse_depth"], maps.get("variance"), limit)
        if self._fused and sensor is not None:
            fused = fuse(sensor, outputs["depth"], outputs["deviation"], self._fusion)
            outputs |= dict(zip(FUSED, fused, strict=True))
        if self._gives_labels:
            outputs |= self._finish_labels(maps["logits"])
        if wanted.points:
            uncertain = self._uncertain(maps.get("variance"), outputs)
            outputs["points"] = self._points(pixels, outputs, uncertain)
            if uncertain is not None:
                outputs["uncertain"] = uncertain.sum((1, 2), dtype=torch.float32)
        stride = self._settings.points_stride
        for name in ("labels", "confidence"):
            if name in outputs and stride > 1:
                outputs[name] = outputs[name][:, ::stride, ::stride].contiguous()
        for name in ("depth", "deviation", "labels", "confidence"):
            if not getattr(wanted, name):
                outputs.pop(name, None)
        return outputs | {name: maps[name] for name in ("reset_code", "scale") if name in maps}

    def _finish_depth(
        self, inverse_depth: Tensor, variance: Tensor | None, limit: Tensor | float
    ) -> Maps:
        """Inverse depth is inverted here and nowhere before.

        A metric network's before resizing, as published (isl-org/DPT run_monodepth.py). Its 0,
        beyond range, becomes the farthest depth: +Inf would make NaN of all that resizing mixes.
        """
        wanted = self.kind.outputs
        outputs = {}
        if self.metric:
            bounded = F.threshold(inverse_depth, 0.0, self._all.least)
            depth = self._where_seen(self._resize(bounded.reciprocal()), torch.nan)
            depth = limit_depth(depth, limit)
            if wanted.inverse:
                outputs["inverse"] = depth.reciprocal()
        else:
            inverse_depth = self._resize(inverse_depth).clamp(min=0)
            inverse_depth = self._where_seen(inverse_depth, torch.nan)
            depth = limit_depth(inverse_depth.reciprocal(), limit)
            if wanted.inverse:
                outputs["inverse"] = inverse_depth
        if wanted.depth or wanted.points or self._fused:
            outputs["depth"] = depth
        if (wanted.deviation or self._fused) and variance is not None:
            # First order: the relative variance of depth is that of inverse depth.
            outputs["deviation"] = depth * self._resize(variance).clamp(min=0).sqrt()
        return outputs

    def _resize(self, maps: Tensor) -> Tensor:
        return resize_depth(maps, self._size, exact=False) if self._full_size else maps

    def _finish_labels(self, logits: Tensor) -> Maps:
        # Classified at the network's size: full-size logits would cost more than the network.
        own = self._sizes[id(self._labels)]
        target = self._size if self._full_size else own
        wanted = self.kind.outputs
        needed = wanted.confidence or (wanted.points and self._min_confidence > 0)
        labels, confidence = classify_upsampled(logits, own, target, needed)
        outputs = {"labels": labels} | ({} if confidence is None else {"confidence": confidence})
        return {name: self._where_seen(value, 0) for name, value in outputs.items()}

    def _where_seen(self, values: Tensor, unseen: float) -> Tensor:
        """(B, H, W) with ``unseen`` where a rectified picture looks past the raw one."""
        if self.seen is None:
            return values
        height, width = values.shape[1:]
        return torch.where(self._seen[height, width], values, unseen)

    def _uncertain(self, variance: Tensor | None, outputs: Maps) -> Tensor | None:
        """(B, H, W) bool: pixels of known depth that are too uncertain for points; None if all
        are kept."""
        doubts = []
        if self._settings.points_max_sigma > 0 and variance is not None:
            if self._points_fused:
                depth, sigma = outputs["fused"], outputs["fused_sigma"]
                doubts.append(~(sigma <= self._settings.points_max_sigma * depth))
            else:
                doubts.append(~(self._resize(variance) <= self._settings.points_max_sigma**2))
        if self._min_confidence > 0:
            doubts.append(outputs["confidence"] < round(255 * self._min_confidence))
        if not doubts:
            return None
        doubted = doubts[0] if len(doubts) == 1 else doubts[0] | doubts[1]
        return doubted & (outputs["fused" if self._points_fused else "depth"] > 0)

    def _points(self, pixels: Pixels, outputs: Maps, uncertain: Tensor | None) -> Tensor:
        """(B, h, w, 5) from the full outputs, in the colours of the pixels."""
        camera, settings = self.kind.camera, self._settings
        assert camera is not None
        if isinstance(pixels, Tensor):
            pictures = rgb(pixels, self._encoding)
        else:
            made = np.stack([to_rgb(one, self._encoding) for one in pixels])
            pictures = torch.from_numpy(made)
        maps = outputs["fused" if self._points_fused else "depth"]
        size = tuple(maps.shape[1:])
        if pictures.shape[1:3] != size:
            small = F.interpolate(pictures.permute(0, 3, 1, 2).float(), size, mode="area")
            pictures = small.permute(0, 2, 3, 1).to(torch.uint8)
        clouds = []
        for k, depth in enumerate(maps):
            if settings.points_max_incidence < 90:
                cleaned = remove_flying_pixels(depth, camera, settings.points_max_incidence)
                if self._points_fused:  # the sensor has been cleaned already
                    cleaned = torch.where(outputs["fused_origin"][k] == SENSOR, depth, cleaned)
                depth = cleaned
            if uncertain is not None:
                depth = torch.where(uncertain[k], torch.nan, depth)
            labels = outputs["labels"][k] if "labels" in outputs else None
            step, far = settings.points_stride, settings.points_far
            clouds.append(points(depth, pictures[k], labels, camera, step, far))
        return clouds[0][None] if len(clouds) == 1 else torch.stack(clouds)


def _masks(
    mask: np.ndarray, sizes: set[tuple[int, int]], device: torch.device
) -> dict[tuple[int, int], Tensor]:
    """A mask (H, W) bool in other sizes (height, width), by size."""
    found = {}
    for size in sizes:
        resized = cv2.resize(mask.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        found[size] = torch.from_numpy(resized.astype(bool)).to(device)
    return found


def is_refined(networks: Networks, settings: Settings) -> bool:
    """Whether depth is to be scaled or smoothed."""
    if networks.depth is None:
        return False
    return settings.smoothing_strength > 0 or settings.scale_source != "none"


def depth_limit(networks: Networks, settings: Settings) -> float:
    """Metres beyond which depth is published as +Inf; inf for no limit."""
    return min(settings.max_range or float("inf"), networks.farthest)
