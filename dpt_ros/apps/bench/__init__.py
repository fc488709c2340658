# SPDX-License-Identifier: Apache-2.0
"""Measures dpt_ros on this machine; prints a table and, if asked, writes JSON."""

# The commands' options, and how each measures. Apart from the measuring modules, because help and
# wrong arguments must not wait for torch and rclpy.

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from dpt_ros.apps.command_line import size_of
from dpt_ros.engine.settings import Settings, common_name, parameter_name
from dpt_ros.model.zoo import list_models, unknown_model
from dpt_ros.version import add_version

CPU_METHOD = """\
One process; every arm once per round, in random order, network only, batch 1; two calls before the
first round. Rounds in which other processes used more than the allowed share of the machine are
discarded and counted. The speed-up is the median of the ratios inside the rounds to the plain
network in float32 as create_model gives it for training (weights standardised at every forward).
Plain ONNX Runtime runs the network exported at this size, with default options of the session.
Parity is against the first arm: mean |difference| / depth, on noise. Random weights amplify
rounding, so parity is then less meaningful than with a trained network."""
ENGINE_METHOD = """\
Each row in a process of its own, one after another. Networks: a call begins with the camera's
rgb8 bytes on the device and ends with float32 depth and/or uint8 labels of the network's size on
the device ("ours, from host" begins and ends in host memory). Latency by CUDA events around the
call and by wall clock, back to back and paced (one call per period, the GPU idle in between);
throughput without waiting between the calls. Parity is against the first arm (plain, fp32, TF32
off): mean |difference| / depth, and the share of equal labels; random weights amplify rounding, so
parity is then less meaningful than with a trained network, and unknown where depth is 0
everywhere. The floor is the sum over all convolutions, matrix products and attentions of the
larger of arithmetic and traffic at the rates measured here, over the median of the events.
Frames: the node's default settings, smoothing included, from rgb8 in host memory to depth and
labels there; cameras of one batch; device time is the sum of upload, compute and download by
events; throughput with as many batches in flight as the node has.
Kernels are counted, and a trace is taken, after all times."""
NODE_METHOD = """\
Processes on one host, over DDS: a camera, dpt_node, a monitor. All stamps are of one monotonic
clock. The camera reads the stamp just before it publishes an image made beforehand, on a schedule
that does not wait for answers (open loop); several cameras are triggered together. The monitor
takes the time when it holds the serialised message. A frame has returned when all requested
outputs have arrived. The echo has the node's topics, message sizes, QoS and profile and computes
nothing: the floor of transport. Echo and node take turns, run by run, with all processes up all
the time.

sent = back + lost + dropped. dropped: the arm reports on /diagnostics that a newer frame replaced
the frame, or that it failed. lost: not reported. late: took longer than a period. order: arrived
after a newer frame. jitter: mean of the absolute second difference of arrival times, as in
ros2_benchmark. Times are in milliseconds. cpu: percent of one core, per process; other: all other
processes, percent of the whole machine."""
TEMPORAL_METHOD = """\
Videos of the synthetic world from seeds that no shipped network was trained on, with true depth,
labels, flow and poses; people walk in all of them. What is smoothed:
  noise     the truth with a noise model: scale 4 %, smooth field 3.5 %, bias 4 %, flutter 0.9 px
  anchored  the same, each frame fitted to 58 points of a planar scan by Theil-Sen; the filter gets
            the frame and the fit, the others the fitted frame
  network   the embedded network's predictions
All methods get the same frames. Odometry errs by 0.03 degrees, 2 % and 1 mm per frame; x5 is that
times five; jumps are of 0.3 m and 5 degrees, every 15 frames. The minute has 10 frames/s, half the
size and no network; std leaves out the first 15 frames."""

_CAMERA_SIZES = {"vga": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080)}
CPU_ARMS = (
    "torch eager fp32", "torch eager bf16, folded, channels_last", "plain ONNX Runtime fp32",
    "ours fp32", "ours bf16", "ours, ONNX Runtime fp32", "ours, OpenVINO fp32",
    "ours, OpenVINO bf16",
)  # fmt: skip
ENGINE_ARMS = (
    "plain fp32", "plain fp16", "transformers fp16", "compile max-autotune fp16",
    "ours, no graph", "ours, compiled", "ours", "ours, from host",
)  # fmt: skip
# The network's input and the camera's image that is resized to it, height x width.
ENGINE_SIZES = {
    (384, 384): (480, 480), (384, 512): (480, 640), (384, 672): (720, 1280), (480, 640): (480, 640)
}  # fmt: skip
TEMPORAL_SOURCES = ("anchored", "noise", "network")
# condition: its video (``temporal.shots.SHOTS``) and the odometry
TEMPORAL_CONDITIONS = {
    name: (name, "normal")
    for name in ("moving", "turning", "standing", "exposure", "15 fps", "7.5 fps", "cut", "step")
} | {
    "odometry x5": ("moving", "x5"),
    "odometry jumps": ("moving", "jumps"),
    "no odometry": ("moving", "none"),
    "minute": ("minute", "normal"),
}


