# SPDX-License-Identifier: Apache-2.0
"""The HTML page of an evaluation: tables beside the published numbers, best and worst images."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from dpt_ros.apps.evaluate.protocols import NAMES, Protocol
from dpt_ros.apps.evaluate.run import EvaluatedImage, Result
from dpt_ros.data import palette, voc_colors
from dpt_ros.engine.output.color import depth_to_color, inverse_to_color, labels_to_color
from dpt_ros.metrics.depth import finite_mean

WRONG = 0.5  # relative error at the upper end of the colour map of errors
VIDEO_TITLE = "Temporal stability, single frames without the filter"
_UNKNOWN = (90, 90, 90)
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 88]
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1240px; padding: 0 1em;
  color: #1c2024; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .3em .8em; border-bottom: 1px solid #d8dce0; text-align: left; }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums; }
tr.ours td { font-weight: 600; background: #eef5ff; } tr.same td { background: #f5f7f4; }
figure { margin: 0 0 1.2em; } figcaption { font-size: .9em; margin-bottom: .3em; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; }
.tiles div { font-size: .8em; color: #5a6470; } .tiles img { width: 100%; display: block; }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr));
  gap: 2px 1.5em; }
.classes div { display: flex; justify-content: space-between; }
.note { color: #5a6470; } .ramp { vertical-align: middle; height: 12px; width: 180px; }
"""


def cell(measure: str, value: float | None) -> str:
    """A number as the tables show it; a dash for none."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.2f}" if "%" in NAMES.get(measure, measure) else f"{value:.3f}"


def table_rows(result: Result) -> tuple[list[str], list[list[str]], list[str]]:
    """A result beside the published ones: header; rows of cells, the first one this run's; the CSS
    class of each row: "ours", "same" (the published numbers of this network) or ""."""
    protocol = result.protocol
    differs = result.differences()
    names = list(protocol.measures)
    names += [m for row in protocol.published for m in row.values if m not in names]
    header = ["", *(NAMES[name] for name in dict.fromkeys(names))]
    rows = [[f"{result.network}, this run", *(cell(n, result.measures.get(n)) for n in names)]]
    kinds = ["ours"]
    for row in protocol.published:
        # "paper" only where the numbers are comparable
        source = "other protocol" if differs else "paper"
        rows.append([f"{row.method} ({source})", *(cell(n, row.values.get(n)) for n in names)])
        kinds.append("same" if result.network in row.networks else "")
    return header, rows, kinds


def page(
    title: str,
    facts: Sequence[str],
    results: Sequence[Result],
    videos: dict[str, dict[str, float]],
    colors: np.ndarray,
    class_names: Sequence[str],
) -> str:
    """A self-contained HTML page: the title, ``facts`` as lines below it, the results of all
    protocols, temporal metrics by video; ``colors``: (256, 3) uint8, of the dataset's classes."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<div class=note>{escape(f)}</div>" for f in facts)]
    for result in results:
        body += _section(result, colors)
    if videos:
        names = list(next(iter(videos.values())))
        rows = [[v, *(cell(n, values[n]) for n in names)] for v, values in videos.items()]
        mean = [cell(n, finite_mean([values[n] for values in videos.values()])) for n in names]
        body.append(f"<h2>{VIDEO_TITLE}</h2>")
        rows.append(["mean", *mean])
        kinds = [""] * len(videos) + ["ours"]
        body.append(_table(["video", *(NAMES[n] for n in names)], rows, kinds))
    if class_names and any(result.protocol.kind == "labels" for result in results):
        body.append(_legend(class_names, colors))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _section(result: Result, colors: np.ndarray) -> list[str]:
    protocol = result.protocol
    what = {
        "metric": "depth in metres",
        "zero-shot": "depth, scale and shift of each image fitted in inverse depth",
        "order": "order of two points",
        "labels": "class labels",
    }[protocol.kind]
    body = [f"<h2>{escape(protocol.dataset)}: {what}, {result.images} images</h2>"]
    body.append(_table(*table_rows(result)))
    body += [f"<div class=note>{escape(note)}</div>" for note in notes_of(result)]
    if result.classes:
        found = {name: cell("iou", value) for name, value in result.classes.items()}
        shown = [f"<div>{escape(n)} <b>{t}</b></div>" for n, t in found.items() if t != "-"]
        body.append(f"<h3>IoU by class</h3><div class=classes>{''.join(shown)}</div>")
    if protocol.kind in ("metric", "zero-shot") and (result.worst or result.best):
        body.append(_ramps(protocol))
    for words, group in (("Worst", result.worst), ("Best", result.best)):
        if group:
            body.append(f"<h3>{words} by {escape(NAMES[protocol.rank])}</h3>")
        for image in group:
            score = cell(protocol.rank, image.score)
            tiles = "".join(
                f"<div>{escape(name)}<img alt='{escape(name)}' src='{_data(tile)}'></div>"
                for name, tile in tiles_of(image, protocol, colors)
            )
            body.append(
                f"<figure><figcaption>{escape(image.name)}: {escape(NAMES[protocol.rank])} "
                f"{score}</figcaption><div class=tiles>{tiles}</div></figure>"
            )
    return body


