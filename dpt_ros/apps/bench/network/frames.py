# SPDX-License-Identifier: Apache-2.0
"""Frames of moving cameras through a runner: the first ones, latency, throughput."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from dpt_ros.apps.report import summarize
from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.runner.host import Runner, Ticket
from dpt_ros.engine.settings import Settings

PERIOD_NS = 33_333_333
_FIRST = 6  # frames of a new kind: libraries choose, kernels are compiled, graphs are captured
_STEP, _STEPS = 3, 24  # pixels from image to image, and images until they turn back


def picture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 blocks of colour with a little noise, with edges as in images."""
    coarse = random.integers(0, 255, (height // 32 + 1, width // 32 + 1, 3))
    fine = np.kron(coarse, np.ones((32, 32, 1)))[:height, :width]
    return np.clip(fine + random.normal(0, 4, fine.shape), 0, 255).astype(np.uint8)


class Cameras:
    """``count`` cameras that move sideways along a wall, with calibration, without odometry; their
    rgb8 images have ``height`` x ``width`` pixels."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self.count = count
        self._width = width
        self._model = CameraModel(width, height, width, width, width / 2 - 0.5, height / 2 - 0.5)
        random = np.random.default_rng(0)
        self._walls = [picture(random, height, width + _STEP * _STEPS) for _ in range(count)]

    def frames(self, number: int) -> list[Frame]:
        """One frame of each camera; ``number`` gives place and stamp, 30 per second."""
        turn = number % (2 * _STEPS)
        left = _STEP * min(turn, 2 * _STEPS - turn)
        stamp = (number + 1) * PERIOD_NS
        images = [np.ascontiguousarray(wall[:, left : left + self._width]) for wall in self._walls]
        return [
            Frame(image, "rgb8", stamp, "eye", source=f"camera{index}", camera=self._model)
            for index, image in enumerate(images)
        ]


def times_of(
    runner: Runner, cameras: Cameras, outputs: OutputRequest, settings: Settings, count: int
) -> dict[str, Any]:
    """Measure ``count`` batches of one frame per camera for latency, and again for throughput.

    The runner must be new, so that its first frames are the first of their kind. Milliseconds,
    "first": of each of the first batches, from ``start`` to the result; as `Summary` "wall": the
    same, one batch at a time, "start": of ``start`` alone, and "device": upload, compute and
    download by events, without the waits between them. "rate": frames per second of all cameras
    together, with as many in flight as the runner allows.
    """
    times = []
    for number in range(_FIRST + count):
        frames = cameras.frames(number)
        begin = time.perf_counter()
        ticket = runner.start(frames, outputs, settings)
        started = time.perf_counter()
        predictions = take(ticket)
        end = time.perf_counter()
        times.append((end - begin, started - begin, sum(predictions[0].seconds.values())))
    batches = [cameras.frames(_FIRST + count + number) for number in range(count)]
    begin = time.perf_counter()
    run_through(runner, batches, outputs, settings)
    rate = cameras.count * count / (time.perf_counter() - begin)
    wall, start, device = np.array(times).T * 1e3
    late = {"wall": wall[_FIRST:], "start": start[_FIRST:], "device": device[_FIRST:]}
    found = {name: asdict(summarize(values)) for name, values in late.items()}
    return {"first": wall[:_FIRST].tolist(), **found, "rate": rate}


def run_through(
    runner: Runner, batches: Iterable[list[Frame]], outputs: OutputRequest, settings: Settings
) -> None:
    """Run batches with as many in flight as the runner allows."""
    in_flight: list[Ticket] = []
    for batch in batches:
        if len(in_flight) == runner.in_flight:
            take(in_flight.pop(0))
        in_flight.append(runner.start(batch, outputs, settings))
    for ticket in in_flight:
        take(ticket)


def take(ticket: Ticket) -> list[Prediction]:
    """The predictions; their buffers are released at once."""
    try:
        return ticket.wait()
    finally:
        ticket.release()