_input_size = partial(size_of, expected="not HEIGHTxWIDTH")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the method, and adds defaults that are numbers or words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = isinstance(action.default, (str, int, float)) and action.nargs != 0
        return f"{action.help} (default %(default)s)" if shown else f"{action.help}"


def _cpu(add: Callable[..., Any]) -> None:
    add("--network", type=_network, default="dpt_hybrid_midas", help="its name")
    add("--weights", type=_weights, default="random", help="as create_model takes them")
    add("--size", type=_input_size, default="384x384", help="height x width of the input")
    add("--threads", type=_count, help="default: torch's choice")
    add("--rounds", type=_count, default=12, help="that count")
    add("--seconds", type=_positive, default=240.0, help="at most, for the rounds")
    add("--load", type=float, default=0.12, help="share of the machine that others may use")
    add("--arms", nargs="+", choices=CPU_ARMS, default=CPU_ARMS, help="what to run")
    add("--json", type=_file, help="write the results to this file")


def _engine(add: Callable[..., Any]) -> None:
    tasks, networks = ("depth", "labels", "both"), ("one", "two")
    add("--tasks", nargs="*", choices=tasks, default=tasks, help="of the networks' rows")
    add("--sizes", nargs="+", type=_input_size, default=[*ENGINE_SIZES], help="height x width")
    add("--batches", nargs="+", type=_count, default=[1], help="images per call")
    add("--depth-network", type=_network, default="dpt_hybrid_midas", help="its name")
    add("--label-network", type=_network, default="dpt_hybrid_ade20k", help="its name")
    add("--weights", type=_weights, default="random", help="random, download, or '' for the cache")
    add("--arms", nargs="+", default=[*ENGINE_ARMS], choices=ENGINE_ARMS, help="what to run")
    add("--cameras", nargs="*", type=_count, default=[1, 2, 4], help="of whole frames; or none")
    add("--networks", nargs="+", default=networks, choices=networks,
        help="of whole frames: the embedded one for both tasks, or the two above")  # fmt: skip
    add("--pictures", nargs="+", type=_input_size, default=[(480, 640)], help="of the cameras")
    add("--rounds", type=_count, default=300, help="calls that count")
    add("--warm-up", type=int, default=50, help="calls before them")
    add("--rate", type=float, default=30.0, help="paced calls per second")
    add("--paced-rounds", type=int, default=150, help="paced calls that count; 0 for no pacing")
    add("--parity", type=float, default=0.02, help="largest mean relative error")
    add("--device", default="cuda", help="where to run")
    add("--timeout", type=float, default=600.0, help="seconds for one row")
    add("--profile", type=_file, help="write a trace of three frames (chrome://tracing)")
    add("--json", type=_file, help="write each row as a line when it is measured")
    add("--rehearse", action="store_true", help="run all of it with small images and few rounds")


def _node(add: Callable[..., Any]) -> None:
    networks, vga = "dpt_hybrid_embedded", [_CAMERA_SIZES["vga"]]
    outputs = ("depth", "depth+labels")
    add("--runs", type=_count, default=3, help="of each arm")
    add("--seconds", type=_positive, default=5.0, help="of a run, after warm-up")
    add("--warm-up", type=_positive, default=1.0, help="seconds before each run")
    add("--rate", type=_rate, help="frames/s, or auto, the default: what the machine sustains")
    add("--cameras", type=_count, nargs="+", default=[1], help="how many")
    add("--size", type=_camera_size, nargs="+", default=vga, help="vga, 720p, 1080p or WxH")
    add("--transport", choices=("raw", "jpeg"), nargs="+", default=["raw"], help="of the images")
    add("--outputs", choices=outputs, nargs="+", default=["depth"], help="what is requested")
    add("--profile", choices=("shipped", "default"), nargs="+", default=["shipped"],
        help="of Fast DDS")  # fmt: skip
    add("--network", type=_network, default=networks, help="depth network")
    add("--label-network", type=_network, default=networks, help="used with depth+labels")
    add("--weights", type=_weights, help="of the depth network: a file, download or random")
    add("--label-weights", type=_weights,
        help="of the label network; --weights, if both networks are the same")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"), help="the node's")
    add("-p", dest="parameters", action="append", default=[], metavar="NAME:=VALUE",
        type=_parameter, help="another parameter of the node")  # fmt: skip
    add("--load", type=int, default=0, help="busy processes beside the node")
    add("--peak", action="store_true", help="find the highest rate with < 5 %% missing, too")
    add("--json", type=_file, help="write the results to this file")


