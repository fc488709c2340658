# SPDX-License-Identifier: Apache-2.0
"""What the temporal filter must hold against raw, and the tables that say whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpt_ros.apps.bench.report import table
from dpt_ros.apps.bench.temporal.run import CONDITIONS, FILTER, Measured

# measure: heading, how it compares with raw ("%" relative change, "+" difference, "=" as it is)
_COLUMNS = {
    "tepe": ("TEPE", "%"),
    "tae": ("TAE", "%"),
    "opw": ("OPW", "%"),
    "rtc": ("rTC", "+"),
    "abs_rel": ("AbsRel", "%"),
    "edge": ("edge", "%"),
    "ghost": ("ghost", "+"),
    "miss": ("miss", "+"),
    "std": ("std", "%"),
    "near": ("near", "="),
    "far": ("far", "="),
    "cut": ("cut", "x"),
    "drift": ("drift", "="),
    "miou": ("mIoU", "+"),
    "tc": ("TC", "+"),
    "vc8": ("VC8", "+"),
    "vc16": ("VC16", "+"),
    "mover_iou": ("mover", "+"),
    "ghost_label": ("ghost l.", "+"),
}
LEGEND = """\
First row absolute: TEPE, TAE, rTC, ghost, miss, std and labels in %, OPW in m, AbsRel and edge as
fractions. Below, against raw: TEPE, TAE, OPW, AbsRel, edge, std in % of raw's; rTC, ghost, miss
and labels in percentage points; cut: AbsRel of the frame after it, times raw's; near, far: frames
to 90 % of a step, drift: % per minute, both as they are. ms: per frame, one thread, median."""
_SAME = 0.1  # percentage points of ghost or miss that count as equal


@dataclass(frozen=True)
class Verdict:
    """One target of one source and condition: its limit, what came out, whether it holds."""

    source: str
    condition: str
    target: str
    limit: str
    value: float
    holds: bool


Means = dict[tuple[str, str], dict[str, dict[str, float]]]


def means(measured: Sequence[Measured]) -> Means:
    """(source, condition) -> method -> measure -> mean over seeds; "ms" among the measures."""
    lists: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for m in measured:
        row = lists.setdefault((m.source, m.condition), {}).setdefault(m.method, {})
        for name, value in (m.values | {"ms": m.ms}).items():
            row.setdefault(name, []).append(value)
    return {
        key: {
            method: {name: _mean(values) for name, values in row.items()}
            for method, row in methods.items()
        }
        for key, methods in lists.items()
    }


def _mean(values: list[float]) -> float:
    found = [value for value in values if np.isfinite(value)]
    return float(np.mean(found)) if found else float("nan")


def change(name: str, value: float, raw: float) -> float:
    """A measure against raw's, in the way of its column."""
    how = _COLUMNS[name][1]
    if how == "=":
        return value
    if how == "+":
        return value - raw
    ratio = value / raw if raw else float("nan")
    return ratio if how == "x" else 100 * (ratio - 1)


def condition_table(methods: dict[str, dict[str, float]]) -> str:
    """The methods of one source and condition, raw first and absolute."""
    raw = methods["raw"]
    names = [name for name in _COLUMNS if np.isfinite(raw.get(name, np.nan))]
    rows: list[list[str | float | None]] = []
    for method, values in methods.items():
        cells: list[str | float | None] = [method]
        for name in names:
            value = values.get(name, float("nan"))
            if method == "raw":
                cells.append(f"{value:.3g}")
            elif not np.isfinite(value):
                cells.append("-")
            else:
                signed = _COLUMNS[name][1] in "%+"
                digits = 0 if _COLUMNS[name][1] == "%" else 2 if name == "cut" else 1
                text = f"{change(name, value, raw[name]):{'+' if signed else ''}.{digits}f}"
                cells.append(text + ("%" if _COLUMNS[name][1] == "%" else ""))
        rows.append([*cells, f"{values['ms']:.1f}"])
    return table(["method", *(_COLUMNS[name][0] for name in names), "ms"], rows)


