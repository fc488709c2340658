# SPDX-License-Identifier: Apache-2.0
"""The chain for one node's cameras: frames in, predictions out, in order, latest frame wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpt_ros.engine.frame import Frame, Outputs, Prediction
from dpt_ros.engine.network import Network, Networks
from dpt_ros.engine.postprocess import classify, resize_depth, resize_labels
from dpt_ros.engine.preprocess import network_input, to_rgb
from dpt_ros.engine.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# A metric network that answers within this share of its largest depth means "beyond".
_SATURATED = 0.98


class Pipeline:
    """Runs frames through the networks on a thread of its own.

    A frame never waits behind an older one of the same source: ``submit`` puts it in its source's
    single place, and the one that stood there is dropped with a reason. Sources take turns in the
    order in which their places were filled. Every frame submitted ends in exactly one call of
    ``on_prediction``, ``on_drop`` or ``on_error``, all of them on the pipeline's thread except
    drops, which come on the thread that caused them.

    Args:
        networks: from ``load_networks``.
        settings: live ones may be replaced at any time through the attribute ``settings``.
        on_prediction: takes each result, in the order of stamps as submitted.
        on_drop: takes a frame that will not be computed and the reason, a few words.
        on_error: takes a frame that failed and why; the pipeline goes on.
        now_ns: the clock that stamps are measured by, for ``max_age``; None drops nothing.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        on_prediction: Callable[[Prediction], None],
        on_drop: Callable[[Frame, str], None],
        on_error: Callable[[Frame, Exception], None],
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        self.settings = settings
        self._chain = Chain(networks)
        self._on_prediction = on_prediction
        self._on_drop = on_drop
        self._on_error = on_error
        self._now_ns = now_ns
        self._waiting: dict[str, tuple[Frame, Outputs]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="dpt_pipeline", daemon=True)
        self._thread.start()

    def submit(self, frame: Frame, outputs: Outputs) -> None:
        """Hand in a frame; never blocks. ``outputs`` says what of it somebody wants."""
        with self._changed:
            closed = self._closed
            replaced = None
            if not closed:
                # Assigning to a key that exists keeps its turn.
                replaced = self._waiting.get(frame.source)
                self._waiting[frame.source] = (frame, outputs)
                self._changed.notify()
        if closed:
            self._on_drop(frame, "closed")
        if replaced:
            self._on_drop(replaced[0], "replaced by a newer frame")

    def close(self, timeout: float = 1.0) -> None:
        """Drop what waits and end the thread.

        Args:
            timeout: how long to wait for the frame being computed, seconds. One that takes longer
                is dropped when it is done.
        """
        with self._changed:
            self._closed = True
            left = [frame for frame, _ in self._waiting.values()]
            self._waiting.clear()
            self._changed.notify()
        for frame in left:
            self._on_drop(frame, "closed")
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _work(self) -> None:
        while (item := self._next()) is not None:
            frame, outputs = item
            if self._too_old(frame):
                self._on_drop(frame, "older than max_age")
                continue
            try:
                prediction = self._chain.run(frame, outputs, self.settings)
                if self._closed:
                    self._on_drop(frame, "closed")
                else:
                    self._on_prediction(prediction)
            except Exception as error:  # one bad frame must never end the stream
                self._on_error(frame, error)

    def _next(self) -> tuple[Frame, Outputs] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            return self._waiting.pop(next(iter(self._waiting)))

    def _too_old(self, frame: Frame) -> bool:
        limit = self.settings.max_age
        if self._now_ns is None or not limit:
            return False
        return self._now_ns() - frame.stamp_ns > limit * 1e9


class Chain:
    """The steps of one frame, one after the other, on the caller's thread.

    Args:
        networks: from ``load_networks``.
    """

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def run(self, frame: Frame, outputs: Outputs, settings: Settings) -> Prediction:
        """Compute what is wanted of a frame.

        Raises:
            ValueError: the frame's pixels cannot be read as its encoding says.
        """
        nets = self._networks
        prediction = Prediction(frame)
        with _timed(prediction, "convert"):
            rgb = to_rgb(frame.pixels, frame.encoding)
        size = (rgb.shape[0], rgb.shape[1])
        wants_depth = (outputs.depth or outputs.inverse) and nets.depth is not None
        wants_labels = (outputs.labels or outputs.confidence) and nets.labels is not None

        results: dict[int, dict[str, torch.Tensor]] = {}
        for wanted, network in ((wants_depth, nets.depth), (wants_labels, nets.labels)):
            if wanted and network is not None and id(network) not in results:
                results[id(network)] = self._predict(network, rgb, settings, prediction)

        with _timed(prediction, "postprocess"):
            if wants_depth:
                depth = results[id(nets.depth)]["depth"]
                target = _target(depth, size, settings)
                depth = resize_depth(depth, target, exact=False)[0]
                self._finish_depth(prediction, depth, outputs, settings)
            if wants_labels:
                logits = results[id(nets.labels)]["labels"]
                target = _target(logits, size, settings)
                # Decided at the network's size: full-size logits would cost more than the network.
                own = (logits.shape[-2], logits.shape[-1])
                labels, confidence = classify(logits, own, outputs.confidence)
                prediction.labels = resize_labels(labels, target)[0].cpu().numpy()
                if confidence is not None:
                    prediction.confidence = resize_labels(confidence, target)[0].cpu().numpy()
        return prediction

    def _predict(
        self, network: Network, rgb: np.ndarray, settings: Settings, prediction: Prediction
    ) -> dict[str, torch.Tensor]:
        spec = network.spec
        with _timed(prediction, "preprocess"):
            size = network.input_size(rgb.shape[0], rgb.shape[1], settings)
            images = network_input(rgb, size, spec.mean, spec.std, network.device, exact=False)
        with _timed(prediction, "network"):
            return network(images)

    def _finish_depth(
        self, prediction: Prediction, depth: torch.Tensor, outputs: Outputs, settings: Settings
    ) -> None:
        frame = prediction.frame
        if frame.camera is not None:
            prediction.camera = frame.camera.scaled(depth.shape[1], depth.shape[0])
        if not self._networks.metric:
            prediction.inverse = depth.clamp(min=0).cpu().numpy()
            return
        limit = settings.max_range or float("inf")
        if self._networks.max_depth is not None:
            limit = min(limit, _SATURATED * self._networks.max_depth)
        # Bicubic upsampling can overshoot below zero at a depth edge: unknown, not negative.
        depth = torch.where(depth > 0, depth, torch.nan)
        depth = torch.where(depth > limit, torch.inf, depth)
        if outputs.depth:
            prediction.depth = depth.cpu().numpy()
        if outputs.inverse:
            prediction.inverse = depth.reciprocal().cpu().numpy()


def _target(maps: torch.Tensor, size: tuple[int, int], settings: Settings) -> tuple[int, int]:
    if settings.output_size == "input":
        return size
    return maps.shape[-2], maps.shape[-1]


@contextmanager
def _timed(prediction: Prediction, step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    spent = time.perf_counter() - start
    prediction.seconds[step] = prediction.seconds.get(step, 0.0) + spent
