# SPDX-License-Identifier: Apache-2.0
"""From a camera's pixels to finished outputs: tensors in, tensors out, all on one device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.device_preprocess import DeviceInput
from dpt_ros.engine.frame import Frame, Outputs
from dpt_ros.engine.kernels import classify_upsampled
from dpt_ros.engine.network import Network, Networks
from dpt_ros.engine.postprocess import resize_depth
from dpt_ros.engine.preprocess import network_input, picture_size, to_rgb
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.streams import Streams

# A metric network that answers within this share of its largest depth means "beyond".
_SATURATED = 0.98


@dataclass(frozen=True)
class Kind:
    """What frames have in common that go through one chain, side by side or one after another.

    Args:
        encoding: of the pixels.
        shape: of ``Frame.pixels``.
        dtype: of ``Frame.pixels``: "uint8", "uint16" or "float32".
        outputs: what is wanted.
    """

    encoding: str
    shape: tuple[int, ...]
    dtype: str
    outputs: Outputs

    @classmethod
    def of(cls, frame: Frame, outputs: Outputs) -> Kind:
        """The kind of a decoded frame."""
        return cls(frame.encoding, frame.pixels.shape, frame.pixels.dtype.name, outputs)


class Chain:
    """The steps of frames of one kind: convert, resize, normalise, predict, finish.

    On a GPU nothing in a call waits for the device, looks at a value, or copies to or from the
    host, so that a call can be captured in a CUDA graph. On a CPU, OpenCV does the resizing.

    Args:
        networks: from ``load_networks``.
        kind: of the frames.
        settings: sizes of the network's input and of the outputs; live settings are ignored.
        streams: the lanes of a GPU, on which the label network runs beside the depth network;
            with a CPU's, the steps of a GPU are taken on the CPU. None takes those of the CPU.
    """

    def __init__(
        self,
        networks: Networks,
        kind: Kind,
        settings: Settings,
        streams: Streams | None = None,
    ) -> None:
        self.kind = kind
        self._networks = networks
        self._streams = streams
        self._size = picture_size(kind.shape, kind.encoding)
        outputs = kind.outputs
        self._wants_depth = (outputs.depth or outputs.inverse) and networks.depth is not None
        self._wants_labels = (outputs.labels or outputs.confidence) and networks.labels is not None
        if not self._wants_depth and not self._wants_labels:
            raise ValueError("Nothing is wanted of the frame that these networks can say.")
        self._inputs: dict[int, _Input] = {}
        for network in self._wanted():
            size = network.input_size(*self._size, settings)
            self._inputs[id(network)] = _Input(network, kind, size, streams is not None)
        self._full_size = settings.output_size == "input"

    def _wanted(self) -> list[Network]:
        """The networks to run, labels first; one alone if it does both."""
        networks = [self._networks.labels] if self._wants_labels else []
        if self._wants_depth and self._networks.depth not in networks:
            networks.append(self._networks.depth)
        return [network for network in networks if network is not None]

    @torch.inference_mode()
    def __call__(
        self,
        pixels: Tensor | Sequence[np.ndarray],
        limit: Tensor | float,
        seconds: dict[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """Compute what is wanted of a batch.

        Args:
            pixels: those of B frames: on a GPU (B, *kind.shape), with uint16 seen as int16.
            limit: metres beyond which depth is +Inf (REP 117); a tensor can be changed between
                replays of a graph.
            seconds: takes the time spent per step, where the device is the host.

        Returns:
            "depth" (B, H, W) float32, metres; "inverse" (B, H, W) float32, 1/m or relative;
            "labels" and "confidence" (B, H, W) uint8; those that are wanted and possible.
        """
        results: dict[int, dict[str, Tensor]] = {}
        *beside, last = self._wanted()
        for network in beside:
            with self._streams.branch() if self._streams else nullcontext():
                results[id(network)] = self._predict(network, pixels, seconds)
        results[id(last)] = self._predict(last, pixels, seconds)
        if beside and self._streams:
            self._streams.join()
        with _timed(seconds, "postprocess"):
            outputs = {}
            if self._wants_depth:
                depth = results[id(self._networks.depth)]["depth"]
                outputs.update(self._finish_depth(depth, limit))
            if self._wants_labels:
                labeller = id(self._networks.labels)
                outputs.update(self._finish_labels(results[labeller]["labels"], labeller))
        return outputs

    def _predict(
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

    def _finish_depth(self, depth: Tensor, limit: Tensor | float) -> dict[str, Tensor]:
        if self._full_size:
            depth = resize_depth(depth, self._size, exact=False)
        if not self._networks.metric:
            return {"inverse": depth.clamp(min=0)}
        # Bicubic upsampling can overshoot below zero at a depth edge: unknown, not negative.
        depth = torch.where(depth > 0, depth, torch.nan)
        depth = torch.where(depth > limit, torch.inf, depth)
        outputs = {"depth": depth} if self.kind.outputs.depth else {}
        if self.kind.outputs.inverse:
            outputs["inverse"] = depth.reciprocal()
        return outputs

    def _finish_labels(self, logits: Tensor, network: int) -> dict[str, Tensor]:
        # Decided at the network's size: full-size logits would cost more than the network.
        own = self._inputs[network].size
        target = self._size if self._full_size else own
        labels, confidence = classify_upsampled(logits, own, target, self.kind.outputs.confidence)
        outputs = {"labels": labels} if self.kind.outputs.labels else {}
        if confidence is not None:
            outputs["confidence"] = confidence
        return outputs


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
                rgb = to_rgb(one, self._encoding)
            with _timed(seconds, "preprocess"):
                mean, std = self._spec.mean, self._spec.std
                images.append(network_input(rgb, self.size, mean, std, exact=False))
        return images[0] if len(images) == 1 else torch.cat(images)


def depth_limit(networks: Networks, settings: Settings) -> float:
    """Metres beyond which depth is published as +Inf; inf for no limit."""
    limit = settings.max_range or float("inf")
    if networks.max_depth is not None:
        limit = min(limit, _SATURATED * networks.max_depth)
    return limit


@contextmanager
def _timed(seconds: dict[str, float] | None, step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if seconds is not None:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
