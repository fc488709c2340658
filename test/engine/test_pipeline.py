# SPDX-License-Identifier: Apache-2.0
"""The scheduler, on a device that only keeps the order of what happens."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from dpt_ros.engine.faults import DeviceLostError
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.pipeline import Pipeline
from dpt_ros.engine.settings import Settings

PIXELS = np.zeros((4, 6, 3), np.uint8)


def frame(number: int, source: str = "", **changes: object) -> Frame:
    return replace(Frame(PIXELS, "rgb8", stamp_ns=number, source=source), **changes)


@dataclass
class Device:
    """Takes frames and has them ready when the test says so; notes what happens, in order."""

    in_flight: int = 3
    max_batch: int = 1
    patient: bool = True
    events: list[tuple[str, int]] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    ready: set[int] = field(default_factory=set)
    fails_at: dict[int, str] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def warm_up(self, known, settings) -> None:
        pass

    def start(self, frames, outputs, settings) -> "Ticket":
        stamp = frames[0].stamp_ns
        self.batches.append([f.stamp_ns for f in frames])
        self.note("begin", stamp)
        if self.fails_at.get(stamp) == "start":
            raise ValueError(f"frame {stamp} cannot be read")
        return Ticket(self, list(frames))

    def note(self, what: str, stamp: int) -> None:
        with self._changed:
            self.events.append((what, stamp))
            self._changed.notify_all()

    def until(self, what: str, stamp: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (what, stamp) in self.events, 10), self.events

    def finish(self, *stamps: int) -> None:
        with self._changed:
            self.ready.update(stamps)
            self._changed.notify_all()

    def wait(self, stamp: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: stamp in self.ready, 10)


@dataclass
class Ticket:
    device: Device
    frames: list[Frame]

    def wait(self) -> list[Prediction]:
        stamp = self.frames[0].stamp_ns
        if self.device.patient:
            self.device.wait(stamp)
        if self.device.fails_at.get(stamp) == "wait":
            raise RuntimeError(f"frame {stamp} failed on the device")
        return [Prediction(frame) for frame in self.frames]

    def release(self) -> None:
        self.device.note("release", self.frames[0].stamp_ns)


@dataclass
class Log:
    """The receiver of a pipeline's frames, of all sources: what came, in order."""

    device: Device
    predictions: list[int] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    on_prediction: Callable[[Prediction], None] = lambda prediction: None

    def pipeline(self, settings: Settings | None = None, **options: object) -> Pipeline:
        return Pipeline(
            None,
            settings or Settings(),
            defaultdict(lambda: self),
            runner=self.device,
            **options,
        )

    def drop(self, reason: str) -> None:
        self.drops.append(reason)

    def fail(self, error: Exception) -> None:
        self.errors.append(str(error))

    def publish(self, prediction: Prediction) -> None:
        self.device.note("publish", prediction.frame.stamp_ns)
        self.on_prediction(prediction)
        self.predictions.append(prediction.frame.stamp_ns)

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.predictions) + len(self.drops) + len(self.errors) < count:
            assert time.monotonic() < deadline, "the pipeline did not account for every frame"
            time.sleep(0.001)


def test_a_frame_is_begun_while_those_before_it_are_still_on_the_device():
    device = Device()
    log = Log(device)
    pipeline = log.pipeline()
    for number in (1, 2, 3):
        pipeline.submit(frame(number), OutputRequest())
        device.until("begin", number)
    assert log.predictions == []
    device.finish(1, 2, 3)
    log.wait(3)
    pipeline.close()
    assert device.events[:3] == [("begin", 1), ("begin", 2), ("begin", 3)]
    assert log.predictions == [1, 2, 3]


