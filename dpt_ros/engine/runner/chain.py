# SPDX-License-Identifier: Apache-2.0
"""From a camera's pixels to finished outputs: the steps of a frame, and the order of the steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.kernels import classify_upsampled
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput, rgb
from dpt_ros.engine.input.encodings import picture_size
from dpt_ros.engine.input.preprocess import network_input, to_rgb
from dpt_ros.engine.output.flying_pixels import remove_flying_pixels
from dpt_ros.engine.output.label_groups import of_logits
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.engine.output.postprocess import resize_depth
from dpt_ros.engine.runner.refinement import Refiner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.scale.inverse_depth import limit_depth
from dpt_ros.engine.settings import Settings

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

    def blank(self, source: str, stamp_ns: int) -> Frame:
        """A black frame of this kind from a stationary camera."""
        height, width = picture_size(self.shape, self.encoding)
        guess = CameraModel(width, height, width, width, (width - 1) / 2, (height - 1) / 2)
        return Frame(
            np.zeros(self.shape, self.dtype),
            self.encoding,
            stamp_ns,
            source=source,
            camera=self.camera or guess,
            odom_from_camera=np.eye(4),
        )


class Steps(Protocol):
    """The steps of a frame that run on the device: a ``Chain``, or its CUDA graphs."""

    refined: bool

    def preprocess(self, pixels: Pixels) -> list[Tensor]: ...

    def infer(self, images: list[Tensor]) -> dict[str, Tensor]: ...

    def finish(
        self, maps: dict[str, Tensor], pixels: Pixels, limit: Tensor | float
    ) -> dict[str, Tensor]: ...


@torch.inference_mode()
def process(
    chain: Steps,
    refiner: Refiner,
    frames: Sequence[Frame],
    pixels: Pixels,
    limit: Tensor | float,
    settings: Settings,
    seconds: dict[str, float],
) -> tuple[dict[str, Tensor], list[Prediction]]:
    """Process a batch of frames, one per camera: the whole algorithm, one call per step.

    ``Refiner.start_flow`` has been called: optical flow runs on threads beside the networks.

    Args:
        chain: made for the frames' kind.
        refiner: keeps the state of the cameras from frame to frame.
        frames: B of one kind.
        pixels: of the frames: B arrays, or on a GPU (B, *kind.shape), uint16 viewed as int16.
        limit: metres beyond which depth is +Inf; a tensor can be changed between graph replays.
        settings: the live ones.
        seconds: receives the time spent per step.

    Returns:
        the outputs of ``Chain.finish``, and a prediction per frame that has no arrays yet.
    """
    with _timed(seconds, "preprocess"):
        images = chain.preprocess(pixels)
    with _timed(seconds, "network"):
        maps = chain.infer(images)
    if not chain.refined:
        predictions = refiner.unrefined(frames)
    else:
        with _timed(seconds, "refine"):
            flows = refiner.flow(frames, settings)
            scales = refiner.scale(frames, maps)
            predictions = refiner.smooth(frames, maps, flows, scales, settings)
    with _timed(seconds, "postprocess"):
        outputs = chain.finish(maps, pixels, limit)
    return outputs, predictions


class Chain:
    """The device's steps for frames of one kind: preprocess, infer, finish.

    On a GPU no step waits for the device, reads a value, or copies to or from the host, so that
    all can be captured in CUDA graphs. On a CPU, OpenCV resizes.

    Args:
        networks: from ``load_networks``.
        kind: of the frames.
        refined: whether ``Refiner.smooth`` runs between ``infer`` and ``finish``.
        settings: sizes of the network's input and of the outputs; live settings are ignored.
        streams: the lanes of a GPU, on which the label network runs beside the depth network;
            ``HostStreams`` run the GPU's steps on a CPU. None for the CPU's own steps.

    Raises:
        ValueError: the networks compute none of the requested outputs.
    """

    def __init__(
        self,
        networks: Networks,
        kind: Kind,
        refined: bool,
        settings: Settings,
        streams: Streams | None = None,
    ) -> None:
        self.kind, self.refined = kind, refined
        self._streams = streams
        self._size = picture_size(kind.shape, kind.encoding)
        outputs = kind.outputs
        self._gives_depth = networks.depth is not None and outputs.any_depth
        wants_labels = outputs.labels or outputs.confidence or outputs.points
        self._gives_labels = networks.labels is not None and wants_labels
        if not self._gives_depth and not self._gives_labels:
            raise ValueError("The networks compute none of the requested outputs.")
        # The temporal filter needs depth to know which pixels show the same place.
        self._depth = networks.depth if self._gives_depth or refined else None
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
        self._stride = settings.points_stride
        self._far = settings.points_far
        self._max_incidence = settings.points_max_incidence
        self._full_size = settings.output_size == "input"

    def _device_input(self, network: Network) -> DeviceInput:
        spec, kind = network.spec, self.kind
        size = self._sizes[id(network)]
        return DeviceInput(
            kind.encoding, kind.shape, size, spec.mean, spec.std, network.device,
            network.input_dtype,
        )  # fmt: skip

    @torch.inference_mode()
    def preprocess(self, pixels: Pixels) -> list[Tensor]:
        """Convert, resize and normalise.

        Args:
            pixels: see ``process``.

        Returns:
            per network (B, 3, h, w) in its ``input_dtype``.
        """
        if isinstance(pixels, Tensor):
            return [prepare(pixels) for prepare in self._device_inputs]
        pictures = [to_rgb(one, self.kind.encoding) for one in pixels]
        images = []
        for network in self._networks:
            size, spec = self._sizes[id(network)], network.spec
            parts = [
                network_input(one, size, spec.mean, spec.std, exact=False) for one in pictures
            ]
            images.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return images

    @torch.inference_mode()
    def infer(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Run the networks.

        Args:
            images: from ``preprocess``.

        Returns:
            by name, those that are needed: "inverse_depth" (B, h, w) float32, 1/m from a metric
            network, else relative; "logits" (B, C, h / 2, w / 2); and for ``Refiner.smooth`` to
            fill in, "variance" (B, h, w) float32 and "reset_code" (B,) uint8.
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
        if self.refined:
            depth = maps["inverse_depth"]
            maps["variance"] = torch.empty_like(depth)
            maps["reset_code"] = depth.new_empty(len(depth), dtype=torch.uint8)
        return maps

    @torch.inference_mode()
    def finish(
        self, maps: dict[str, Tensor], pixels: Pixels, limit: Tensor | float
    ) -> dict[str, Tensor]:
        """Resize, invert and limit the depth; classify; make points.

        Args:
            maps: from ``infer``, refined or not.
            pixels, limit: see ``process``.

        Returns:
            those requested and possible: "depth" and "deviation" (B, H, W) float32, metres;
            "inverse" (B, H, W) float32, 1/m or relative; "labels" and "confidence" (B, H, W)
            uint8; "points" (B, H, W, 5) as ``point_cloud.points`` returns them; "reset_code" as
            in ``maps``.
        """
        wanted = self.kind.outputs
        outputs: dict[str, Tensor] = {}
        if self._gives_depth:
            outputs |= self._finish_depth(maps["inverse_depth"], maps.get("variance"), limit)
        if self._gives_labels:
            outputs |= self._finish_labels(maps["logits"])
        if wanted.points:
            outputs["points"] = self._points(pixels, outputs)
        for name in ("labels", "confidence"):
            if name in outputs and self._stride > 1:
                strided = outputs[name][:, :: self._stride, :: self._stride]
                outputs[name] = strided.contiguous()
        named = {"depth": wanted.depth, "labels": wanted.labels}
        outputs = {name: value for name, value in outputs.items() if named.get(name, True)}
        return outputs | ({"reset_code": maps["reset_code"]} if self.refined else {})

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
        labels, confidence = classify_upsampled(logits, own, target, self.kind.outputs.confidence)
        return {"labels": labels} | ({} if confidence is None else {"confidence": confidence})

    def _points(self, pixels: Pixels, outputs: dict[str, Tensor]) -> Tensor:
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
            labels = outputs["labels"][k] if "labels" in outputs else None
            clouds.append(points(depth, pictures[k], labels, camera, self._stride, self._far))
        return clouds[0][None] if len(clouds) == 1 else torch.stack(clouds)


def depth_limit(networks: Networks, settings: Settings) -> float:
    """Metres beyond which depth is published as +Inf; inf for no limit."""
    return min(settings.max_range or float("inf"), networks.farthest)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
