# SPDX-License-Identifier: Apache-2.0
"""dpt_evaluate: evaluate networks on a dataset, beside the published numbers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpt_ros.apps.command_line import fail, new_parser
from dpt_ros.datasets import list_datasets, unknown_dataset
from dpt_ros.engine.settings import check
from dpt_ros.model.zoo import EMBEDDED_NAME, list_models, unknown_model

EXAMPLES = """examples:
  the embedded network on held-out worlds:
    dpt_evaluate --dataset world --out scores
  its temporal stability on videos of these worlds:
    dpt_evaluate --dataset world --set video=true worlds=6 frames=60 --out scores
  the paper's table 2 (NYU Depth V2, metric) and its column in table 1 (zero-shot):
    dpt_evaluate --dataset nyu --root data/nyu --depth-network dpt_hybrid_nyu \\
      --depth-weights download --out scores/nyu
    dpt_evaluate --dataset nyu --root data/nyu --depth-network dpt_hybrid_midas \\
      --depth-weights download --out scores/nyu_zero_shot
  labels on ADE20K:
    dpt_evaluate --dataset ade20k --root data/ADEChallengeData2016 \\
      --label-network dpt_hybrid_ade20k --label-weights download --out scores/ade20k
  a network of your own:
    dpt_evaluate --dataset world --depth-network dpt_hybrid_embedded \\
      --depth-weights runs/mine/dpt_hybrid_embedded.safetensors --out scores/mine
"""


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:15} {line}" for name, line in list_datasets().items())
    parser = new_parser(
        "dpt_evaluate",
        "Evaluate networks on a dataset and write the results: OUT/results.json with "
        "every image,\nOUT/index.html with tables beside the published numbers and the best and "
        f"worst images.\n\ndatasets, with the expected content of their folder:\n{listed}",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="one of the above")
    add("--root", type=Path, metavar="DIR", help="folder of the dataset, except for the world")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--split", choices=("test", "train"), default="test", help="default: test")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="options of the dataset, see docs/evaluation.md")  # fmt: skip
    add("--depth-network", metavar="NAME", help="name of a network; default for the world: "
        f"{EMBEDDED_NAME}")  # fmt: skip
    add("--depth-weights", metavar="WEIGHTS", help="a file, download or random; default: the "
        "cached file, else the shipped one")  # fmt: skip
    add("--label-network", metavar="NAME", help="name of a network; default: the depth network if "
        "it predicts labels")  # fmt: skip
    add("--label-weights", metavar="WEIGHTS", help="as for depth")
    add("--protocol", choices=("auto", "metric", "zero-shot"), default="auto",
        help="how depth is evaluated: in metres, or after a fit to each image; auto: in metres "
        "for a metric network (default: auto)")  # fmt: skip
    add("--limit", type=int, metavar="N", help="evaluate only N samples, evenly spread")
    add("--pictures", type=int, default=4, metavar="N",
        help="show the N best and the N worst images (default: 4)")  # fmt: skip
    add("--device", default="auto",
        help="auto (the GPU if there is one), cpu, cuda or cuda:N (default: auto)")  # fmt: skip
    cores = os.cpu_count() or 1
    add("--threads", type=int, default=cores, help="CPU threads (default: all cores)")
    return parser


def _mistakes(args: argparse.Namespace) -> Iterator[str]:
    """The error messages on wrong arguments; the dataset checks its options when it is opened."""
    if args.dataset not in list_datasets():
        yield unknown_dataset(args.dataset)
    if args.dataset == "world" and args.root is not None:
        yield f"--dataset world is rendered and has no folder: leave --root {args.root} out."
    if args.dataset != "world" and args.root is None:
        expected = list_datasets()[args.dataset]
        yield f"--dataset {args.dataset} needs --root, a folder with {expected}."
    if args.root is not None and not args.root.expanduser().is_dir():
        yield f"--root: the folder {args.root} does not exist."
    for name in (args.depth_network, args.label_network):
        if name is not None and name not in list_models():
            yield unknown_model(name)
    try:
        check("device", args.device)
    except ValueError as error:
        yield f"--{error}"
    for name, lowest in (("limit", 1), ("pictures", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            yield f"--{name} is {value}, but must be at least {lowest}."
    for pair in args.set:
        if "=" not in pair:
            yield f"--set is {pair!r}, but must be NAME=VALUE."
    if args.label_weights is not None and args.label_network is None:
        yield "--label-weights needs --label-network."
    if args.depth_network is None and args.label_network is None and args.dataset != "world":
        yield "Give --depth-network, --label-network or both."
    for option, weights in (("depth", args.depth_weights), ("label", args.label_weights)):
        named = weights in (None, "download", "random")
        if not named and not Path(weights).expanduser().is_file():
            missing = f"--{option}-weights: the file {weights} does not exist."
            yield f"{missing} Give a file, download or random."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_evaluate``. Returns the exit code."""
    args = _parser().parse_args(argv)
    if mistake := next(_mistakes(args), ""):
        return fail("dpt_evaluate", mistake, 2)
    from dpt_ros.apps.evaluate.command import run

    return run(args)