def test_a_frame_is_computed_while_the_one_before_it_is_published():
    device = Device(in_flight=2)
    log = Log(device)
    log.on_prediction = lambda p: device.until("begin", 2) if p.frame.stamp_ns == 1 else None
    pipeline = log.pipeline()
    pipeline.submit(frame(1), OutputRequest())
    device.finish(1, 2)
    device.until("publish", 1)
    pipeline.submit(frame(2), OutputRequest())
    log.wait(2)
    pipeline.close()
    assert log.predictions == [1, 2]


def test_results_come_in_the_order_of_frames_even_if_a_later_one_is_ready_first():
    device = Device()
    log = Log(device)
    pipeline = log.pipeline()
    for number in (1, 2, 3):
        pipeline.submit(frame(number), OutputRequest())
        device.until("begin", number)
    device.finish(3, 2)
    time.sleep(0.02)
    assert log.predictions == []
    device.finish(1)
    log.wait(3)
    pipeline.close()
    assert log.predictions == [1, 2, 3]


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_no_more_frames_are_begun_than_the_device_has_room_for(in_flight):
    device = Device(in_flight=in_flight)
    log = Log(device)
    pipeline = log.pipeline()
    for number in range(1, in_flight + 1):
        pipeline.submit(frame(number), OutputRequest())
        device.until("begin", number)
    pipeline.submit(frame(10), OutputRequest())
    time.sleep(0.02)
    assert len(device.batches) == in_flight
    device.finish(1)
    device.until("begin", 10)
    assert device.events.index(("release", 1)) < device.events.index(("begin", 10))
    device.finish(*range(2, 11))
    pipeline.close()


def test_a_frame_never_waits_behind_an_older_one():
    device = Device(in_flight=1)
    log = Log(device)
    pipeline = log.pipeline()
    pipeline.submit(frame(1), OutputRequest())
    device.until("begin", 1)
    for number in range(2, 7):
        pipeline.submit(frame(number), OutputRequest())
    device.finish(1, 6)
    log.wait(6)
    pipeline.close()
    assert log.predictions == [1, 6]
    assert log.drops == ["replaced by a newer frame"] * 4


def test_cameras_take_turns_and_do_not_replace_each_other():
    device = Device(in_flight=1, patient=False)
    log = Log(device)
    gate = threading.Event()
    log.on_prediction = lambda prediction: gate.wait(10)
    pipeline = log.pipeline()
    pipeline.submit(frame(1, "front"), OutputRequest())
    device.until("publish", 1)
    pipeline.submit(frame(2, "rear"), OutputRequest())
    pipeline.submit(frame(3, "front"), OutputRequest())
    pipeline.submit(frame(4, "rear"), OutputRequest())
    gate.set()
    log.wait(4)
    pipeline.close()
    assert log.predictions == [1, 4, 3]


def waiting_together(device: Device, *frames: Frame, **options: object) -> Log:
    """Hand in frames while the device is full, so that they all wait when it has room again."""
    log = Log(device)
    pipeline = log.pipeline(**options)
    pipeline.submit(frame(1, "first"), OutputRequest())
    device.until("begin", 1)
    for one in frames:
        pipeline.submit(one, OutputRequest())
    device.finish(1, *(one.stamp_ns for one in frames))
    log.wait(1 + len(frames))
    pipeline.close()
    return log


def test_frames_of_several_cameras_that_wait_together_go_together():
    device = Device(in_flight=1, max_batch=2)
    log = waiting_together(device, *(frame(n, f"camera{n}") for n in (2, 3, 4)))
    assert device.batches == [[1], [2, 3], [4]]
    assert log.predictions == [1, 2, 3, 4]


def test_frames_of_another_size_or_encoding_or_still_compressed_go_on_their_own():
    device = Device(in_flight=1, max_batch=8)
    waiting_together(
        device,
        frame(2, "a"),
        frame(3, "b", pixels=np.zeros((8, 6, 3), np.uint8)),
        frame(4, "c", encoding="bgr8"),
        frame(5, "d", decode=lambda: (PIXELS, "rgb8")),
        frame(6, "e"),
    )
    assert device.batches == [[1], [2, 6], [3], [4], [5]]


