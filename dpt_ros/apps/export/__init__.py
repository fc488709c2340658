# SPDX-License-Identifier: Apache-2.0
"""dpt_export: a network, or a whole frame with it, as an ONNX file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from dpt_ros.apps.command_line import fail, new_parser, size_of
from dpt_ros.model.zoo import ZOO, unknown_model

EXAMPLES = """examples:
  the embedded network, any batch and size, compared with PyTorch afterwards:
    dpt_export dpt_hybrid_embedded embedded.onnx --parity
  a published network in half precision, one fixed shape, for TensorRT:
    dpt_export dpt_large_midas large.onnx --weights download --precision fp16 --batch 1 \\
      --size 384x384
  a network of dpt_train:
    dpt_export runs/mine/dpt_hybrid_embedded.safetensors mine.onnx
  from a camera's NV12 pixels to metres, labels and confidence:
    dpt_export dpt_hybrid_embedded frame.onnx --frame --encoding nv12 --image-size 480x640
  the same with scale and smoothing, the state as inputs and outputs:
    dpt_export dpt_hybrid_embedded step.onnx --step --image-size 480x640 -p scale.source:=anchors
  an existing file compared with PyTorch:
    dpt_export dpt_hybrid_embedded embedded.onnx --parity-only

exit codes: 0 written (and equal), 1 not written or not equal, 2 wrong arguments
"""
_WEIGHTS = ("download", "random")
_size = partial(size_of, expected="no HEIGHTxWIDTH, such as 480x640")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "dpt_export",
        "Write a network as an ONNX file (opset 18) for ONNX Runtime, TensorRT,"
        " OpenVINO and others: normalised images to inverse depth and logits; with --frame a"
        " camera's pixels to depth and labels; with --step the same with scale and smoothing.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("network", metavar="NETWORK", help="name of a network, or a file of dpt_train")
    add("out", metavar="OUT", type=Path, help="the file to write, such as depth.onnx")
    add("--weights", metavar="WEIGHTS", help="a file, download or random; default: the cached"
        " file, else the shipped one")  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--frame", action="store_true", help="export preprocessing and outputs, too")
    what.add_argument("--step", action="store_true", help="export scale and smoothing, too")
    add("--precision", choices=("fp32", "fp16"), default="fp32",
        help="of weights and activations, not of inputs and outputs (default: fp32)")  # fmt: skip
    batch = "fixed batch (default: any; 1 of a frame or step)"
    add("--batch", type=_count, metavar="N", help=batch)
    add("--size", type=_size, metavar="HxW", help="of the network's input, fixed (default: any; of"
        " a frame that of the node)")  # fmt: skip
    add("--encoding", metavar="NAME", help="of the camera's pixels (default: rgb8)")
    add("--image-size", type=_size, metavar="HxW", help="of the camera's image (default: 480x640)")
    add("-p", dest="given", action="append", default=[], metavar="NAME:=VALUE",
        help="a parameter of the node, for --frame and --step; may be repeated")  # fmt: skip
    add("--no-float64", action="store_true", help="estimate the scale of a step in float32, for"
        " TensorRT and others without float64")  # fmt: skip
    add("--external-data", action="store_true", help="put the weights into OUT.data; done without"
        " asking above 2 GB")  # fmt: skip
    parity = parser.add_mutually_exclusive_group()
    parity.add_argument("--parity", action="store_true",
        help="afterwards run the file with ONNX Runtime and compare it with PyTorch")  # fmt: skip
    parity.add_argument("--parity-only", action="store_true",
        help="write nothing, compare an existing file")  # fmt: skip
    add("--threads", type=_count, default=os.cpu_count() or 1, metavar="N",
        help="CPU threads of the comparison (default: all cores)")  # fmt: skip
    return parser


def _mistakes(args: argparse.Namespace) -> Iterator[str]:
    """The error messages on wrong arguments, as far as they are known without torch."""
    if args.network not in ZOO:
        if not Path(args.network).expanduser().is_file():
            is_file = args.network.endswith((".safetensors", ".pt", ".pth", ".bin"))
            missing = f"The file {args.network} does not exist."
            yield missing if is_file else unknown_model(args.network)
        if args.weights is not None:
            yield f"{args.network} has the weights itself: leave --weights {args.weights} out."
    elif args.weights not in (None, *_WEIGHTS) and not Path(args.weights).expanduser().exists():
        missing = f"--weights: the file {args.weights} does not exist."
        yield f"{missing} Give a file, download or random."
    if not (args.frame or args.step):
        camera = {"--encoding": args.encoding, "--image-size": args.image_size, "-p": args.given}
        if wrong := [name for name, value in camera.items() if value]:
            yield f"{' and '.join(wrong)}: only with --frame or --step."
    step = ZOO[args.network].multiple_of if args.network in ZOO else 1
    if args.size and any(side % step for side in args.size):
        yield (
            f"--size is {args.size[0]}x{args.size[1]}, but height and width must be multiples of"
            f" {step} for {args.network}."
        )
    if args.no_float64 and not args.step:
        yield "--no-float64: only with --step; networks and frames have no float64."
    if args.step and (args.parity or args.parity_only) and (args.batch or 1) > 1:
        yield f"--batch is {args.batch}, but a step is compared with one camera: leave it out."
    if args.parity_only and args.external_data:
        yield "--external-data: nothing is written with --parity-only."
    yield from _file_mistakes(args)


def _file_mistakes(args: argparse.Namespace) -> Iterator[str]:
    packages = [] if args.parity_only else ["onnx", "onnxscript"]
    packages += ["onnxruntime"] if args.parity or args.parity_only else []
    if missing := [name for name in packages if find_spec(name) is None]:
        yield f"Packages are missing: pip install {' '.join(missing)}."
    out = args.out
    if args.parity_only:
        if not out.is_file():
            yield f"The file {out} does not exist."
        return
    if out.suffix != ".onnx":
        yield f"{out} cannot be written: give a name that ends in .onnx."
    if not out.parent.is_dir():
        yield f"{out} cannot be written: the folder {out.parent} does not exist."
    if out.is_dir():
        yield f"{out} cannot be written: it is a folder."
    if not os.access(out.parent, os.W_OK):
        yield f"{out} cannot be written: no permission to write to the folder {out.parent}."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_export``. Returns the exit code."""
    args = _parser().parse_args(argv)
    args.out = args.out.expanduser()
    if mistake := next(_mistakes(args), ""):
        return fail("dpt_export", mistake, 2)
    from dpt_ros.apps.export.command import run

    return run(args)
