# SPDX-License-Identifier: Apache-2.0
"""Targets of the temporal filter, and the tables of all methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from dpt_ros.apps.bench.arguments import TEMPORAL_CONDITIONS
from dpt_ros.apps.bench.temporal.run import FILTER, Measured
from dpt_ros.apps.report import table
from dpt_ros.metrics.depth import finite_mean

# measure: heading, how it is compared with raw ("%" relative change, "+" difference, "x" ratio,
# "=" as it is)
_COLUMNS = {
    "tepe": ("TEPE", "%"), "tae": ("TAE", "%"), "opw": ("OPW", "%"), "rtc": ("rTC", "+"),
    "abs_rel": ("AbsRel", "%"), "edge": ("edge", "%"), "ghost": ("ghost", "+"),
    "miss": ("miss", "+"), "std": ("std", "%"), "near": ("near", "="), "far": ("far", "="),
    "cut": ("cut", "x"), "drift": ("drift", "="), "miou": ("mIoU", "+"), "tc": ("TC", "+"),
    "vc8": ("VC8", "+"), "vc16": ("VC16", "+"), "mover_iou": ("mover", "+"),
    "ghost_label": ("ghost l.", "+"),
}  # fmt: skip
LEGEND = """\
First row absolute: TEPE, TAE, rTC, ghost, miss, std and labels in %, OPW in m, AbsRel and edge as
fractions. Below, against raw: TEPE, TAE, OPW, AbsRel, edge, std in % of raw's; rTC, ghost, miss
and labels in percentage points; cut: AbsRel of the frame after it, times raw's; near, far: frames
to 90 % of a step, drift: % per minute, both as they are. ms: per frame, one thread, median."""
_NAN = float("nan")
Values = dict[str, float]
Means = dict[tuple[str, str], dict[str, Values]]  # (source, condition): method: measure: mean


class Target(NamedTuple):
    """One target of one source and condition: its limit, the value measured, whether it holds."""

    source: str
    condition: str
    target: str
    limit: str
    value: float
    holds: bool


def means(measured: Sequence[Measured]) -> Means:
    """Means over the seeds, NaN left out; "ms" is one of the measures."""
    lists: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for m in measured:
        row = lists.setdefault((m.source, m.condition), {}).setdefault(m.method, {})
        for name, value in (m.values | {"ms": m.ms}).items():
            row.setdefault(name, []).append(value)
    return {
        key: {m: {name: finite_mean(v) for name, v in row.items()} for m, row in methods.items()}
        for key, methods in lists.items()
    }


def change(name: str, value: float, raw: float) -> float:
    """A measure compared with raw's, in the way of its column."""
    how = _COLUMNS[name][1]
    if how in "=+":
        return value if how == "=" else value - raw
    ratio = value / raw if raw else _NAN
    return ratio if how == "x" else 100 * (ratio - 1)


def condition_table(methods: dict[str, Values]) -> str:
    """The methods of one source and condition, raw first and absolute."""
    raw = methods["raw"]
    names = [name for name in _COLUMNS if np.isfinite(raw.get(name, _NAN))]
    formats = {"%": "{:+.0f}%", "+": "{:+.1f}", "=": "{:.1f}", "x": "{:.2f}"}

    def cell(method: str, name: str, value: float) -> str:
        if method == "raw":
            return f"{value:.3g}"
        changed = change(name, value, raw[name])
        return formats[_COLUMNS[name][1]].format(changed) if np.isfinite(value) else "-"

    rows = [
        [m, *(cell(m, name, values.get(name, _NAN)) for name in names), f"{values['ms']:.1f}"]
        for m, values in methods.items()
    ]
    return table(["method", *(_COLUMNS[name][0] for name in names), "ms"], rows)


def _limits(source: str, condition: str, raw: Values) -> Iterator[tuple[str, float, bool]]:
    """Measure, limit, and whether the limit is the least value instead of the largest."""
    odometry = TEMPORAL_CONDITIONS[condition][1]
    if condition == "minute":
        yield "drift", 2 if source == "anchored" else 5, False
        return
    hard = condition == "7.5 fps" or odometry in ("x5", "jumps")
    middle = source == "anchored" or odometry == "none"
    most: Values = {"tepe": -50 if hard else -60 if middle else -75, "tae": -50}
    most |= {"abs_rel": 3 if odometry == "none" else 1, "edge": 5, "ghost": 1, "miss": 1}
    most |= {"near": 1, "far": 2, "cut": 1.1} | ({"std": -66.6} if condition == "standing" else {})
    yield from ((name, limit, False) for name, limit in most.items())
    for name in ("tc", "vc16"):
        start = raw.get(name, _NAN)
        yield name, 8 if start <= 84 else (100 - start) / 2, True
    yield from (("miou", 0, True), ("mover_iou", 0, True), ("ghost_label", 1.5, False))


def check_targets(results: Means) -> list[Target]:
    """Every target for which there is a measurement."""
    found: list[Target] = []
    for (source, condition), methods in results.items():
        if FILTER not in methods:
            continue
        raw, ours = methods["raw"], methods[FILTER]
        for name, limit, least in _limits(source, condition, raw):
            if not np.isfinite(raw.get(name, _NAN)):
                continue
            value = change(name, ours.get(name, _NAN), raw[name])
            if name == "drift":
                value = abs(value - raw[name])
            holds = value >= limit if least else value <= limit
            words = f"{'>=' if least else '<='} {limit:.3g}"
            found.append(Target(source, condition, _COLUMNS[name][0], words, value, holds))
    return found


def target_table(found: Sequence[Target]) -> str:
    """A row per source and condition, a column per target; "!" where it does not hold."""
    targets = [head for head, _ in _COLUMNS.values() if any(t.target == head for t in found)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for t in found:
        cell = f"{t.value:+.1f}{' ' if t.holds else '!'}"
        rows.setdefault((t.source, t.condition), {})[t.target] = cell
    lines = [[*place, *(row.get(name, "") for name in targets)] for place, row in rows.items()]
    return table(["source", "condition", *targets], lines)


def as_json(measured: Sequence[Measured], results: Means) -> dict[str, Any]:
    """All results, for a file."""
    return {
        "runs": [asdict(m) for m in measured],
        "means": [
            {"source": source, "condition": condition, "methods": methods}
            for (source, condition), methods in results.items()
        ],
        "targets": [target._asdict() for target in check_targets(results)],
    }