def _temporal(add: Callable[..., Any]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    add("--quick", action="store_true", help="fewer frames and conditions, one seed, noise only")
    add("--source", nargs="+", choices=[*TEMPORAL_SOURCES, "both"], help="default: all")
    add("--conditions", nargs="+", choices=[*TEMPORAL_CONDITIONS], metavar="NAME",
        help=f"of: {', '.join(TEMPORAL_CONDITIONS)}; default: all")  # fmt: skip
    add("--frames", type=int, help="per video, default 60; the minute has 600")
    add("--seeds", type=int, help="videos per condition, default 2")
    add("--size", type=_video_size, default=(320, 240), metavar="WxH", help="default 320x240")
    add("--workers", type=int, default=min(cores, 4), help="processes")
    add("--cache", type=Path, metavar="DIR", help="keep the network's predictions here")
    add("--device", default="cpu", help="where the filter runs: cpu or cuda")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the filter")
    add("--json", type=_file, metavar="FILE", help="write all numbers")
    add("--picture", type=_file, metavar="FILE", help="draw a strip of frames and a slice")
    add("--gif", type=_file, metavar="FILE", help="draw an animation, the filter off and on")
    add("--check", action="store_true", help="exit with 1 if a target is missed")


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1000")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e5:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _rate(text: str) -> float | None:
    return None if text == "auto" else _positive(text)


def _camera_size(text: str) -> tuple[int, int]:
    expected = f"neither one of {', '.join(_CAMERA_SIZES)} nor of the form 640x480, at least 32x32"
    return _CAMERA_SIZES.get(text) or size_of(text, expected, 32)


def _video_size(text: str) -> tuple[int, int]:
    return size_of(text, "not of the form 320x240, even and at least 64 pixels", 64, 2)


def _network(text: str) -> str:
    if text not in list_models():
        raise argparse.ArgumentTypeError(unknown_model(text))
    return text


def _weights(text: str) -> str:
    if text not in ("", "download", "random") and not Path(text).expanduser().is_file():
        raise argparse.ArgumentTypeError(f"the file {text} does not exist")
    return text


def _file(text: str) -> Path:
    """A file to write when all is measured, which is too late to find out that it cannot be."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the file {text} cannot be written")
    return path


def _parameter(text: str) -> tuple[str, str]:
    name, found, value = text.partition(":=")
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME:=VALUE")
    if common_name(name) not in map(parameter_name, fields(Settings)):
        raise argparse.ArgumentTypeError(f"'{name}' is not a parameter of the node")
    return name, value


# Module with run(args) -> exit code, imported only when it runs: the networks' need no ROS, the
# node's no Triton; help; how it measures; example; options.
COMMANDS: dict[str, tuple[str, str, str, str, Callable[[Callable[..., Any]], None]]] = {
    "node": ("node.command", "the whole node: stamp to depth in another process, beside an echo"
        " without inference", NODE_METHOD, """\
The full measurement: dpt_bench node --runs 5 --seconds 60 --rate 30 --cameras 1 2 4
--size vga 720p --transport raw jpeg --outputs depth depth+labels --peak""", _node),
    "engine": ("network.engine", "the networks on a GPU, beside other ways to run them",
        ENGINE_METHOD, "Example: dpt_bench engine --tasks depth --sizes 384x384 --json"
        " engine.jsonl", _engine),
    "cpu": ("network.cpu", "the networks on a CPU, beside other ways to run them", CPU_METHOD,
        "Example: dpt_bench cpu --network dpt_hybrid_embedded --weights '' --size 240x320", _cpu),
    "temporal": ("temporal.command", "the temporal filter: its effect and its cost",
        TEMPORAL_METHOD, "Example: dpt_bench temporal --quick --source noise --conditions moving"
        " cut", _temporal),
}  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options; ``error`` ends it with a message about a wrong option."""
    parser = argparse.ArgumentParser(
        prog="dpt_bench", description=__doc__, epilog="Example: dpt_bench node --json node.json"
    )
    add_version(parser)
    known = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, (_, text, method, example, add_options) in COMMANDS.items():
        command = known.add_parser(
            name, help=text, description=method, epilog=example, formatter_class=_Formatter
        )
        add_version(command)
        add_options(command.add_argument)
        command.set_defaults(error=command.error)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of dpt_bench; returns its exit code."""
    args = parse(argv)
    module = importlib.import_module(f"{__name__}.{COMMANDS[args.command][0]}")
    return int(module.run(args))
