# SPDX-License-Identifier: Apache-2.0
"""What dpt_evaluate does once its arguments are parsed: plan, evaluation, results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dpt_ros.apps.bench.report import environment, table, write_json
from dpt_ros.apps.evaluate.page import dataset_colors, notes_of, page, table_rows
from dpt_ros.apps.evaluate.protocols import NAMES, PROTOCOLS, Protocol, find_protocol
from dpt_ros.apps.evaluate.run import Part, evaluate
from dpt_ros.apps.evaluate.videos import Videos
from dpt_ros.datasets import Dataset, Subset, open_dataset
from dpt_ros.datasets.world import WorldDataset
from dpt_ros.engine.inference.loading import NetworkError, choose_device
from dpt_ros.model import DPT, create_model
from dpt_ros.model.zoo import EMBEDDED_NAME

Plan = list[tuple[DPT, list[Protocol]]]


def run(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Evaluate as the arguments say.

    Args:
        args: of ``dpt_evaluate``.
        options: of the dataset, by name.

    Returns:
        The exit code of ``dpt_evaluate``.
    """
    try:
        device = choose_device(args.device)
    except NetworkError as error:
        print(f"dpt_evaluate: --{error}", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    try:
        _run(args, options, device)
    except (OSError, ValueError) as error:
        print(f"dpt_evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dpt_evaluate: interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def _run(args: argparse.Namespace, options: dict[str, Any], device: torch.device) -> None:
    whole = open_dataset(args.dataset, args.root, args.split, **options)
    video = isinstance(whole, WorldDataset) and whole.video
    if video and args.limit is not None:
        raise ValueError("--limit would cut videos: give --set worlds=N frames=N instead.")
    dataset = _chosen(whole, args.limit)
    name = args.depth_network
    if name is None and args.label_network is None:
        name = EMBEDDED_NAME
    depth = _network(name, args.depth_weights, device)
    labels = _network(args.label_network, args.label_weights, device)
    plan = make_plan(args.dataset, depth, labels, args.protocol)
    args.out.mkdir(parents=True, exist_ok=True)
    videos = Videos(dataset.class_names or ()) if video else None
    with tqdm(total=len(dataset), unit="image", desc=args.dataset, disable=None) as bar:
        parts = evaluate(dataset, plan, args.pictures, bar.update, videos)
    steady = videos.result() if videos is not None else {}
    machine = environment()
    facts = [f"{args.dataset} {args.split}, {len(dataset)} of {len(whole)} samples"]
    if options:
        facts[0] += ", " + ", ".join(f"{k}={v}" for k, v in options.items())
    for model, protocols in plan:
        weights = args.depth_weights if model is depth else args.label_weights
        judged = " and ".join(protocol.kind for protocol in protocols)
        facts.append(
            f"{model.spec.name}, weights: {weights or 'cached or shipped'}, judged: {judged}"
        )
    facts += dataset.notes
    facts.append(f"{machine['date']}, {device}, {machine['cpu']}")
    _print(parts, steady)
    content = {"facts": facts, "environment": machine, "videos": steady}
    write_json(args.out / "results.json", content | {"parts": [_as_json(p) for p in parts]})
    title = f"dpt_evaluate: {args.dataset}"
    colors, names = dataset_colors(args.dataset), dataset.class_names or ()
    html = page(title, facts, parts, steady, colors, names)
    (args.out / "index.html").write_text(html, encoding="utf-8")
    print(f"\nWritten: {args.out / 'results.json'} and {args.out / 'index.html'}")


def _network(name: str | None, weights: str | None, device: torch.device) -> DPT | None:
    if name is None:
        return None
    return create_model(name, weights=weights).to(device).eval()


def _print(parts: Sequence[Part], steady: dict[str, dict[str, float]]) -> None:
    for part in parts:
        header, rows, _ = table_rows(part)
        protocol = part.protocol
        print(f"\n{protocol.dataset}, {protocol.kind}, {part.images} images")
        print(table(header, rows))
        for note in notes_of(part):
            print(note)
    if steady:
        names = list(next(iter(steady.values())))
        rows_of = [[video, *map(values.get, names)] for video, values in steady.items()]
        print("\nTemporal stability, single frames without the filter")
        print(table(["video", *(NAMES[n] for n in names)], rows_of))


def _as_json(part: Part) -> dict[str, Any]:
    protocol = part.protocol
    return {
        "dataset": protocol.dataset,
        "protocol": protocol.kind,
        "network": part.network,
        "images": part.images,
        "measures": part.measures,
        "iou": part.classes,
        "published": {
            "table": protocol.table,
            "differences": part.differences(),
            "rows": {row.method: dict(row.values) for row in protocol.published},
        },
        "notes": part.notes,
        "rows": part.rows,
    }


def _chosen(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return Subset(dataset, np.linspace(0, len(dataset) - 1, limit).astype(int).tolist())


def make_plan(dataset: str, depth: DPT | None, labels: DPT | None, protocol: str) -> Plan:
    """Which network answers which protocols.

    Args:
        dataset: its name.
        depth: the network for depth; answers for labels too if ``labels`` is None and it can.
        labels: the network for labels.
        protocol: "auto", "metric" or "zero-shot".

    Raises:
        ValueError: a network and the dataset do not go together.
    """
    kinds = {p.kind for p in PROTOCOLS if p.dataset == dataset}
    plan: Plan = []
    if depth is not None:
        found: list[Protocol] = []
        if "depth" in depth.tasks and "order" in kinds:
            found.append(find_protocol(dataset, "order"))
        elif "depth" in depth.tasks and kinds - {"labels"}:
            kind = protocol
            if protocol == "auto":
                kind = "metric" if depth.metric else "zero-shot"
            if kind == "metric" and not depth.metric:
                raise ValueError(
                    f"{depth.spec.name} predicts relative depth, not metres: use --protocol"
                    " zero-shot."
                )
            found.append(find_protocol(dataset, kind))
        if labels is None and "labels" in depth.tasks and "labels" in kinds:
            found.append(find_protocol(dataset, "labels"))
        if not found:
            raise ValueError(
                f"{depth.spec.name} predicts {' and '.join(depth.tasks)}, but {dataset} has ground"
                f" truth for {' and '.join(sorted(kinds))}."
            )
        plan.append((depth, found))
    if labels is not None:
        if "labels" not in labels.tasks:
            raise ValueError(
                f"{labels.spec.name} predicts no labels: give another --label-network."
            )
        plan.append((labels, [find_protocol(dataset, "labels")]))
    return plan
