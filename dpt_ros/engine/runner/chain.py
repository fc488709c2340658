# SPDX-License-Identifier: Apache-2.0
"""The steps of a frame that keep nothing: preprocess, infer, finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest
from dpt_ros.engine.inference.kernels import classify_upsampled
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput, rgb
from dpt_ros.engine.input.encodings import picture_size
from dpt_ros.engine.input.preprocess import network_input, to_rgb
from dpt_ros.engine.output.flying_pixels import remove_flying_pixels
from dpt_ros.engine.output.label_groups import of_logits
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.engine.output.postprocess import resize_depth
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.scale.estimator import ScaleConstants
from dpt_ros.engine.scale.inverse_depth import limit_depth
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.flow import flow_size, grey, luma_of

Pixels = Tensor | Sequence[np.ndarray]


@dataclass(frozen=True)
class Kind:
    """The properties shared by frames that one chain processes, and that can form a batch.

    Args:
        encoding: of the pixels.
        shape: of ``Frame.pixels``.
        dtype: of ``Frame.pixels``: "uint8", "uint16" or "float32".
        outputs: the outputs to compute.
        camera: intrinsics, if points are requested.
    """

    encoding: str
    shape: tuple[int, ...]
    dtype: str
    outputs: OutputRequest
    camera: CameraModel | None = None

    @classmethod
    def of(cls, frame: Frame, outputs: OutputRequest) -> Kind:
        """The kind of a decoded frame."""
        if outputs.points and frame.camera is None:
            outputs = replace(outputs, points=False)
        camera = frame.camera if outputs.points else None
        return cls(frame.encoding, frame.pixels.shape, frame.pixels.dtype.name, outputs, camera)


class Chain:
    """The steps for frames of one kind: preprocess, infer, finish. On a CPU, OpenCV resizes.

    Args:
        networks: from ``load_networks``.
        kind: of the frames.
        smoothed: whether depth and labels are smoothed between ``infer`` and ``finish``.
        settings: sizes of the network's input and of the outputs; live settings are ignored.
        streams: the lanes of a GPU, on which the label network runs beside the depth network;
            ``HostStreams`` run the GPU's steps on a CPU. None for the CPU's own steps.

    Attributes:
        refined: whether depth is scaled or smoothed.
        map_size: (height, width) of the depth network's maps.
        label_shape: (C, h, w) of the logits; () without labels.
        luma_size: (height, width) of the images for optical flow.
        on_host: whether these are the CPU's own steps.

    Raises:
        ValueError: the networks compute none of the requested outputs.
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
        self.smoothed = smoothed and networks.depth is not None
        scaled = settings.scale_source != "none"
        self.refined = networks.depth is not None and (smoothed or scaled)
        self._streams = streams
        self.on_host = streams is None
        self._size = picture_size(kind.shape, kind.encoding)
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
        wanted = dict.fromkeys((self._labels, self._depth))
        self._networks = [network for network in wanted if network is not None]
        self._sizes = {
            id(network): network.input_size(*self._size, settings) for network in self._networks
        }
        self._device_inputs: list[DeviceInput] = []
        if streams is not None:
            self._device_inputs = [self._device_input(network) for network in self._networks]
        self._groups = networks.groups
        self._metric = networks.metric
        self._least = networks.least
        self._farthest = networks.farthest
        self.map_size = self._sizes[id(self._depth)] if self._depth is not None else (0, 0)
        self.label_shape: tuple[int, ...] = ()
        if self._labels is not None:
            height, width = self._sizes[id(self._labels)]
            self.label_shape = (len(networks.class_names), height // 2, width // 2)
        own = self._size if streams is None else self.map_size
        self.luma_size = flow_size(*own)
        floor = None
        if settings.scale_camera_height > 0 and networks.floor:
            floor = torch.tensor(networks.floor, device=networks.device)
        self.scale_constants = ScaleConstants(networks.metric, floor)
        if self._depth is not None and streams is not None:
            spec = self._depth.spec
            numbers = torch.tensor([spec.std, spec.mean], device=networks.device) * 255
            self._to_rgb = numbers.unbind()
        self._stride = settings.points_stride
        self._far = settings.points_far
        self._max_incidence = settings.points_max_incidence
        self._max_sigma = settings.points_max_sigma
        self._min_confidence = settings.points_min_confidence if self._gives_labels else 0.0
        self._full_size = settings.output_size == "input"

    def _device_input(self, network: Network) -> DeviceInput:
        spec, kind = network.spec, self.kind
        size = self._sizes[id(network)]
        return DeviceInput(
            kind.encoding, kind.shape, size, spec.mean, spec.std, network.device,
            network.backend.input_dtype,
        )  # fmt: skip

    @torch.inference_mode()
    def preprocess(self, pixels: Pixels) -> tuple[list[Tensor], Tensor | None]:
        """Convert, resize and normalise.

        Args:
            pixels: see ``step``.

        Returns:
            per network (B, 3, h, w) in its ``input_dtype``; for optical flow (B, hl, wl) float32
            grey levels, None without smoothing.
        """
        if isinstance(pixels, Tensor):
            images = [prepare(pixels) for prepare in self._device_inputs]
            # The depth network is the last one.
            return images, luma_of(images[-1], *self._to_rgb) if self.smoothed else None
        pictures = [to_rgb(one, self.kind.encoding) for one in pixels]
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
    def infer(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Run the networks.

        Args:
            images: from ``preprocess``.

        Returns:
            by name, those that are needed: "inverse_depth" (B, h, w) float32, 1/m from a metric
            network, else relative; "logits" (B, C, h / 2, w / 2).
        """
        results: dict[int, dict[str, Tensor]] = {}
        last = len(images) - 1
        with self._branches() as branch:
            for k, network in enumerate(self._networks):
                with branch() if k < last else nullcontext():
                    tasks = {
                        "depth": network is self._depth,
                        "labels": network is self._labels,
                    }
                    results[id(network)] = network(images[k], **tasks)
        maps = {}
        if self._depth is not None:
            maps["inverse_depth"] = results[id(self._depth)]["inverse_depth"]
        if self._labels is not None:
            logits = results[id(self._labels)]["logits"]
            maps["logits"] = logits if self._groups is None else of_logits(logits, self._groups)
        return maps

    def bounded(self, raw_inverse_depth: Tensor) -> Tensor:
        """A metric network's output saturates: beyond that it is unknown, 0."""
        if not self._metric:
            return raw_inverse_depth
        return torch.where(raw_inverse_depth > 1 / self._farthest, raw_inverse_depth, 0.0)

    @torch.inference_mode()
    def finish(
        self, maps: dict[str, Tensor], pixels: Pixels, limit: Tensor | float
    ) -> dict[str, Tensor]:
        """Resize, invert and limit the depth; classify; make points.

        Args:
            maps: from ``infer``; "variance" (B, h, w) relative, "reset_code" (B,) and "scale"
                (B, k) where ``refined``.
            pixels: see ``step``.
            limit: metres beyond which depth is +Inf; (B, 1, 1) or a number.

        Returns:
            those requested and possible: "depth" and "deviation" (B, H, W) float32, metres;
            "inverse" (B, H, W) float32, 1/m or relative; "labels" and "confidence" (B, H, W)
            uint8; "points" (B, H, W, 5) as ``point_cloud.points`` returns them; "uncertain" (B,)
            float32, how many pixels are for that reason no points; "reset_code" and "scale" as in
            ``maps``.
        """
        wanted = self.kind.outputs
        outputs: dict[str, Tensor] = {}
        if self._gives_depth:
            outputs |= self._finish_depth(maps["inverse_depth"], maps.get("variance"), limit)
        if self._gives_labels:
            outputs |= self._finish_labels(maps["logits"])
        if wanted.points:
            uncertain = self._uncertain(maps.get("variance"), outputs)
            outputs["points"] = self._points(pixels, outputs, uncertain)
            if uncertain is not None:
                outputs["uncertain"] = uncertain.sum((1, 2), dtype=torch.float32)
        for name in ("labels", "confidence"):
            if name in outputs and self._stride > 1:
                strided = outputs[name][:, :: self._stride, :: self._stride]
                outputs[name] = strided.contiguous()
        named = {name: getattr(wanted, name) for name in ("depth", "labels", "confidence")}
        outputs = {name: value for name, value in outputs.items() if named.get(name, True)}
        return outputs | {name: maps[name] for name in ("reset_code", "scale") if name in maps}

    @contextmanager
    def _branches(self) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
        """Yields a context manager whose work runs beside the rest, until this context ends."""
        if self._streams is None:
            yield nullcontext
            return
        try:
            yield self._streams.branch
        finally:
            # Also after an error, or a capture ends with "unjoined work" instead of its cause.
            self._streams.join()

    def _finish_depth(
        self, inverse_depth: Tensor, variance: Tensor | None, limit: Tensor | float
    ) -> dict[str, Tensor]:
        """Inverse depth is inverted here and nowhere before.

        A metric network's before resizing, as published (isl-org/DPT run_monodepth.py). Its 0,
        beyond range, becomes the farthest depth: +Inf would make NaN of all that resizing mixes.
        """
        wanted = self.kind.outputs
        outputs = {}
        if self._metric:
            bounded = F.threshold(inverse_depth, 0.0, self._least)
            depth = limit_depth(self._resize(bounded.reciprocal()), limit)
            if wanted.inverse:
                outputs["inverse"] = depth.reciprocal()
        else:
            inverse_depth = self._resize(inverse_depth).clamp(min=0)
            depth = limit_depth(inverse_depth.reciprocal(), limit)
            if wanted.inverse:
                outputs["inverse"] = inverse_depth
        if wanted.depth or wanted.points:
            outputs["depth"] = depth
        if wanted.deviation and variance is not None:
            # First order: the relative variance of depth is that of inverse depth.
            outputs["deviation"] = depth * self._resize(variance).clamp(min=0).sqrt()
        return outputs

    def _resize(self, maps: Tensor) -> Tensor:
        return resize_depth(maps, self._size, exact=False) if self._full_size else maps

    def _finish_labels(self, logits: Tensor) -> dict[str, Tensor]:
        # Classified at the network's size: full-size logits would cost more than the network.
        own = self._sizes[id(self._labels)]
        target = self._size if self._full_size else own
        wanted = self.kind.outputs
        needed = wanted.confidence or (wanted.points and self._min_confidence > 0)
        labels, confidence = classify_upsampled(logits, own, target, needed)
        return {"labels": labels} | ({} if confidence is None else {"confidence": confidence})

    def _uncertain(self, variance: Tensor | None, outputs: dict[str, Tensor]) -> Tensor | None:
        """(B, H, W) bool: pixels of known depth that are too uncertain for points; None if all
        are kept."""
        doubts = []
        if self._max_sigma > 0 and variance is not None:
            doubts.append(~(self._resize(variance) <= self._max_sigma**2))
        if self._min_confidence > 0:
            doubts.append(outputs["confidence"] < round(255 * self._min_confidence))
        if not doubts:
            return None
        doubted = doubts[0] if len(doubts) == 1 else doubts[0] | doubts[1]
        return doubted & (outputs["depth"] > 0)

    def _points(
        self, pixels: Pixels, outputs: dict[str, Tensor], uncertain: Tensor | None
    ) -> Tensor:
        """(B, h, w, 5) from the full outputs, in the colours of the pixels."""
        camera = self.kind.camera
        assert camera is not None
        if isinstance(pixels, Tensor):
            pictures = rgb(pixels, self.kind.encoding)
        else:
            made = np.stack([to_rgb(one, self.kind.encoding) for one in pixels])
            pictures = torch.from_numpy(made)
        size = tuple(outputs["depth"].shape[1:])
        if pictures.shape[1:3] != size:
            small = F.interpolate(pictures.permute(0, 3, 1, 2).float(), size, mode="area")
            pictures = small.permute(0, 2, 3, 1).to(torch.uint8)
        clouds = []
        for k, depth in enumerate(outputs["depth"]):
            if self._max_incidence < 90:
                depth = remove_flying_pixels(depth, camera, self._max_incidence)
            if uncertain is not None:
                depth = torch.where(uncertain[k], torch.nan, depth)
            labels = outputs["labels"][k] if "labels" in outputs else None
            clouds.append(points(depth, pictures[k], labels, camera, self._stride, self._far))
        return clouds[0][None] if len(clouds) == 1 else torch.stack(clouds)


def is_refined(networks: Networks, settings: Settings) -> bool:
    """Whether depth is to be scaled or smoothed."""
    if networks.depth is None:
        return False
    return settings.smoothing_strength > 0 or settings.scale_source != "none"


def depth_limit(networks: Networks, settings: Settings) -> float:
    """Metres beyond which depth is published as +Inf; inf for no limit."""
    return min(settings.max_range or float("inf"), networks.farthest)