def notes_of(result: Result) -> tuple[str, ...]:
    """Remarks on the table: source and comparability of the published numbers."""
    protocol = result.protocol
    if not protocol.table:
        return result.notes
    return (f"Published numbers: {protocol.table}.", *result.differences(), *result.notes)


def tiles_of(
    image: EvaluatedImage, protocol: Protocol, colors: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Named tiles that show an image and its evaluation: (H, W, 3) uint8 RGB each."""
    if protocol.kind == "labels":
        truth, guess = image.truth, image.prediction
        known = (truth > 0) & (truth < 255)
        error = np.where((guess != truth)[..., None], (230, 60, 40), (215, 225, 215))
        return [
            ("image", image.rgb),
            ("prediction", labels_to_color(guess, colors)),
            ("truth", labels_to_color(truth, colors)),
            ("wrong (red)", np.where(known[..., None], error, _UNKNOWN).astype(np.uint8)),
        ]
    if protocol.kind == "order":
        low, high = np.percentile(image.prediction, (1, 99))
        shown = inverse_to_color(image.prediction - low, max(float(high - low), 1e-9))
        return [("image, nearer point green", _points(image)), ("prediction", shown)]
    truth = image.truth
    known = np.isfinite(truth)
    relative = np.abs(image.prediction - truth) / np.where(known, truth, 1)
    error = _error_color(np.where(known, relative, 0))
    error[~known] = _UNKNOWN
    shown_truth = depth_to_color(truth.astype(np.float32), protocol.far)
    shown_truth[~known] = _UNKNOWN
    if known.mean() < 0.3:  # points of a laser: too thin to be seen
        shown_truth, error = (_thicker(image, known) for image in (shown_truth, error))
    return [
        ("image", image.rgb),
        ("prediction", depth_to_color(image.prediction.astype(np.float32), protocol.far)),
        ("truth", shown_truth),
        ("relative error", error),
    ]


def _points(image: EvaluatedImage) -> np.ndarray:
    picture = image.rgb.copy()
    radius = max(picture.shape[1] // 60, 3)
    for row1, column1, row2, column2, nearer in image.truth:
        for row, column, near in ((row1, column1, nearer > 0), (row2, column2, nearer < 0)):
            at = round(column), round(row)
            cv2.circle(picture, at, radius, (40, 200, 60) if near else (230, 60, 40), -1)
            cv2.circle(picture, at, radius, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def _error_color(error: np.ndarray) -> np.ndarray:
    """Relative error 0..``WRONG``, dark where small: (H, W, 3) uint8 RGB."""
    scaled = (np.clip(error / WRONG, 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()


def _thicker(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The (H, W, 3) image with each known pixel three pixels wide and high."""
    thick = image.copy()
    for step in itertools.product((-1, 0, 1), repeat=2):
        moved = np.roll(known, step, (0, 1)) & ~known
        thick[moved] = np.roll(image, step, (0, 1))[moved]
    return thick


def _ramps(protocol: Protocol) -> str:
    steps = np.linspace(0, 1, 180, dtype=np.float32)[None].repeat(12, 0)
    depth = depth_to_color(steps * protocol.far, protocol.far)
    error = _error_color(steps * WRONG)
    return (
        f"<p>depth 0 <img class=ramp alt='' src='{_data(depth)}'> {protocol.far:g} m and more, "
        f"&emsp;relative error 0 <img class=ramp alt='' src='{_data(error)}'> {WRONG:.0%} and "
        "more, grey: not evaluated</p>"
    )


def _legend(class_names: Sequence[str], colors: np.ndarray) -> str:
    swatches = "".join(
        f"<span style='white-space:nowrap;margin-right:1em'><span style='background:rgb("
        f"{','.join(str(int(v)) for v in colors[k])})'>&emsp;</span> {escape(name)}</span> "
        for k, name in enumerate(class_names, start=1)
    )
    return f"<h3>Colours of the classes</h3><p>{swatches}</p>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    lines = "".join(
        f"<tr class='{kind}'>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>"
        for row, kind in zip(rows, kinds, strict=True)
    )
    return f"<table><tr>{head}</tr>{lines}</table>"


def _data(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 RGB as the address of an <img>."""
    done, bytes_ = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _JPEG)
    if not done:
        raise ValueError(f"A picture of shape {picture.shape} cannot be written as JPEG.")
    return "data:image/jpeg;base64," + base64.b64encode(bytes_.tobytes()).decode()


def dataset_colors(dataset: str) -> np.ndarray:
    """(256, 3) uint8 RGB by class id of a dataset."""
    own = dataset in ("world", "ade20k")
    return palette(f"labels_{dataset}.json") if own else voc_colors()
