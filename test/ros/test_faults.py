# SPDX-License-Identifier: Apache-2.0
"""What happens on robots: cameras, clocks, disks, networks and processes that fail.

One node runs through most of it, watched: whatever happens, each output has the stamp of an image
that was sent, the size of that image, and depth in the network's range (``soak.frames.Watch``).
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from helpers.bags import write
from helpers.downloads import CONTENT, sha256
from helpers.places import ROOT
from helpers.ros_processes import Domain, Process, ros_domain, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from soak.frames import Watch, image_of, size_of
from soak.lifecycle import TRANSITIONS, random_walk
from soak.run import CAMERA, EMBEDDED, latency_growth, soak

from dpt_ros.data import class_names
from dpt_ros.model import download
from dpt_ros.model.download import DownloadError

RATE = 10.0
# A small input, for the load is of frames.
SMALL = {**EMBEDDED, "input_width": 96, "input_height": 64, "diagnostics_period": 0.2}
PROFILE = str(ROOT / "config" / "fastdds.xml")
PROFILES = {  # Kilted and later; Jazzy and before
    "FASTDDS_DEFAULT_PROFILES_FILE": PROFILE,
    "FASTRTPS_DEFAULT_PROFILES_FILE": PROFILE,
}
SIZES = (160, 120), (320, 240)

LISTENER = """
import rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("listener")
node.create_subscription(Image, "depth/image", lambda m: print("got", flush=True), 10)
rclpy.spin(node)
"""
TWO_NODES = """
import sys
import rclpy
from rclpy.executors import SingleThreadedExecutor
from dpt_ros.ros.dpt_node import DptNode
rclpy.init(args=sys.argv)
executor = SingleThreadedExecutor()
for name in ("left", "right"):
    executor.add_node(DptNode(namespace=name))
