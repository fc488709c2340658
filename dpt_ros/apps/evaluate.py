# SPDX-License-Identifier: Apache-2.0
"""dpt_evaluate: score networks on a dataset, beside the published numbers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dpt_ros.apps.bench.report import environment, table, write_json
from dpt_ros.apps.evaluate_page import dataset_colors, notes_of, page, table_rows
from dpt_ros.apps.evaluate_protocols import NAMES, PROTOCOLS, Protocol, find_protocol
from dpt_ros.apps.evaluate_run import Part, evaluate
from dpt_ros.apps.evaluate_videos import Videos
from dpt_ros.datasets import Dataset, Subset, list_datasets, open_dataset
from dpt_ros.datasets.world import WorldDataset
from dpt_ros.model import create_model, list_models
from dpt_ros.model.dpt import DPT
from dpt_ros.model.zoo import EMBEDDED_NAME

Plan = list[tuple[DPT, list[Protocol]]]

EXAMPLES = """examples:
  the embedded network on worlds that it has not seen:
    dpt_evaluate --dataset world --out scores
  its steadiness on videos of these worlds:
    dpt_evaluate --dataset world --set video=true worlds=6 frames=60 --out scores
  the paper's table 2 (NYU Depth V2, metric) and its column in table 1 (zero-shot):
    dpt_evaluate --dataset nyu --root data/nyu --depth-network dpt_hybrid_nyu \\
      --depth-weights download --device cuda --out scores/nyu
    dpt_evaluate --dataset nyu --root data/nyu --depth-network dpt_hybrid_midas \\
      --depth-weights download --device cuda --out scores/nyu_zero_shot
  labels on ADE20K:
    dpt_evaluate --dataset ade20k --root data/ADEChallengeData2016 \\
      --label-network dpt_hybrid_ade20k --label-weights download --out scores/ade20k
  a network of your own:
    dpt_evaluate --dataset world --depth-network dpt_hybrid_embedded \\
      --depth-weights runs/mine/dpt_hybrid_embedded.safetensors --out scores/mine
"""


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:15} {line}" for name, line in list_datasets().items())
    parser = argparse.ArgumentParser(
        prog="dpt_evaluate",
        description="Score networks on a dataset and write the results: OUT/results.json with "
        "every image,\nOUT/index.html with tables beside the published numbers and the best and "
        f"worst images.\n\ndatasets, with what is expected in their folder:\n{listed}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="one of those above")
    add("--root", type=Path, metavar="DIR", help="the dataset's folder; not for the world")
    add("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add("--split", choices=("test", "train"), default="test", help="default: test")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of the dataset")
    add("--depth-network", metavar="NAME", help="a name of the zoo; for the world by default "
        f"{EMBEDDED_NAME}")  # fmt: skip
    add("--depth-weights", metavar="WEIGHTS", help="a file, 'download' or 'random'; by default "
        "what is at hand")  # fmt: skip
    add("--label-network", metavar="NAME", help="a name of the zoo; by default the depth network "
        "if it has labels")  # fmt: skip
    add("--label-weights", metavar="WEIGHTS", help="as for depth")
    add("--protocol", choices=("auto", "metric", "zero-shot"), default="auto",
        help="how depth is judged: in metres, or after a fit to each image; by default in metres "
        "if the network gives them")  # fmt: skip
    add("--limit", type=int, metavar="N", help="judge only N samples, evenly spread")
    add("--pictures", type=int, default=4, metavar="N",
        help="show the N best and the N worst images (default: 4)")  # fmt: skip
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    return parser


def _complaint(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, as a sentence."""
    for name in (args.depth_network, args.label_network):
        if name is not None and name not in list_models():
            return f"There is no network {name!r}: choose one of {', '.join(list_models())}."
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        return "There is no CUDA device on this machine: leave --device out to use the CPU."
    for name, lowest in (("limit", 1), ("pictures", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            return f"--{name} must be at least {lowest}, but is {value}."
    if args.label_weights is not None and args.label_network is None:
        return "--label-weights needs --label-network."
    if args.depth_network is None and args.label_network is None and args.dataset != "world":
        return "Give --depth-network, --label-network or both: a name of the zoo."
    return None


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    split = [pair.partition("=") for pair in pairs]
    for pair, (_, equals, _) in zip(pairs, split, strict=True):
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, but got {pair!r}.")
    return {name: value for name, _, value in split}


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
                    f"{depth.spec.name} gives relative depth, not metres: judge it as zero-shot."
                )
            found.append(find_protocol(dataset, kind))
        if labels is None and "labels" in depth.tasks and "labels" in kinds:
            found.append(find_protocol(dataset, "labels"))
        if not found:
            raise ValueError(
                f"{depth.spec.name} gives {' and '.join(depth.tasks)}, but {dataset} has "
                f"{' and '.join(sorted(kinds))} to judge."
            )
        plan.append((depth, found))
    if labels is not None:
        if "labels" not in labels.tasks:
            raise ValueError(f"{labels.spec.name} gives no labels.")
        plan.append((labels, [find_protocol(dataset, "labels")]))
    return plan


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_evaluate``. Returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        options = _options(args.set)
        complaint = _complaint(args)
    except ValueError as error:
        complaint = str(error)
    if complaint is not None:
        print(complaint, file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    try:
        _run(args, options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.", file=sys.stderr)
        return 130
    return 0


def _run(args: argparse.Namespace, options: dict[str, Any]) -> None:
    whole = open_dataset(args.dataset, args.root, args.split, **options)
    video = isinstance(whole, WorldDataset) and whole.video
    if video and args.limit is not None:
        raise ValueError("--limit would tear videos apart: --set worlds=N frames=N instead.")
    dataset = _chosen(whole, args.limit)
    name = args.depth_network
    if name is None and args.label_network is None:
        name = EMBEDDED_NAME
    depth = _network(name, args.depth_weights, args.device)
    labels = _network(args.label_network, args.label_weights, args.device)
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
        facts.append(f"{model.spec.name}, weights: {weights or 'at hand'}, judged: {judged}")
    facts += dataset.notes
    facts.append(f"{machine['date']}, {args.device}, {machine['cpu']}")
    _print(parts, steady)
    content = {"facts": facts, "environment": machine, "videos": steady}
    write_json(args.out / "results.json", content | {"parts": [_as_json(p) for p in parts]})
    title = f"dpt_evaluate: {args.dataset}"
    colors, names = dataset_colors(args.dataset), dataset.class_names or ()
    html = page(title, facts, parts, steady, colors, names)
    (args.out / "index.html").write_text(html, encoding="utf-8")
    print(f"\nWritten: {args.out / 'results.json'} and {args.out / 'index.html'}")


def _network(name: str | None, weights: str | None, device: str) -> DPT | None:
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
        print("\nSteadiness over time, single frames with no filter")
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


if __name__ == "__main__":
    sys.exit(main())
