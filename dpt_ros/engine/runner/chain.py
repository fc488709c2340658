# SPDX-License-Identifier: Apache-2.0
"""From a camera's pixels to finished outputs: tensors in, tensors out, all on one device."""

from __future__ import annotations

import time
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
from dpt_ros.engine.settings import Settings


@dataclass(frozen=True)
class Kind:
    """What frames have in common that go through one chain, side by side or one after another.

    Args:
        encoding: of the pixels.
        shape: of ``Frame.pixels``.
        dtype: of ``Frame.pixels``: "uint8", "uint16" or "float32".
        outputs: what is wanted.
        camera: intrinsics, when points are wanted.
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
        """A black frame of this kind, from a camera that stands still."""
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


class Chain:
    """The steps of frames of one kind: convert, resize, normalise, predict; then finish.

    On a GPU nothing in either half waits for the device, looks at a value, or copies to or from
    the host, so that both can be captured in CUDA graphs. On a CPU, OpenCV does the resizing.

    Args:
        networks: from ``load_networks``.
        kind: of the frames.
        refined: whether a ``Refiner`` works between the two halves.
        settings: sizes of the network's input and of the outputs; live settings are ignored.
        streams: the lanes of a GPU, on which the label network runs beside the depth network;
            with a CPU's, the steps of a GPU are taken on the CPU. None takes those of the CPU.
    """

    def __init__(
        self,
        networks: Networks,
        kind: Kind,
        refined: bool,
        settings: Settings,
        streams: Streams | None = None,
    ) -> None:
        self.kind = kind
        self.refined = refined
        self._networks = networks
        self._streams = streams
        self._size = picture_size(kind.shape, kind.encoding)
        outputs = kind.outputs
        has_depth = networks.depth is not None
        self._gives_depth = has_depth and outputs.any_depth
        # The temporal filter needs the depth to know where labels belong.
        self._wants_depth = has_depth and (self._gives_depth or refined)
        wants_labels = outputs.labels or outputs.confidence or outputs.points
        self._wants_labels = wants_labels and networks.labels is not None
        if not self._gives_depth and not self._wants_labels:
            raise ValueError("Nothing is wanted of the frame that these networks can say.")
        self._inputs: dict[int, _Input] = {}
        for network in self._wanted():
            size = network.input_size(*self._size, settings)
            self._inputs[id(network)] = _Input(network, kind, size, streams is not None)
        self._stride = settings.points_stride
        self._far = settings.points_far
        self._max_incidence = settings.points_max_incidence
        self._full_size = settings.output_size == "input"

    def _wanted(self) -> list[Network]:
        """The networks to run, labels first; one alone if it does both."""
        networks = [self._networks.labels] if self._wants_labels else []
        if self._wants_depth and self._networks.depth not in networks:
            networks.append(self._networks.depth)
        return [network for network in networks if network is not None]

    @torch.inference_mode()
    def predict(
        self, pixels: Tensor | Sequence[np.ndarray], seconds: dict[str, float] | None = None
    ) -> dict[str, Tensor]:
        """The first half: what the networks say.

        Args:
            pixels: those of B frames: on a GPU (B, *kind.shape), with uint16 seen as int16.
            seconds: takes the time spent per step, where the device is the host.

        Returns:
            "depth" (B, h, w) float32, metres or relative inverse depth, at the network's size;
            "labels" (B, C, h / 2, w / 2), logits; those that are needed and there.
        """
        results: dict[int, dict[str, Tensor]] = {}
        *beside, last = self._wanted()
        with self._beside() as branch:
            for network in beside:
                with branch():
                    results[id(network)] = self._run(network, pixels, seconds)
            results[id(last)] = self._run(last, pixels, seconds)
        said = {}
        if self._wants_depth:
            said["depth"] = results[id(self._networks.depth)]["depth"]
        if self._wants_labels:
            said["labels"] = results[id(self._networks.labels)]["labels"]
            if self._networks.groups is not None:
                said["labels"] = of_logits(said["labels"], self._networks.groups)
        return said

    @torch.inference_mode()
    def finish(
        self,
        said: dict[str, Tensor],
        pixels: Tensor | Sequence[np.ndarray],
        limit: Tensor | float,
        seconds: dict[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """The second half: outputs of the size that was asked for.

        Args:
            said: what ``predict`` returned, refined or not; "variance" (B, h, w) beside it.
            pixels: as for ``predict``; for the colours of points.
            limit: metres beyond which depth is +Inf (REP 117); a tensor can be changed between
                replays of a graph.
            seconds: as above.

        Returns:
            "depth" and "deviation" (B, H, W) float32, metres; "inverse" (B, H, W) float32, 1/m or
            relative; "labels" and "confidence" (B, H, W) uint8; "points" (B, H, W, 5) as
            ``cloud.points`` gives them; those wanted and possible.
        """
        wanted = self.kind.outputs
        outputs: dict[str, Tensor] = {}
        with _timed(seconds, "postprocess"):
            if self._gives_depth:
                outputs |= self._finish_depth(said["depth"], said.get("variance"), limit)
            if self._wants_labels:
                outputs |= self._finish_labels(said["labels"])
            if wanted.points:
                outputs["points"] = self._points(pixels, outputs)
        stride = self._stride
        for name in ("labels", "confidence"):
            if name in outputs and stride > 1:
                outputs[name] = outputs[name][:, ::stride, ::stride].contiguous()
        named = {"depth": wanted.depth, "labels": wanted.labels}
        return {name: value for name, value in outputs.items() if named.get(name, True)}

    def __call__(
        self, pixels: Tensor | Sequence[np.ndarray], limit: Tensor | float
    ) -> dict[str, Tensor]:
        """Both halves, one after the other."""
        return self.finish(self.predict(pixels), pixels, limit)

    @contextmanager
    def _beside(self) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
        """Work given in contexts of what this yields runs beside the rest, until it ends."""
        if self._streams is None:
            yield nullcontext
            return
        try:
            yield self._streams.branch
        finally:
            # Also after an error: a capture with a branch that was not joined ends as another.
            self._streams.join()

    def _run(
        self,
        network: Network,
        pixels: Tensor | Sequence[np.ndarray],
        seconds: dict[str, float] | None,
    ) -> dict[str, Tensor]:
        images = self._inputs[id(network)](pixels, seconds)
        with _timed(seconds, "network"):
            return network(
                images,
                depth=self._wants_depth and network is self._networks.depth,
                labels=self._wants_labels and network is self._networks.labels,
            )

    def _finish_depth(
        self, depth: Tensor, variance: Tensor | None, limit: Tensor | float
    ) -> dict[str, Tensor]:
        if self._full_size:
            depth = resize_depth(depth, self._size, exact=False)
        wanted = self.kind.outputs
        outputs = {}
        if not self._networks.metric:
            inverse = depth.clamp(min=0)
            outputs = {"inverse": inverse} if wanted.inverse else {}
            depth = inverse.reciprocal()
        # Bicubic upsampling can overshoot below zero at a depth edge: unknown, not negative.
        depth = torch.where(depth > 0, depth, torch.nan)
        depth = torch.where(depth > limit, torch.inf, depth)
        if wanted.depth or wanted.points:
            outputs["depth"] = depth
        if wanted.inverse and self._networks.metric:
            outputs["inverse"] = depth.reciprocal()
        if wanted.deviation and variance is not None:
            if self._full_size:
                variance = resize_depth(variance, self._size, exact=False)
            # First order: what is relative to the inverse depth is relative to the depth.
            outputs["deviation"] = depth * variance.clamp(min=0).sqrt()
        return outputs

    def _finish_labels(self, logits: Tensor) -> dict[str, Tensor]:
        # Decided at the network's size: full-size logits would cost more than the network.
        own = self._inputs[id(self._networks.labels)].size
        target = self._size if self._full_size else own
        labels, confidence = classify_upsampled(logits, own, target, self.kind.outputs.confidence)
        return {"labels": labels} | ({} if confidence is None else {"confidence": confidence})

    def _points(self, pixels: Tensor | Sequence[np.ndarray], outputs: dict[str, Tensor]) -> Tensor:
        assert self.kind.camera is not None
        if isinstance(pixels, Tensor):
            pictures = rgb(pixels, self.kind.encoding)
        else:
            made = np.stack([to_rgb(one, self.kind.encoding) for one in pixels])
            pictures = torch.from_numpy(made)
        depth, camera = outputs["depth"], self.kind.camera
        if self._max_incidence < 90:
            depth = torch.stack(
                [remove_flying_pixels(one, camera, self._max_incidence) for one in depth]
            )
        if pictures.shape[1:3] != depth.shape[1:]:
            size = (depth.shape[1], depth.shape[2])
            small = F.interpolate(pictures.permute(0, 3, 1, 2).float(), size, mode="area")
            pictures = small.permute(0, 2, 3, 1).to(torch.uint8)
        labels = outputs.get("labels")
        return torch.stack(
            [
                points(
                    depth[k],
                    pictures[k],
                    None if labels is None else labels[k],
                    camera,
                    self._stride,
                    self._far,
                )
                for k in range(len(depth))
            ]
        )


class _Input:
    """Pixels to one network's input."""

    def __init__(
        self, network: Network, kind: Kind, size: tuple[int, int], on_device: bool
    ) -> None:
        self.size = size
        self._spec = network.spec
        self._encoding = kind.encoding
        self._device_input = None
        if on_device:
            self._device_input = DeviceInput(
                kind.encoding,
                kind.shape,
                size,
                network.spec.mean,
                network.spec.std,
                network.device,
                network.input_dtype,
            )

    def __call__(
        self, pixels: Tensor | Sequence[np.ndarray], seconds: dict[str, float] | None
    ) -> Tensor:
        if self._device_input is not None:
            assert isinstance(pixels, Tensor)
            return self._device_input(pixels)
        images = []
        for one in pixels:
            assert isinstance(one, np.ndarray)
            with _timed(seconds, "convert"):
                picture = to_rgb(one, self._encoding)
            with _timed(seconds, "preprocess"):
                mean, std = self._spec.mean, self._spec.std
                images.append(network_input(picture, self.size, mean, std, exact=False))
        return images[0] if len(images) == 1 else torch.cat(images)


def depth_limit(networks: Networks, settings: Settings) -> float:
    """Metres beyond which depth is published as +Inf; inf for no limit."""
    return min(settings.max_range or float("inf"), networks.farthest)


@contextmanager
def _timed(seconds: dict[str, float] | None, step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if seconds is not None:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