executor.spin()
"""
STUCK = """
import hashlib
import sys
from dpt_ros.ros import dpt_node
def load_networks(settings):
    print("stuck", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # for many minutes, deaf to signals
dpt_node.load_networks = load_networks
sys.exit(dpt_node.main())
"""
FETCH = """
import sys
from pathlib import Path
from dpt_ros.model.download import fetch
fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


class Robot:
    """A node, a watch of what it says, and cameras that come and go."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.dpt = self.start()
        self.watch = Watch(domain.node, classes=len(class_names("labels_world.json")))
        self.depths = self.watch.arrivals["depth/image"]
        domain.wait_for_state("active")

    def start(self) -> Process:
        """The node's process, with the Fast DDS profile that the launch file gives it."""
        self.domain.env |= PROFILES
        dpt = self.domain.start_dpt(**SMALL)
        for name in PROFILES:
            del self.domain.env[name]
        return dpt

    @contextmanager
    def camera(self, *options: str, size: tuple[int, int] = SIZES[0]) -> Iterator[Process]:
        """A camera that has sent its first image; it is gone at the end."""
        camera = self.domain.start(CAMERA, *map(str, size), "--rate", str(RATE), *options)
        self.domain.spin_until(lambda: "first image at" in camera.output)
        try:
            yield camera
        finally:
            if camera.running:
                camera.end()
        self.domain.spin_for(0.3)  # what was on its way

    def at_full_rate(self, since: float, seconds: float = 1.5) -> None:
        """Outputs come at the camera's rate, from one second after ``since`` on."""
        begin, end = since + 1.0, since + 1.0 + seconds
        self.domain.spin_for(max(0.0, end - time.monotonic()))
        came = [at for _, at in self.depths if begin < at <= end]
        # A frame now and then gives way on a busy machine; half of them would not be the rate.
        assert len(came) > 0.7 * RATE * seconds, self.domain.diagnostics("dpt: image")

    def flowing(self) -> None:
        """Outputs come now."""
        seen = len(self.depths), self.depths[-1] if self.depths else None
        self.domain.spin_until(
            lambda: self.depths and (len(self.depths), self.depths[-1]) != seen, 20
        )

    def count(self, name: str) -> int:
        """One of the counts of the camera's status, 0 if it is not there."""
        return int(self.domain.diagnostics("dpt: image").get(name, 0))


@pytest.fixture(scope="module")
def running() -> Iterator[Robot]:
    with ros_domain() as domain:
        robot = Robot(domain)
        yield robot
        code, seconds = robot.dpt.end()
        assert (code, seconds < 2.0) == (0, True), robot.dpt.output


@pytest.fixture
def robot(running: Robot) -> Iterator[Robot]:
    """The node of this file, which must have lived through a test and said nothing wrong."""
    yield running
    assert running.dpt.running, running.dpt.output
    assert running.watch.wrong == []
    assert "Traceback" not in running.dpt.output, running.dpt.output
    assert not [k for k in running.domain.diagnostics("dpt: image") if k.startswith("error")]


def first_image(camera: Process) -> float:
    """When a camera sent its first image, ``time.monotonic()``."""
    return float(camera.output.split("first image at ")[1].split()[0])


def test_a_camera_that_goes_and_returns_is_seen_at_full_rate_within_a_second(
    robot: Robot,
) -> None:
    returns = (
        (signal.SIGKILL, (), SIZES[0]),
        (signal.SIGTERM, ("--encoding", "mono8"), SIZES[1]),
        (signal.SIGKILL, ("--encoding", "bgr8", "--best-effort"), SIZES[0]),
        (signal.SIGTERM, (), SIZES[1]),
    )
    for end, options, size in returns:
        with robot.camera() as camera:
            robot.flowing()
            camera.end(end)
        robot.domain.spin_for(0.3)
        before = robot.watch.counts["depth/image"]
        robot.domain.spin_for(0.3)
        assert robot.watch.counts["depth/image"] == before
        with robot.camera(*options, size=size) as camera:
            start = first_image(camera)
            robot.at_full_rate(start)
            stamp, _ = robot.depths[-1]
            assert size_of(*divmod(stamp, 10**9)) == size
            first = next(at for _, at in robot.depths if at > start)
            print(f"\n{options}: first output {first - start:.2f} s after the first image")


def test_a_camera_that_stops_is_said_to_be_silent_and_goes_on(robot: Robot) -> None:
    with robot.camera() as camera:
        robot.flowing()
        os.kill(camera.pid, signal.SIGSTOP)
        robot.domain.spin_until(
            lambda: "No frames received" in robot.domain.diagnostics("dpt: image")["message"], 20
        )
        os.kill(camera.pid, signal.SIGCONT)
        robot.at_full_rate(time.monotonic())
        assert "No frames" not in robot.domain.diagnostics("dpt: image")["message"]


def test_a_bag_that_loops_jumps_back_in_time_and_every_round_is_seen(
    robot: Robot, tmp_path: Path
) -> None:
    def recorded() -> Iterator[tuple[int, str, Image | CameraInfo]]:
        for number in range(12):
            now = 1_700_000_000 * 10**9 + number * 10**8
            for topic, msg in zip(
                ("/camera_info", "/image"), image_of(now, *SIZES[0], number), strict=True
            ):
                yield now, topic, msg

    bag = write(tmp_path / "bag", recorded())
    jumps = robot.count("reset: stamp not newer") + robot.count("reset: gap")
    for _ in range(2):
        robot.watch.forget()
        player = robot.domain.start(
            "-m", "dpt_ros.apps.bag_player", str(bag), "--topics", "image", "camera_info"
        )
        robot.domain.spin_until(lambda player=player: not player.running)
        assert player.wait() == 0, player.output
        robot.domain.spin_for(0.3)
        assert len(robot.depths) > 8
    assert robot.count("reset: stamp not newer") + robot.count("reset: gap") >= jumps + 2


def test_a_clock_that_stops_or_jumps_stops_the_frames_that_are_too_old_only(
    robot: Robot,
) -> None:
    domain = robot.domain
    clock = domain.node.create_publisher(Clock, "/clock", 10)

    def tick(ahead: float, seconds: float) -> int:
        """Let the clock run, seconds ahead of the camera; how many outputs came."""
        before, deadline = robot.watch.counts["depth/image"], time.monotonic() + seconds
        while time.monotonic() < deadline:
            msg = Clock()
            msg.clock.sec, msg.clock.nanosec = divmod(time.time_ns() + int(ahead * 1e9), 10**9)
            clock.publish(msg)
            domain.spin_for(0.05)
        return robot.watch.counts["depth/image"] - before

    assert domain.set_parameter("use_sim_time", True) == ""
    assert domain.set_parameter("max_age", 1.0) == ""
    with robot.camera():
        robot.flowing()  # no clock yet
        tick(0, 0.4)
        assert tick(0, 0.8) > 0.5 * 0.8 * RATE
        before = robot.watch.counts["depth/image"]
        domain.spin_for(1.2)  # the clock stands still; the frames are younger than it says
        assert robot.watch.counts["depth/image"] - before > 0.5 * 1.2 * RATE
        tick(3600, 0.4)
        dropped = robot.count("dropped: older than max_age")
        assert tick(3600, 0.8) == 0
        assert robot.count("dropped: older than max_age") > dropped
        for ahead in (0, -3600):
            tick(ahead, 0.4)
            assert tick(ahead, 0.8) > 0.5 * 0.8 * RATE
    assert domain.set_parameter("use_sim_time", False) == ""
    assert domain.set_parameter("max_age", 0.0) == ""


def test_parameters_change_at_full_rate_and_no_output_is_half_the_one_and_half_the_other(
    robot: Robot,
) -> None:
    changes = (
        ("depth_encoding", ("16UC1", "32FC1")),
        ("smoothing.strength", (0.0, 0.5)),
        ("max_range", (4.0, 0.0)),
        ("color_range", (5.0, 10.0)),
    )
    with robot.camera():
        robot.flowing()
        start, number = time.monotonic(), 0
        while time.monotonic() < start + 2.5:
            for name, values in changes:
                assert robot.domain.set_parameter(name, values[number % 2]) == ""
                # Without a pause the calls alone fill the node's thread, on two cores.
                robot.domain.spin_for(0.04)
            number += 1
        robot.at_full_rate(start)
    assert number > 5
    for name, values in changes:
        assert robot.domain.set_parameter(name, values[1]) == ""


def test_subscribers_that_come_and_go_disturb_nobody(robot: Robot) -> None:
    topics = {
        "depth/points": PointCloud2,
        "depth/color": Image,
        "semantic/color": Image,
        "depth/image": Image,
    }
    with robot.camera(), robot.domain.another_node() as other:
        robot.flowing()
        start = time.monotonic()
        while time.monotonic() < start + 2.5:
            some = [other.create_subscription(k, t, print, 1) for t, k in topics.items()]
            robot.domain.spin_for(0.15)
            for one in some:
                other.destroy_subscription(one)
        robot.at_full_rate(start)


def test_a_subscriber_that_stands_still_or_is_killed_does_not_hold_up_the_others(
    robot: Robot,
) -> None:
    listener = robot.domain.start("-c", LISTENER)
    with robot.camera(size=SIZES[1]):  # 0.3 MB of depth: two fill the shared memory
        robot.domain.spin_until(lambda: "got" in listener.output)
        os.kill(listener.pid, signal.SIGSTOP)
        robot.at_full_rate(time.monotonic(), 2.0)
        heard = listener.output.count("got")
        os.kill(listener.pid, signal.SIGCONT)
        robot.domain.spin_until(lambda: listener.output.count("got") > heard + 10)
        os.kill(listener.pid, signal.SIGSTOP)
        listener.end(signal.SIGKILL)
        robot.at_full_rate(time.monotonic())


def test_transitions_in_random_order_under_load_are_made_or_refused(robot: Robot) -> None:
    with robot.camera():
        robot.flowing()
        walk = random_walk(robot.domain, robot.dpt, robot.watch, 40, seed=3)
        assert walk.complaints == []
        assert set(walk.made) == set(TRANSITIONS)
        assert walk.refused
        assert max(walk.slowest["deactivate"], walk.slowest["cleanup"]) < 2.0
        robot.flowing()


def test_two_nodes_in_one_process_and_a_third_on_the_domain_keep_to_themselves(
    robot: Robot,
) -> None:
    words = [word for name, value in SMALL.items() for word in ("-p", f"{name}:={value}")]
    names = ["-r", "image:=/image", "-r", "camera_info:=/camera_info"]
    two = robot.domain.start(
        "-c", TWO_NODES, "--ros-args", *words, *names, "-p", "device:=cpu", "-p", "threads:=1"
    )
    watches = [Watch(robot.domain.node, f"{name}/") for name in ("left", "right")]
    with robot.camera():
        robot.domain.spin_until(lambda: all(w.counts["depth/image"] > 10 for w in watches))
        for name in ("left", "right"):
            status = robot.domain.diagnostics(f"{name}/dpt: image")
            assert status["topic"] == "/image"
        robot.flowing()
    assert [watch.wrong for watch in watches] == [[], []]
    assert "Traceback" not in two.output
    two.end(signal.SIGKILL)


def test_a_node_that_was_killed_starts_again_and_ends_in_time_at_full_rate(
    robot: Robot,
) -> None:
    with robot.camera():
        robot.flowing()
        robot.dpt.end(signal.SIGKILL)
        start = time.monotonic()
        before = robot.watch.counts["depth/image"]
        robot.dpt = robot.start()
        robot.domain.spin_until(lambda: robot.watch.counts["depth/image"] > before)
        print(f"\nfirst output {time.monotonic() - start:.1f} s after the start of the process")
        robot.at_full_rate(time.monotonic())


def test_a_short_soak_loses_no_frame_without_a_reason_and_stays_flat() -> None:
    with ros_domain() as domain:
        samples, account = soak(
            domain, 0.2, 0.06, SIZES[1], 15.0, 1.0, input_width=96, input_height=64
        )
    assert account.complaints() == []
    assert account.published > 0.5 * account.sent
    assert samples[-1].memory - samples[0].memory < 3.0
    assert (samples[-1].threads, samples[-1].files) == (samples[0].threads, samples[0].files)
    assert latency_growth(samples) < 3.0


class Stalling(BaseHTTPRequestHandler):
    """Sends half of CONTENT and then nothing, unless it is asked to go on from there."""

    first = len(CONTENT) // 2

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : None if wanted else self.first])
        if not wanted and self.first < len(CONTENT):
            self.server.half.set()
            self.server.over.wait(60)

    def log_message(self, *args: object) -> None:
        pass


