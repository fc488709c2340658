# SPDX-License-Identifier: Apache-2.0
"""A run of dpt_export: load, write, compare."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.export import frame
from dpt_ros.apps.report import table
from dpt_ros.engine.export.compare import TOLERANCES, Difference, compare_network
from dpt_ros.engine.export.file import PRECISION, read_metadata
from dpt_ros.engine.export.network import export_network, spec_of
from dpt_ros.engine.loading import NetworkError
from dpt_ros.model import create_model
from dpt_ros.model.describe import described_spec
from dpt_ros.model.download import sha256_of
from dpt_ros.model.factory import model_spec, weights_path


def run(args: argparse.Namespace) -> int:
    """Run ``dpt_export`` with parsed arguments. Returns the exit code."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)  # random weights are the same in the file and in the comparison
    try:
        return _run(args)
    except (ImportError, NetworkError, OSError, ValueError) as error:
        return fail("dpt_export", error, 1)
    except KeyboardInterrupt:
        return fail("dpt_export", "interrupted; no file is left half written.", 130)


def _run(args: argparse.Namespace) -> int:
    name, weights = _named(args)
    if weights == "random":
        print("Weights are random as asked: the predictions mean nothing.", file=sys.stderr)
    if args.frame or args.step:
        return 0 if frame.export(args, name, weights, _source(name, weights)) else 1
    if not args.parity_only:
        model = create_model(name, weights=weights, fold=True)
        export_network(
            model, args.out, batch=args.batch, size=args.size, precision=args.precision,
            external_data=args.external_data, source=_source(name, weights),
        )  # fmt: skip
        del model  # a large one is not held twice
        print(frame.written(args.out))
    if not (args.parity or args.parity_only):
        return 0
    spec_of(args.out)  # a frame or a step, or no file of dpt_export, is refused
    precision = read_metadata(args.out)[PRECISION].strip('"')
    torch.manual_seed(0)
    tolerance = TOLERANCES[precision]
    model = create_model(name, weights=weights, fold=True)
    found = list(compare_network(args.out, model, tolerance))
    print(_table(found))
    wrong = [difference for difference in found if not difference.within(tolerance)]
    print(
        f"{precision}, tolerance {tolerance:g} of the largest value (metres: {3 * tolerance:g}): "
        + (f"{len(wrong)} of {len(found)} shapes differ by more." if wrong else "equal.")
    )
    return 1 if wrong else 0


def _named(args: argparse.Namespace) -> tuple[str, str | None]:
    """Name and weights of the network."""
    path = Path(args.network).expanduser()
    try:
        model_spec(args.network)
        return args.network, args.weights
    except ValueError:
        described = described_spec(path)
    if described is None:
        raise ValueError(
            f"{path} does not say which network it is for, as files of dpt_train do: give the"
            f" network's name, and --weights {path}."
        )
    return described.name, str(path)


def _source(name: str, weights: str | None) -> dict[str, str]:
    if weights == "random":
        return {"weights": "random"}
    path = weights_path(model_spec(name), weights)
    if path.is_dir():
        return {"weights": path.name}
    with path.open("rb") as file:
        return {"weights": path.name, "sha256": sha256_of(file)}


def _table(found: list[Difference]) -> str:
    header = ("batch", "height", "width", "inverse depth", "metres", "logits", "labels", "no ties")
    rows = []
    for one in found:
        numbers = [(error, ".1e") for error in (one.inverse_depth, one.depth, one.logits)]
        numbers += [(one.labels, ".3%"), (one.clear_labels, ".3%")]
        cells = ("-" if value is None else format(value, form) for value, form in numbers)
        rows.append((*map(str, one.shape), *cells))
    return table(header, rows)
