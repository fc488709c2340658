# SPDX-License-Identifier: Apache-2.0
"""A run of dpt_evaluate: plan, evaluation, results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.evaluate import protocols
from dpt_ros.apps.evaluate.page import VIDEO_TITLE, dataset_colors, notes_of, page, table_rows
from dpt_ros.apps.evaluate.protocols import ArgumentError, Protocol, find_protocol
from dpt_ros.apps.evaluate.run import Result, evaluate
from dpt_ros.apps.evaluate.videos import Videos
from dpt_ros.apps.report import environment, table, write_json
from dpt_ros.datasets import Dataset, DatasetError, Subset, open_dataset
from dpt_ros.datasets.world import WorldDataset
from dpt_ros.engine.loading import NetworkError, choose_device
from dpt_ros.model import DPT, create_model
from dpt_ros.model.zoo import EMBEDDED_NAME

Plan = list[tuple[DPT, list[Protocol]]]


def run(args: argparse.Namespace) -> int:
    """Run ``dpt_evaluate`` with parsed arguments. Returns the exit code."""
    torch.set_num_threads(args.threads)
    try:
        _run(args)
    except (OSError, ValueError) as error:
        return fail("dpt_evaluate", error, 2 if isinstance(error, ArgumentError) else 1)
    except KeyboardInterrupt:
        return fail("dpt_evaluate", "interrupted; nothing was written.", 130)
    return 0


def _open(args: argparse.Namespace) -> Dataset:
    """The whole dataset. Raises ArgumentError for a wrong option, DatasetError for wrong files."""
    options = dict(pair.split("=", 1) for pair in args.set)
    try:
        dataset = open_dataset(args.dataset, args.root, args.split, **options)
    except ValueError as error:
        raise error if isinstance(error, DatasetError) else ArgumentError(str(error)) from error
    if isinstance(dataset, WorldDataset) and dataset.video and args.limit is not None:
        raise ArgumentError("--limit would cut videos: give --set worlds=N frames=N instead.")
    return dataset


def _run(args: argparse.Namespace) -> None:
    try:
        device = choose_device(args.device)
    except NetworkError as error:
        raise ArgumentError(f"--{error}") from error
    dataset = whole = _open(args)
    if args.limit is not None and args.limit < len(whole):
        chosen = np.linspace(0, len(whole) - 1, args.limit).astype(int)
        dataset = Subset(whole, chosen.tolist())
    name = args.depth_network or (None if args.label_network else EMBEDDED_NAME)
    depth = _network(name, args.depth_weights, device)
    labels = _network(args.label_network, args.label_weights, device)
    plan = make_plan(args.dataset, depth, labels, args.protocol)
    args.out.mkdir(parents=True, exist_ok=True)
    class_names = dataset.class_names or ()
    videos = Videos(class_names) if isinstance(whole, WorldDataset) and whole.video else None
    with tqdm(total=len(dataset), unit="image", desc=args.dataset, disable=None) as bar:
        results = evaluate(dataset, plan, args.pictures, bar.update, videos)
    temporal = videos.result() if videos is not None else {}
    machine = environment()
    options = "".join(f", {option}" for option in args.set)
    facts = [f"{args.dataset} {args.split}, {len(dataset)} of {len(whole)} samples{options}"]
    for model, own in plan:
        weights = args.depth_weights if model is depth else args.label_weights
        weights, kinds = weights or "cached or shipped", " and ".join(p.kind for p in own)
        facts.append(f"{model.spec.name}, weights: {weights}, protocol: {kinds}")
    facts += [*dataset.notes, f"{machine['date']}, {device}, {machine['cpu']}"]
    _print(results, temporal)
    content = {"facts": facts, "environment": machine, "videos": temporal}
    write_json(args.out / "results.json", content | {"parts": [_as_json(r) for r in results]})
    title = f"dpt_evaluate: {args.dataset}"
    html = page(title, facts, results, temporal, dataset_colors(args.dataset), class_names)
    (args.out / "index.html").write_text(html, encoding="utf-8")
    print(f"\nWritten: {args.out / 'results.json'} and {args.out / 'index.html'}")


def _network(name: str | None, weights: str | None, device: torch.device) -> DPT | None:
    return None if name is None else create_model(name, weights=weights).to(device).eval()


def _print(results: Sequence[Result], temporal: dict[str, dict[str, float]]) -> None:
    for result in results:
        header, rows, _ = table_rows(result)
        print(f"\n{result.protocol.dataset}, {result.protocol.kind}, {result.images} images")
        print(table(header, rows))
        for note in notes_of(result):
            print(note)
    if temporal:
        names = list(next(iter(temporal.values())))
        values = [[video, *map(found.get, names)] for video, found in temporal.items()]
        print(f"\n{VIDEO_TITLE}")
        print(table(["video", *(protocols.NAMES[n] for n in names)], values))


def _as_json(result: Result) -> dict[str, Any]:
    protocol = result.protocol
    rows = {row.method: dict(row.values) for row in protocol.published}
    differences = result.differences()
    return {
        "dataset": protocol.dataset,
        "protocol": protocol.kind,
        "network": result.network,
        "images": result.images,
        "measures": result.measures,
        "iou": result.classes,
        "published": {"table": protocol.table, "differences": differences, "rows": rows},
        "notes": result.notes,
        "rows": result.rows,
    }


def make_plan(dataset: str, depth: DPT | None, labels: DPT | None, protocol: str) -> Plan:
    """Which protocols each network is evaluated by: the one for ``depth``, also for labels if it
    predicts them and there is none for ``labels``. ``protocol``: "auto", "metric" or "zero-shot".
    Raises ArgumentError if a network, the protocol and the dataset do not go together."""
    kinds = {p.kind for p in protocols.PROTOCOLS if p.dataset == dataset}
    plan: Plan = []
    if depth is not None:
        name, chosen = depth.spec.name, []
        if "depth" in depth.tasks and "order" in kinds:
            chosen.append("order")
        elif "depth" in depth.tasks and kinds - {"labels"}:
            chosen.append(protocol)
            if protocol == "auto":
                chosen = ["metric" if depth.metric else "zero-shot"]
            elif protocol == "metric" and not depth.metric:
                raise ArgumentError(
                    f"{name} predicts relative depth, not metres: use --protocol zero-shot."
                )
        if labels is None and "labels" in depth.tasks and "labels" in kinds:
            chosen.append("labels")
        if not chosen:
            raise ArgumentError(
                f"{name} predicts {' and '.join(depth.tasks)}, but {dataset} has ground truth for"
                f" {' and '.join(sorted(kinds))}."
            )
        plan.append((depth, [find_protocol(dataset, kind) for kind in chosen]))
    if labels is not None:
        if "labels" not in labels.tasks:
            raise ArgumentError(
                f"{labels.spec.name} does not predict labels: give another --label-network."
            )
        plan.append((labels, [find_protocol(dataset, "labels")]))
    return plan