def verdicts(results: Means) -> list[Verdict]:
    """Every target that the results can speak of."""
    found: list[Verdict] = []
    for (source, condition), methods in results.items():
        if FILTER not in methods:
            continue
        raw, ours = methods["raw"], methods[FILTER]

        def judge(
            name: str,
            limit: float,
            least: bool = False,
            value: float | None = None,
            key: tuple[str, str] = (source, condition),
            raw: dict[str, float] = raw,
            ours: dict[str, float] = ours,
        ) -> None:
            if not np.isfinite(raw.get(name, np.nan)):
                return
            if value is None:
                value = change(name, ours.get(name, float("nan")), raw[name])
            holds = value >= limit if least else value <= limit
            sign = ">=" if least else "<="
            found.append(Verdict(*key, _COLUMNS[name][0], f"{sign} {limit:.3g}", value, holds))

        said = CONDITIONS[condition][1]
        if condition == "minute":
            drift = abs(ours["drift"] - raw["drift"])
            judge("drift", 2 if source == "anchored" else 5, value=drift)
            continue
        hard = condition == "7.5 fps" or said in ("x5", "jumps")
        judge("tepe", -50 if hard else -60 if source == "anchored" or said == "none" else -75)
        judge("tae", -50)
        judge("abs_rel", 3 if said == "none" else 1)
        judge("edge", 5)
        judge("ghost", 1)
        judge("miss", 1)
        judge("near", 1)
        judge("far", 2)
        judge("cut", 1.1)
        if condition == "standing":
            judge("std", -66.6)
        for name in ("tc", "vc16"):
            start = raw.get(name, float("nan"))
            judge(name, 8 if start <= 84 else (100 - start) / 2, True)
        judge("miou", 0, True)
        judge("mover_iou", 0, True)
        judge("ghost_label", 1.5)
    return found


def verdict_table(found: Sequence[Verdict]) -> str:
    """A row per source and condition, a column per target; "!" where it does not hold."""
    targets = [head for head, _ in _COLUMNS.values() if any(v.target == head for v in found)]
    places = list(dict.fromkeys((v.source, v.condition) for v in found))
    cells = {
        (v.source, v.condition, v.target): f"{v.value:+.1f}{' ' if v.holds else '!'}"
        for v in found
    }
    rows = [[*place, *(cells.get((*place, target), "") for target in targets)] for place in places]
    return table(["source", "condition", *targets], rows)


def rivals(results: Means) -> list[dict[str, Any]]:
    """The filter against each baseline: differences of TEPE (% of the baseline's), ghost and miss
    (percentage points), and whether TEPE is lower at equal or lower ghost and miss."""
    found = []
    for (source, condition), methods in results.items():
        if FILTER not in methods:
            continue
        ours = methods[FILTER]
        for method, other in methods.items():
            if method in (FILTER, "raw") or not np.isfinite(other["tepe"]):
                continue
            tepe = 100 * (ours["tepe"] / other["tepe"] - 1)
            ghost, miss = (ours[name] - other[name] for name in ("ghost", "miss"))
            better = tepe < 0 and not ghost > _SAME and not miss > _SAME
            found.append(
                {"source": source, "condition": condition, "baseline": method, "tepe": tepe,
                 "ghost": ghost, "miss": miss, "better": better}
            )  # fmt: skip
    return found


def rival_table(found: Sequence[dict[str, Any]]) -> str:
    """Per baseline and source: in how many conditions the filter is better, and in which not."""
    rows = []
    for method in dict.fromkeys(row["baseline"] for row in found):
        for source in dict.fromkeys(row["source"] for row in found):
            cases = [r for r in found if r["baseline"] == method and r["source"] == source]
            lost = [
                f"{r['condition']} (TEPE {r['tepe']:+.0f}%, ghost {r['ghost']:+.1f},"
                f" miss {r['miss']:+.1f})"
                for r in cases
                if not r["better"]
            ]
            rows.append(
                [method, source, f"{len(cases) - len(lost)} of {len(cases)}",
                 "; ".join(lost) or "-"]
            )  # fmt: skip
    return table(["baseline", "source", "better in", "not in"], rows)


def as_json(measured: Sequence[Measured], results: Means) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "runs": [asdict(m) for m in measured],
        "means": [
            {"source": source, "condition": condition, "methods": methods}
            for (source, condition), methods in results.items()
        ],
        "targets": [asdict(v) for v in verdicts(results)],
        "against baselines": rivals(results),
    }
