# SPDX-License-Identifier: Apache-2.0
"""dpt_run: depth and labels of pictures, videos and webcams, without ROS."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpt_ros.apps.command_line import add_parameters, fail, new_parser, unknown
from dpt_ros.model.zoo import list_models, unknown_model
from dpt_ros.run import OUTPUTS, PICTURE_OUTPUTS, VIDEO_OUTPUTS

EXAMPLES = f"""outputs (default: {", ".join(PICTURE_OUTPUTS)}; of videos and webcams: video):
{chr(10).join(f"  {name:8} {text}" for name, text in OUTPUTS.items())}

examples:
  a folder of pictures, with the embedded network:
    dpt_run photos results
  metres as published for NYU (millimetres in 16 bits), and arrays:
    dpt_run photos results --network dpt_hybrid_nyu --weights download --absolute-depth \\
      --outputs png,npy
  depth and labels of a video by two networks, as one video of image, depth and labels:
    dpt_run drive.mp4 results --network dpt_hybrid_kitti --network dpt_hybrid_ade20k \\
      --weights download -p color_range:=80.0
  a webcam, until Ctrl-C:
    dpt_run 0 results
After an interruption the same command passes over the pictures that are complete; a video is
started anew.

exit codes: 0 done; 1 failed; 2 wrong arguments; 3 done, but parts of the input could not be read;
130 interrupted.
"""


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "dpt_run",
        "Depth and labels of pictures, as isl-org/DPT computes and writes them, and"
        " of videos and webcams, steady over time. Needs no ROS.",
        EXAMPLES,
        "dpt_run IN OUT [options]",
    )
    add = parser.add_argument
    add("source", metavar="IN",
        help="a picture, a video, a folder of them, or a webcam: 0 or /dev/video0")  # fmt: skip
    add("out", metavar="OUT", type=Path, help="folder for the results")
    add("--network", action="append", default=[], metavar="NAME",
        help="network, for all that it predicts; again for a second one (default: a downloaded"
        " one, else the embedded)")  # fmt: skip
    weights = "of the networks: a file, download, or random (default: those at hand)"
    add("--weights", default="", metavar="FILE", help=weights)
    add_parameters(parser)
    add("--outputs", type=lambda text: tuple(dict.fromkeys(text.split(","))), metavar="NAME,...",
        help="what to write, with commas between")  # fmt: skip
    add("--absolute-depth", action="store_true",
        help="write depth itself into the PNG, not stretched over its 16 bits")  # fmt: skip
    add("--kitti-crop", action="store_true",
        help="only the bottom centre 352 x 1216, as KITTI's benchmark does")  # fmt: skip
    add("--recursive", action="store_true", help="look into sub folders of IN")
    add("--every", type=int, default=1, metavar="N", help="of videos, take every Nth frame")
    add("--overwrite", action="store_true", help="replace what dpt_run wrote with other settings")
    return parser


def _mistakes(args: argparse.Namespace) -> Iterator[str]:
    """The error messages on wrong arguments."""
    yield from unknown("--outputs: unknown output", args.outputs or (), OUTPUTS)
    if args.every < 1:
        yield f"--every is {args.every}, but must be positive."
    for name in args.network:
        if name not in list_models():
            yield f"--network: {unknown_model(name)}"
    if args.weights and not args.network:
        yield "--weights needs --network, which names the network that they are of."
    named = args.weights in ("", "download", "random")
    if not named and not Path(args.weights).expanduser().exists():
        yield f"--weights: the file {args.weights} does not exist."
    if not named and len(args.network) > 1:
        yield (
            "--weights is one file, but there are several networks; give -p depth_weights:=FILE."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_run``. Returns the exit code."""
    args = _parser().parse_args(argv)
    args.outputs_by_kind = {
        "picture": [name for name in args.outputs or PICTURE_OUTPUTS if name != "video"],
        "video": args.outputs or VIDEO_OUTPUTS,
    }
    if mistake := next(_mistakes(args), ""):
        return fail("dpt_run", mistake, 2)
    from dpt_ros.apps.run.command import run

    return run(args)
