# SPDX-License-Identifier: Apache-2.0
"""What came back of what was sent: the arithmetic of the node's benchmark, without ROS.

A frame is named by its stamp, nanoseconds of the clock that all processes share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpt_ros.apps.report import Summary, summarize

PEAK_LIMIT = 1000.0  # frames per second; nothing faster is tried


@dataclass(frozen=True)
class Account:
    """What became of the frames of one run, all cameras together, warm-up left out."""

    sent: int  # published: returned + lost + dropped
    returned: int  # every requested output arrived
    lost: int  # not reported: lost on the way there or back
    dropped: int  # the arm reports them as replaced by a newer one, or failed
    late: int  # of those returned: took longer than a period
    out_of_order: int  # of those returned: arrived after a newer one of their camera
    latency: Summary  # stamp -> last output received, milliseconds
    jitter: Summary  # absolute second difference of arrival times (as ros2_benchmark), ms


@dataclass(frozen=True)
class Trace:
    """One camera's frames in one run."""

    sent: np.ndarray  # (N,) int64, stamps as published, ascending, those of the warm-up first
    warm_up: int  # how many of them were warm-up
    outputs: Mapping[str, np.ndarray]  # per topic (M, 2) int64: stamp, arrival; as they arrived

    def arrivals(self) -> np.ndarray:
        """(K, 2) int64: stamp and arrival of the last output of each complete frame, in the order
        of arrival; without stamps of other runs and without repetitions."""
        first, sent = [dict(a[::-1].tolist()) for a in self.outputs.values()], set(self.sent)
        complete = [s for s in reversed(first[-1]) if s in sent and all(s in one for one in first)]
        rows = sorted(((s, max(one[s] for one in first)) for s in complete), key=lambda r: r[1])
        return np.array(rows, np.int64).reshape(-1, 2)

    def measured(self) -> np.ndarray:
        """`arrivals` without the frames of the warm-up."""
        arrived = self.arrivals()
        return arrived[np.isin(arrived[:, 0], self.sent[self.warm_up :])]


def latencies(traces: Sequence[Trace]) -> np.ndarray:
    """Milliseconds from stamp to arrival of every frame returned after the warm-up."""
    return np.concatenate([np.diff(trace.measured())[:, 0] for trace in traces]) * 1e-6


def jitter(arrived: np.ndarray) -> np.ndarray:
    """The absolute second difference, ms, of arrival times in order, (K,) int64 nanoseconds."""
    return np.abs(np.diff(arrived, n=2)) * 1e-6


def out_of_order(stamps: np.ndarray) -> int:
    """How many of ``stamps``, in order of arrival, came after a newer one."""
    return int((stamps < np.maximum.accumulate(stamps)).sum())


def missing(traces: Sequence[Trace]) -> int:
    """Frames that were sent and did not come back, those of the warm-up included."""
    return sum(len(trace.sent) - len(trace.arrivals()) for trace in traces)


def account(traces: Sequence[Trace], period: float, dropped: int) -> Account:
    """The `Account` of a run.

    An arm counts the frames that it dropped over the whole run, warm-up included, and does not
    report which they were. So missing frames beyond that count are taken as lost in the measured
    part: no loss is hidden in the warm-up. ``period``: seconds between the frames of a camera.
    """
    measured = [trace.measured() for trace in traces]
    sent = sum(len(trace.sent) - trace.warm_up for trace in traces)
    returned = sum(map(len, measured))
    lost = min(sent - returned, max(missing(traces) - dropped, 0))
    late = int((latencies(traces) > period * 1e3).sum())
    disordered = sum(out_of_order(rows[:, 0]) for rows in measured)
    counts = (sent, returned, lost, sent - returned - lost, late, disordered)
    return Account(*counts, *_summaries(traces))


def together(accounts: Sequence[Account], traces: Sequence[Trace]) -> Account:
    """Several runs of one arm, and all their traces, as one: counts added, percentiles of all."""
    names = ("sent", "returned", "lost", "dropped", "late", "out_of_order")
    counts: dict[str, Any] = {name: sum(getattr(a, name) for a in accounts) for name in names}
    latency, second = _summaries(traces)
    return Account(**counts, latency=latency, jitter=second)


def _summaries(traces: Sequence[Trace]) -> tuple[Summary, Summary]:
    """Of the latencies, and of the jitter inside each run of a camera: in between is a pause."""
    steps = np.concatenate([jitter(trace.measured()[:, 1]) for trace in traces])
    return summarize(latencies(traces)), summarize(steps)


def peak_rate(holds: Callable[[float], bool], start: float, limit: float = PEAK_LIMIT) -> float:
    """The highest rate that ``holds``, frames per second, found within 5 %: doubling or halving
    ``start``, then bisection. Nothing beyond the ``limit`` is tried; 0 means that not even 1/64 of
    ``start`` held."""
    low, high = 0.0, start
    while low < limit and holds(high):
        low, high = high, min(2 * high, limit)
    while low == 0.0 and high > start / 64:
        if holds(high / 2):
            low = high / 2
        else:
            high /= 2
    while low and high > 1.05 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def choose_rate(answer: float, rates: Sequence[float]) -> float:
    """The highest of ``rates`` (falling) whose period is a third longer than ``answer``, seconds
    from stamp to depth; the last one if none is."""
    return next((rate for rate in rates if 1.33 * answer <= 1.0 / rate), rates[-1])