def test_a_frame_too_old_does_not_go_along():
    device = Device(in_flight=1, max_batch=8)
    old = frame(200_000_000, "old")
    log = waiting_together(
        device,
        frame(900_000_000, "young"),
        old,
        settings=Settings(max_age=0.5),
        now_ns=lambda: 1_000_000_000 if device.batches else 0,
    )
    assert device.batches == [[1], [900_000_000]]
    assert log.drops == ["older than max_age"]


def test_a_compressed_frame_is_decoded_on_the_way_to_the_device():
    device = Device(patient=False)
    decoded_on = []

    def decode() -> tuple[np.ndarray, str]:
        decoded_on.append(threading.current_thread())
        return PIXELS, "bgr8"

    log = Log(device)
    seen = []
    log.on_prediction = lambda prediction: seen.append(prediction.frame.encoding)
    pipeline = log.pipeline()
    pipeline.submit(frame(1, encoding="jpeg", decode=decode), OutputRequest())
    log.wait(1)
    pipeline.close()
    assert seen == ["bgr8"]
    assert decoded_on != [threading.current_thread()]


@pytest.mark.parametrize("where", ["start", "wait"])
def test_a_frame_that_fails_is_reported_and_the_next_one_goes_on(where):
    device = Device(patient=False, fails_at={1: where})
    log = Log(device)
    pipeline = log.pipeline()
    pipeline.submit(frame(1), OutputRequest())
    log.wait(1)
    for number in range(2, 8):  # more than the device has room for: nothing of 1 is left on it
        pipeline.submit(frame(number), OutputRequest())
        log.wait(number)
    pipeline.close()
    assert len(log.errors) == 1
    assert "frame 1" in log.errors[0]
    assert log.predictions == [2, 3, 4, 5, 6, 7]


def test_a_lost_device_fails_its_frame_and_is_told_of():
    device = Device()
    log = Log(device)
    pipeline = log.pipeline()
    assert not pipeline.lost

    def lose(frames, outputs, settings) -> None:
        raise DeviceLostError("cuda:0 is lost")

    device.start = lose
    pipeline.submit(frame(1), OutputRequest())
    log.wait(1)
    pipeline.close()
    assert log.errors == [pipeline.lost] == ["cuda:0 is lost"]


def test_a_consumer_that_fails_does_not_stop_the_stream():
    device = Device(patient=False)
    log = Log(device)

    def refuse(prediction: Prediction) -> None:
        if prediction.frame.stamp_ns == 1:
            raise OSError("nobody listens")

    log.on_prediction = refuse
    pipeline = log.pipeline()
    for number in (1, 2):
        pipeline.submit(frame(number), OutputRequest())
        log.wait(number)
    pipeline.close()
    assert log.errors == ["nobody listens"]
    assert log.predictions == [2]


def test_a_frame_older_than_max_age_is_dropped_with_the_reason():
    log = Log(Device(patient=False))
    pipeline = log.pipeline(Settings(max_age=0.5), now_ns=lambda: 1_000_000_000)
    pipeline.submit(frame(400_000_000), OutputRequest())
    log.wait(1)
    pipeline.submit(frame(600_000_000), OutputRequest())
    log.wait(2)
    pipeline.close()
    assert log.drops == ["older than max_age"]
    assert log.predictions == [600_000_000]


def test_closing_accounts_for_every_frame_and_later_ones_are_dropped():
    device = Device(in_flight=1)
    log = Log(device)
    pipeline = log.pipeline()
    pipeline.submit(frame(1), OutputRequest())
    device.until("begin", 1)
    pipeline.submit(frame(2), OutputRequest())
    threading.Timer(0.05, device.finish, [1]).start()
    pipeline.close()
    pipeline.submit(frame(3), OutputRequest())
    log.wait(3)
    assert log.drops == ["closed"] * 3
    assert log.predictions == []
