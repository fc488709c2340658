# SPDX-License-Identifier: Apache-2.0
"""The scheduler of the cameras' frames: in order, one waiting frame per camera, the newest."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from dpt_ros.engine.faults import DeviceLostError, first_line, without_locals
from dpt_ros.engine.frame import Frame, Kind, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner, Runner, Ticket
from dpt_ros.engine.runner.streams import CudaStreams
from dpt_ros.engine.settings import Settings


def make_runner(networks: Networks, settings: Settings, warn: Callable[[str], None]) -> Runner:
    """The runner for the networks' device.

    Args:
        networks: from ``load_networks``.
        settings: sizes and switches; live settings are passed to ``start``.
        warn: receives a message when an acceleration is turned off or memory runs out.
    """
    if networks.device.type == "cpu":
        return HostRunner(networks, settings)
    return StreamRunner(networks, settings, CudaStreams(networks.device), warn)


class Receiver(Protocol):
    """Takes what becomes of the frames of a source."""

    def publish(self, prediction: Prediction) -> None:
        """A result; its arrays are valid until this returns."""

    def drop(self, reason: str) -> None:
        """A frame is not computed, for a reason in a few words."""

    def fail(self, error: Exception) -> None:
        """A frame failed; the pipeline continues."""


class Pipeline:
    """Runs the frames of all cameras through a runner, on two threads.

    Each source has a queue of length one: a newer frame replaces the waiting one, which is
    dropped with a reason. One thread starts waiting frames on the device as soon as it has room,
    in the order in which their queues were filled; frames of one kind that wait at the same time
    form a batch. The other thread waits for results and delivers them.

    Every submitted frame ends in exactly one call of its receiver's ``publish``, ``drop`` or
    ``fail``. Predictions and errors are delivered on the second thread, in the order in which
    the frames were started; drops on the thread that caused them.

    Args:
        networks: from ``load_networks``.
        settings: live ones may be replaced at any time through the attribute ``settings``.
        receivers: of the frames, by their sources.
        on_warning: receives a message when an acceleration is turned off or memory runs out.
        now_ns: the clock of the stamps, for ``max_age``; None drops nothing.
        runner: by default that of ``make_runner``.
        known: kinds of frames to come, by source, from the attribute ``kinds`` of an earlier
            pipeline: a GPU is warmed up for them before the first frame.

    Attributes:
        kinds: the kind of the last frame started, by source.
        lost: what the device said when it was lost, "" while it is there.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        receivers: Mapping[str, Receiver],
        on_warning: Callable[[str], None] = lambda message: None,
        now_ns: Callable[[], int] | None = None,
        runner: Runner | None = None,
        known: Mapping[str, Kind] | None = None,
    ) -> None:
        self.settings = settings
        self.kinds: dict[str, Kind] = {}
        self.lost = ""
        self._known = dict(known or {})
        self._runner = runner or make_runner(networks, settings, on_warning)
        self._receivers = receivers
        self._on_warning = on_warning
        self._now_ns = now_ns
        self._waiting: dict[str, tuple[Frame, OutputRequest]] = {}
        self._room = self._runner.in_flight
        self._changed = threading.Condition()
        self._closed = False
        # Batches with their tickets, which raise the error of starting it; None at the end.
        self._begun: queue.SimpleQueue[tuple[list[Frame], Ticket] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._begin, "dpt_begin"), (self._finish, "dpt_finish"))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, frame: Frame, outputs: OutputRequest) -> None:
        """Queue a frame and the outputs to compute of it; never blocks."""
        with self._changed:
            closed = self._closed
            replaced = None
            if not closed:
                # Assigning to a key that exists keeps its turn.
                replaced = self._waiting.get(frame.source)
                self._waiting[frame.source] = (frame, outputs)
                self._changed.notify_all()
        if closed:
            self._drop(frame, "closed")
        if replaced:
            self._drop(replaced[0], "replaced by a newer frame")

    def _drop(self, frame: Frame, reason: str) -> None:
        self._receivers[frame.source].drop(reason)

    def reset(self) -> None:
        """Forget the past of all cameras: the next frame is not filtered."""
        self._runner.reset()

    def close(self, timeout: float = 1.0) -> None:
        """Drop the waiting frames and end the threads.

        Args:
            timeout: seconds to wait for frames being computed; later ones are dropped when done.
        """
        with self._changed:
            self._closed = True
            left = [frame for frame, _ in self._waiting.values()]
            self._waiting.clear()
            self._changed.notify_all()
        for frame in left:
            self._drop(frame, "closed")
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))

    # The first thread

    def _begin(self) -> None:
        self._warm_up()
        while self._begin_next():
            pass
        self._begun.put(None)

    def _warm_up(self) -> None:
        try:
            self._runner.warm_up(self._known, self.settings, lambda: self._closed)
        except Exception as error:  # the first frame will fail in the same way, and be counted
            self._on_warning(f"The device could not be warmed up: {first_line(error)}")

    def _begin_next(self) -> bool:
        """Start the next frame, once the device has room for it; false at the end.

        A function of its own, so that its locals are freed before the next frame is waited for.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._room and self._waiting))
            if self._closed:
                return False
            frame, outputs = self._waiting.pop(next(iter(self._waiting)))
        if self._too_old(frame):
            self._drop(frame, "older than max_age")
            return True
        with self._changed:
            self._room -= 1
        batch = [frame]
        try:
            batch[0] = frame = frame.decoded()
            batch += self._companions(Kind.of(frame, outputs))
            self._begun.put((batch, self._runner.start(batch, outputs, self.settings)))
            self.kinds |= {one.source: Kind.of(one, outputs) for one in batch}
        except Exception as error:  # a bad frame must never end the stream
            self._begun.put((batch, _failed(without_locals(error))))
        return True

    def _companions(self, kind: Kind) -> list[Frame]:
        """Waiting frames of other sources that fit into the batch."""
        taken: list[Frame] = []
        if self._runner.max_batch > 1:
            with self._changed:
                for source, (frame, outputs) in list(self._waiting.items()):
                    fits = frame.decode is None and Kind.of(frame, outputs) == kind
                    if fits and len(taken) + 1 < self._runner.max_batch:
                        del self._waiting[source]
                        taken.append(frame)
        young = []
        for frame in taken:
            if self._too_old(frame):
                self._drop(frame, "older than max_age")
            else:
                young.append(frame)
        return young

    def _too_old(self, frame: Frame) -> bool:
        limit = self.settings.max_age
        if self._now_ns is None or not limit:
            return False
        return self._now_ns() - frame.stamp_ns > limit * 1e9

    # The second thread

    def _finish(self) -> None:
        while self._finish_next():
            pass

    def _finish_next(self) -> bool:
        job = self._begun.get()
        if job is None:
            return False
        frames, ticket = job
        try:
            predictions: list[Prediction] = []
            try:
                predictions = ticket.wait()
            except Exception as failure:  # the next frame may be a good one
                error = without_locals(failure)
                if isinstance(error, DeviceLostError):
                    self.lost = str(error)
                for frame in frames:
                    self._receivers[frame.source].fail(error)
            for prediction in predictions:
                if self._closed:
                    self._drop(prediction.frame, "closed")
                    continue
                receiver = self._receivers[prediction.frame.source]
                try:
                    receiver.publish(prediction)
                except Exception as failure:  # as above
                    receiver.fail(failure)
        finally:
            ticket.release()
            with self._changed:
                self._room += 1
                self._changed.notify_all()
        return True


def _failed(error: Exception) -> Ticket:
    def wait() -> list[Prediction]:
        raise error

    return Ticket(wait)
