# SPDX-License-Identifier: Apache-2.0
"""The demo: a player, the node and this process, which records, talk over DDS as on a robot; then
scores and pictures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from rclpy.executors import ExternalShutdownException

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.demo import bag
from dpt_ros.apps.demo.pictures import Images, contact_sheet, video
from dpt_ros.metrics.depth import Confusion, depth_metrics
from dpt_ros.ros.share import transport_environment
from dpt_ros.world import CLASSES

NAMESPACE = "/dpt_demo"
IN_NAMESPACE = ("--ros-args", "-r", f"__ns:={NAMESPACE}")
# With seeds that the embedded network was not trained on.
SCENES = (("room", 9001), ("corridor", 9001), ("yard", 9001))


def run(out: Path, seconds: float, rate: float) -> int:
    """Run the demo. Returns the exit code of ``dpt_demo``; ``out``: folder for the results;
    ``seconds``: of each scene; ``rate``: of the camera, frames per second."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Only those of an earlier demo: the folder may hold something else.
        for name in ("camera", "predictions"):
            if (out / name / "metadata.yaml").exists():
                shutil.rmtree(out / name)
        return _run(out, seconds, rate)
    except OSError as error:
        return fail("dpt_demo", f"{error}; choose a writable folder with --out.", 1)
    except (KeyboardInterrupt, ExternalShutdownException):
        return fail("dpt_demo", "interrupted.", 130)


def _run(out: Path, seconds: float, rate: float) -> int:
    """Make the bag, replay it, record, score, draw. Returns the exit code."""
    camera, recorded, times = out / "camera", out / "predictions", out / "sent.csv"
    count = max(2, round(seconds * rate))
    print(f"1/4  Rendering {len(SCENES)} synthetic scenes of {count} frames into {camera}")
    bag.write_camera_bag(camera, SCENES, count, rate)

    print("2/4  Replaying them into the node over ROS 2, recording its output")
    os.environ.update(transport_environment())
    node_command = ["dpt_ros.ros.dpt_node", *IN_NAMESPACE]
    player_command = ["dpt_ros.apps.bag_player", str(camera), "--times", str(times)]
    player_command += ["--wait", "90", "--topics", "image", "camera_info", "odom", *IN_NAMESPACE]
    with (
        (out / "node.log").open("wb") as log,
        _running(node_command, log) as node,
        _running(player_command) as player,
    ):
        total = len(SCENES) * count
        arrived = bag.record(recorded, NAMESPACE, total, lambda: player.poll() is None)
        if node.poll() is not None or player.wait() != 0 or not arrived:
            end = Path(log.name).read_text(errors="replace").splitlines()[-15:]
            about = f"The node published no depth. The end of its log ({log.name}):"
            print(about, *end, sep="\n", file=sys.stderr)
            return 1

    print("3/4  Comparing with the ground truth")
    sent = np.loadtxt(times, delimiter=",", dtype=np.int64, ndmin=2)
    frames = list(bag.read_frames(camera, recorded))
    lines = score(frames, sent, arrived, rate)
    table = "\n".join(f"  {name:<34}{value}" for name, value in lines)
    (out / "results.txt").write_text(table + "\n")

    print("4/4  Drawing pictures")
    contact_sheet(out / "contact_sheet.png", frames)
    video(out / "demo.mp4", frames, rate)
    print(f"\n{table}\n")
    print(_next_steps(out))
    return 0


@contextmanager
def _running(
    command: Sequence[str], log: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m COMMAND`` as a process that is stopped at the end."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def score(
    frames: Iterable[Images], sent: np.ndarray, arrived: dict[int, int], rate: float
) -> list[tuple[str, str]]:
    """The rows of the table of results, name and value, of the frames of ``contact_sheet``.

    Args:
        sent: (N, 2) int64, stamp and monotonic time of publishing, ns.
        arrived: monotonic time of the depth image's arrival, ns, by stamp.
        rate: of the camera, frames per second.
    """
    confusion = Confusion(len(CLASSES))
    depth = []
    for shown in frames:
        depth.append(depth_metrics(shown[bag.DEPTH], shown[bag.TRUE_DEPTH]))
        confusion.add(shown[bag.LABELS], shown[bag.TRUE_LABELS])
    labels = confusion.metrics()
    latency = [(arrived[stamp] - wall) / 1e6 for stamp, wall in sent if stamp in arrived]
    middle, high = np.percentile(latency, [50, 99])
    # The median, because of the pauses between scenes.
    interval = np.median(np.diff(sorted(arrived.values()))) if len(arrived) > 1 else np.nan
    abs_rel, delta1 = (np.nanmean([one[key] for one in depth]) for key in ("abs_rel", "delta1"))
    return [
        ("frames in / out", f"{len(sent)} / {len(arrived)}"),
        ("rate in / out", f"{rate:.1f} / {1e9 / interval:.1f} frames/s"),
        ("latency p50 / p99, image to depth", f"{middle:.0f} / {high:.0f} ms"),
        ("depth AbsRel / delta1", f"{abs_rel:.3f} / {delta1:.3f}"),
        ("labels mIoU / pixel accuracy", f"{labels['miou']:.3f} / {labels['pixel_accuracy']:.3f}"),
    ]


def _next_steps(out: Path) -> str:
    return f"""Results: {out / "contact_sheet.png"}, {out / "demo.mp4"}, and the bags beside them.

Next, in an environment with dpt_ros (source .venv/bin/activate):
  your camera         dpt_node --ros-args -r image:=/camera/image_rect
  the node's state    dpt_status
  a ROS install       ros2 launch dpt_ros dpt.launch.py image:=/camera/image_rect
  your bag            dpt_bag MY_BAG OUT
  look at it in 3-D   dpt_view {out / "camera"} {out / "predictions"} --classes world
  published networks  dpt_node --ros-args
                          -p depth_network:=dpt_hybrid_nyu -p depth_weights:=download
                          -p label_network:=dpt_hybrid_ade20k -p label_weights:=download"""