class Whole(Stalling):
    """Sends all."""

    first = len(CONTENT)


class Refusing(BaseHTTPRequestHandler):
    """A proxy that wants to know who asks."""

    def do_GET(self) -> None:
        self.send_error(407)

    do_CONNECT = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.seen, server.half, server.over = [], threading.Event(), threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/weights.pt"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def test_a_download_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with served(Stalling) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", FETCH, server.url, str(path), sha256(CONTENT)], cwd=ROOT
        )
        assert server.half.wait(60)
        part = path.with_name("weights.pt.part")
        wait_until(lambda: part.stat().st_size > 0, 10)
        process.kill()
        process.wait()
        kept = part.stat().st_size
        download.fetch(server.url, path, sha256(CONTENT))
        assert server.seen == [None, f"bytes={kept}-" if kept else None]
    assert path.read_bytes() == CONTENT


def test_a_disk_that_is_full_is_a_sentence_and_the_download_goes_on_later(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights.pt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with served(Whole) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            with pytest.raises(DownloadError, match=r"Set DPT_ROS_CACHE to a folder.*has room"):
                download.fetch(server.url, path, sha256(CONTENT))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not path.exists()
        download.fetch(server.url, path, sha256(CONTENT))
        assert server.seen == [None, "bytes=200000-"]
    assert path.read_bytes() == CONTENT


@contextmanager
def nobody() -> Iterator[None]:
    """File permissions hold for this thread, even if it is root's."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())


def test_a_cache_that_is_read_only_gives_what_it_has_and_a_sentence_for_the_rest() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "known.pt").write_bytes(CONTENT)
        folder.chmod(0o555)
        with nobody(), served(Refusing) as server:
            download.fetch(server.url, folder / "known.pt", sha256(CONTENT))
            with pytest.raises(DownloadError, match=r"Permission denied\. Set DPT_ROS_CACHE"):
                download.fetch(server.url, folder / "unknown.pt", "")
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [("http", "Proxy Authentication Required"), ("https", "Tunnel connection failed: 407")],
)
def test_a_proxy_that_refuses_is_a_sentence(
    scheme: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Refusing) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(DownloadError, match=f"could not be downloaded: {reason}.*try again"):
            download.fetch(f"{scheme}://weights.invalid/a.pt", tmp_path / "a.pt", "")


def test_a_signal_breaks_into_a_download(tmp_path: Path) -> None:
    with ros_domain() as domain, socket.create_server(("127.0.0.1", 0)) as proxy:
        dpt = domain.start(
            *("-m", "dpt_ros.ros.dpt_node", "--ros-args", "-p", "label_network:=none"),
            *("-p", "depth_network:=dpt_hybrid_midas", "-p", "depth_weights:=download"),
            https_proxy=f"http://127.0.0.1:{proxy.getsockname()[1]}",
            no_proxy="",
            DPT_ROS_CACHE=str(tmp_path),
        )
        proxy.settimeout(60)
        with proxy.accept()[0] as connection:  # and no answer
            assert b"CONNECT" in connection.recv(1000)
            code, seconds = dpt.end(signal.SIGTERM)
        assert "Traceback" not in dpt.output, dpt.output
        assert (code, seconds < 2.0) == (0, True)


def test_a_signal_ends_the_node_in_time_even_in_a_call_that_does_not_return() -> None:
    with ros_domain() as domain:
        dpt = domain.start("-c", STUCK)
        dpt.wait_for("stuck")
        code, seconds = dpt.end(signal.SIGTERM)
        assert "a call did not return in time; exiting without it." in dpt.output
        assert (code, seconds < 2.0) == (0, True)
