# SPDX-License-Identifier: Apache-2.0
"""dpt_export --frame and --step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dpt_ros.apps.report import table
from dpt_ros.engine.export.compare import TOLERANCES, compare_frame, compare_step
from dpt_ros.engine.export.file import KIND, PRECISION, SPEC, read_metadata
from dpt_ros.engine.export.frame import FrameModule, all_outputs, export_networks
from dpt_ros.engine.export.session import StepSession
from dpt_ros.engine.export.step import StepModule
from dpt_ros.engine.frame import Frame, Kind, OutputRequest
from dpt_ros.engine.input.encodings import check_shape, find_encoding
from dpt_ros.engine.loading import label_fields
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.model import create_model

_GAP_AFTER = 40  # frames, where the filter begins anew


def export(
    args: argparse.Namespace, name: str, weights: str | None, source: dict[str, str]
) -> bool:
    """Write and compare as the arguments say. Returns whether the file is equal to PyTorch, as far
    as that was asked. Raises ValueError for a wrong parameter, encoding or size."""
    if args.parity_only:
        args.precision = _exported_precision(args)
    settings, _ = read_settings(None, args.given)
    if args.size:
        settings = replace(settings, input_height=args.size[0], input_width=args.size[1])
    model = create_model(name, weights=weights, fold=True, weight_std=settings.weight_std)
    depth, labels = (model if task in model.tasks else None for task in ("depth", "labels"))
    if labels is None and settings.label_network not in ("auto", "none"):
        labels = create_model(settings.label_network, settings.label_weights or None, fold=True)
    spec = labels.spec if labels is not None else None
    classes = label_fields(spec, settings, torch.device("cpu"))
    networks = export_networks(depth, labels, args.precision, **classes)
    kind = _kind(args, all_outputs(networks, args.step))
    if args.step:
        module: FrameModule = StepModule(networks, kind, settings, not args.no_float64)
    else:
        module = FrameModule(networks, kind, settings)
    if not args.parity_only:
        module.write(args.out, args.batch or 1, source, args.external_data)
        print(written(args.out))
    if not (args.parity or args.parity_only):
        return True
    frames, tolerance = 60 if args.step else 3, TOLERANCES[args.precision]
    if args.step:
        session = StepSession(args.out, providers=["CPUExecutionProvider"])
        found = compare_step(session, networks, settings, _video(kind, frames))
    else:
        pixels = (np.stack([one.pixels] * (args.batch or 1)) for one in _video(kind, frames))
        found = compare_frame(args.out, module, pixels)
    return _judge(found, tolerance, frames)


def _exported_precision(args: argparse.Namespace) -> str:
    """Of an existing file, which has to be of the kind that the arguments say."""
    found = {key: json.loads(value) for key, value in read_metadata(args.out).items()}
    kind, wanted = found.get(KIND), "step" if args.step else "frame"
    if kind != wanted:
        what = f"a {kind}" if kind else "foreign"
        raise ValueError(f"{args.out} is not a {wanted}, but {what}.")
    spec, asked = found[SPEC], _kind(args, OutputRequest())
    mine = (spec["encoding"], tuple(spec["pixels"]), spec["batch"])
    if mine != (asked.encoding, asked.shape, args.batch or 1):
        raise ValueError(
            f"{args.out} is for {mine[0]}, pixels {mine[1]}, batch {mine[2]}: give --encoding,"
            " --image-size and --batch as at its export."
        )
    return str(found[PRECISION])


def written(path: Path) -> str:
    """What to print about a file that is written."""
    both = (path, path.with_name(f"{path.name}.data"))
    sizes = [f"{one} ({one.stat().st_size / 1e6:.1f} MB)" for one in both if one.is_file()]
    return f"Written: {', '.join(sizes)}"


def _kind(args: argparse.Namespace, outputs: OutputRequest) -> Kind:
    height, width = args.image_size or (480, 640)
    name = args.encoding or "rgb8"
    encoding = find_encoding(name)
    channels = (encoding.channels,) if encoding.channels else ()
    shape = (round(height * encoding.planes), width, *channels)
    check_shape(shape, name)
    return Kind(name, shape, np.dtype(encoding.dtype).name, outputs)


def _video(kind: Kind, count: int) -> Iterator[Frame]:
    """A pattern of any encoding that moves two pixels per frame, with one gap in time."""
    random = np.random.default_rng(0)
    coarse = random.random((-(-kind.shape[0] // 16), -(-kind.shape[1] // 16), *kind.shape[2:]))
    fine = random.random(kind.shape)
    pattern = coarse.repeat(16, 0).repeat(16, 1)[: kind.shape[0], : kind.shape[1]]
    pattern = 0.8 * pattern + 0.2 * fine
    if kind.dtype != "float32":
        pattern *= np.iinfo(kind.dtype).max
    pixels = pattern.astype(kind.dtype)
    for number in range(count):
        stamp = (number + 1) * 33_333_333 + (number > _GAP_AFTER) * 10**9
        moved = np.ascontiguousarray(np.roll(pixels, 2 * number, 1))
        yield Frame(moved, kind.encoding, stamp)


def _judge(found: Mapping[str, float], tolerance: float, frames: int) -> bool:
    """Print the largest differences; whether all that is bounded is within its bound."""
    most = {"labels": 10 * tolerance, "reset": 0.0, "scale": 0.0}
    most |= dict.fromkeys(("depth", "inverse", "deviation"), 3 * tolerance)
    bounds = {name: f"{most[name]:.0e}" if name in most else "-" for name in found}
    rows = [(name, f"{value:.1e}", bounds[name]) for name, value in found.items()]
    print(table(("output", "difference", "at most"), rows))
    wrong = [name for name, value in found.items() if not value <= most.get(name, np.inf)]
    print(
        f"{frames} frames; of labels, confidence and single pixels the share that differs: "
        + (f"{', '.join(wrong)} differ by more." if wrong else "equal.")
    )
    return not wrong
