# SPDX-License-Identifier: Apache-2.0
"""Frames of a moving picture through a runner: the first ones, latency, throughput."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpt_ros.apps.bench.report import Summary, summarize
from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.runner.host import Runner, Ticket
from dpt_ros.engine.settings import Settings

PERIOD_NS = 33_333_333
_FIRST = 6  # frames of a new kind: libraries choose, kernels are compiled, graphs are captured
_STEP, _STEPS = 3, 24  # pixels from picture to picture, and pictures until they turn back


def picture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 blocks of colour with a little noise, as cameras see edges."""
    coarse = random.integers(0, 255, (height // 32 + 1, width // 32 + 1, 3))
    fine = np.kron(coarse, np.ones((32, 32, 1)))[:height, :width]
    return np.clip(fine + random.normal(0, 4, fine.shape), 0, 255).astype(np.uint8)


class Cameras:
    """Cameras that move sideways before a wall, with calibration and without odometry.

    Args:
        count: how many.
        height, width: of their rgb8 pictures, pixels.
    """

    def __init__(self, count: int, height: int, width: int) -> None:
        self.count = count
        self._size = height, width
        self._model = CameraModel(width, height, width, width, width / 2 - 0.5, height / 2 - 0.5)
        random = np.random.default_rng(0)
        self._walls = [picture(random, height, width + _STEP * _STEPS) for _ in range(count)]

    def frames(self, number: int) -> list[Frame]:
        """One frame of each camera; ``number`` gives place and stamp, 30 per second."""
        turn = number % (2 * _STEPS)
        left = _STEP * min(turn, 2 * _STEPS - turn)
        return [
            Frame(
                np.ascontiguousarray(wall[:, left : left + self._size[1]]),
                "rgb8",
                stamp_ns=(number + 1) * PERIOD_NS,
                frame_id="eye",
                source=f"camera{index}",
                camera=self._model,
            )
            for index, wall in enumerate(self._walls)
        ]


@dataclass(frozen=True)
class FrameTimes:
    """How long frames of some cameras took; milliseconds.

    Args:
        first: of each of the first frames (all cameras together), from ``start`` to the result.
        wall: from ``start`` to the result, one batch at a time.
        start: of ``start`` alone: what Python needs.
        device: upload, compute and download by the device's marks, waits between them left out.
        rate: frames per second of all cameras together, as many in flight as the runner takes.
    """

    first: list[float]
    wall: Summary
    start: Summary
    device: Summary
    rate: float


def times_of(
    runner: Runner, cameras: Cameras, outputs: OutputRequest, settings: Settings, count: int
) -> FrameTimes:
    """Measure batches of one frame per camera.

    Args:
        runner: new, so that its first frames are the first of their kind.
        cameras: at most ``runner.max_batch``.
        outputs, settings: as for ``runner.start``.
        count: batches for latency, and again for throughput.
    """
    numbers = iter(range(_FIRST + 2 * count))
    first = [_one(runner, cameras.frames(next(numbers)), outputs, settings) for _ in range(_FIRST)]
    times = [_one(runner, cameras.frames(next(numbers)), outputs, settings) for _ in range(count)]
    batches = [cameras.frames(number) for number in numbers]
    flying: deque[Ticket] = deque()
    begin = time.perf_counter()
    for batch in batches:
        if len(flying) == runner.in_flight:
            take(flying.popleft())
        flying.append(runner.start(batch, outputs, settings))
    while flying:
        take(flying.popleft())
    spent = time.perf_counter() - begin
    wall, start, device = np.array(times).T * 1e3
    return FrameTimes(
        [1e3 * seconds for seconds, *_ in first],
        summarize(wall),
        summarize(start),
        summarize(device),
        cameras.count * count / spent,
    )


def take(ticket: Ticket) -> list[Prediction]:
    """The predictions, whose buffers are given back at once."""
    try:
        return ticket.wait()
    finally:
        ticket.release()


def _one(
    runner: Runner, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings
) -> tuple[float, float, float]:
    """Seconds until the result, of ``start``, and on the device."""
    begin = time.perf_counter()
    ticket = runner.start(frames, outputs, settings)
    started = time.perf_counter()
    predictions = take(ticket)
    end = time.perf_counter()
    return end - begin, started - begin, sum(predictions[0].seconds.values())
