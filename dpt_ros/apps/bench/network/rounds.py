# SPDX-License-Identifier: Apache-2.0
"""Interleaved rounds: every arm once per round, so that all meet the same state of the machine."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm


def interleave(
    arms: Mapping[str, Callable[[], float]],
    rounds: int,
    warm_up: int,
    rate: float = 0.0,
    title: str = "",
) -> dict[str, np.ndarray]:
    """Run all arms one after another, again and again.

    Args:
        arms: what to run, by name; each call returns its own measure of itself, in seconds.
        rounds: that count.
        warm_up: rounds before them, which do not count.
        rate: calls per second and arm, 0 for back to back. A device that idles between frames
            clocks down, as it does behind a camera.
        title: of the progress bar.

    Returns:
        (rounds,) float64 per arm, seconds.
    """
    times = {name: np.empty(rounds) for name in arms}
    period = 1.0 / rate if rate else 0.0
    bar = tqdm(range(-warm_up, rounds), desc=title, leave=False, disable=None)
    for number in bar:
        for name, arm in arms.items():
            due = time.monotonic() + period
            spent = arm()
            if number >= 0:
                times[name][number] = spent
            time.sleep(max(due - time.monotonic(), 0.0))
    return times


def ratio(times: Mapping[str, np.ndarray], slow: str, fast: str) -> float:
    """How many times as fast: the median of the ratios inside the rounds."""
    return float(np.median(times[slow] / times[fast]))


def quiet_rounds(
    arms: Mapping[str, Callable[[], float]], rounds: int, most_load: float, seconds: float
) -> tuple[dict[str, np.ndarray], int, float]:
    """As :func:`interleave`, in random order, on a machine that others may use too.

    Args:
        arms: what to run, by name; each call returns its time in seconds.
        rounds: quiet ones that are wanted.
        most_load: share of the machine that other processes may use in a round that counts.
        seconds: after which to stop with fewer.

    Returns:
        (rounds,) float64 seconds per arm of the quiet rounds, how many rounds were thrown out,
        and the mean load of others in those that count.
    """
    order = random.Random(0)
    kept: list[dict[str, float]] = []
    loads: list[float] = []
    thrown = 0
    end = time.monotonic() + seconds
    bar = tqdm(total=rounds, desc="quiet rounds", leave=False, disable=None)
    while len(kept) < rounds and time.monotonic() < end:
        names = order.sample(list(arms), len(arms))
        busy, own, start = machine_seconds(), own_seconds(), time.monotonic()
        times = {name: arms[name]() for name in names}
        spent = time.monotonic() - start
        others = (machine_seconds() - busy) - (own_seconds() - own)
        load = max(others, 0.0) / (spent * (os.cpu_count() or 1))
        if load > most_load:
            thrown += 1
            continue
        kept.append(times)
        loads.append(load)
        bar.update()
    bar.close()
    result = {name: np.array([times[name] for times in kept]) for name in arms}
    return result, thrown, float(np.mean(loads)) if loads else float("nan")


def machine_seconds() -> float:
    """Busy seconds of all cores since the start of the machine (proc(5), /proc/stat)."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0]
    user, nice, system, _idle, _wait, *interrupts = map(int, first.split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Busy seconds of this process and of those it has ended."""
    return sum(os.times()[:4])
