# SPDX-License-Identifier: Apache-2.0
"""dpt_view at work: opens the place to look at, and feeds it from bags or from live topics.

Imports rerun, which is optional: import this module only where it is about to be used.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

import rclpy
import rerun as rr
from tqdm import tqdm

from dpt_ros.apps.view.bag import Bags, Source, find_sources
from dpt_ros.apps.view.live_topics import LiveTopics, Wish, start_node
from dpt_ros.apps.view.messages import CameraMessages, stamp_ns
from dpt_ros.apps.view.scene import CameraScene, Look, blueprint
from dpt_ros.apps.view.topics import (
    BY_NAME,
    joined_parts,
    possible_kinds,
    wanted_topics,
)
from dpt_ros.data import class_names
from dpt_ros.engine.output.label_groups import load_groups
from dpt_ros.ros.camera.poses import pose_matrix

_SILENCE = 5.0  # seconds
_REPEAT = 10.0  # seconds
_VIEWER_PORT = 9876
_DIAGNOSTICS = "/diagnostics"


def show_bags(args: argparse.Namespace) -> int:
    """Show bags, whole. Returns the exit code.

    Raises:
        ValueError, OSError: a bag or the viewer cannot be opened; the message has the reason.
    """
    prefixes = [prefix.strip("/") for prefix in args.camera or [args.namespace] if prefix]
    bags = Bags(args.bag)
    sources = find_sources(bags.types, _remaps(args), prefixes)
    cameras = sorted({s.camera for s in sources.values() if s.topic != _DIAGNOSTICS})
    there = {
        camera: {
            s.topic for s in sources.values() if s.camera == camera or s.topic == _DIAGNOSTICS
        }
        for camera in cameras
    }
    kinds = set().union(*(possible_kinds(topics, args.only) for topics in there.values()))
    if kinds <= {"plots"}:
        raise ValueError(
            f"--only: the bag has no topic for {', '.join(args.only)}. It has"
            f" {', '.join(sorted(bags.types))}."
        )
    latency = _has_latency(bags, sources)
    titles = [_title(camera) for camera in cameras]
    recording = _open(args, blueprint(titles, kinds, live=False, latency=latency))
    shown = {
        camera: _camera(args, recording, camera, joined_parts(there[camera], args.only))
        for camera in cameras
    }
    wanted = {
        full: source
        for full, source in sources.items()
        if any(source.topic in wanted_topics(topics, args.only) for topics in there.values())
    }
    _feed(bags, wanted, shown)
    recording.flush()
    for camera in cameras:
        _tell(args, shown[camera], there[camera], camera)
    for note in bags.notes:
        print(f"dpt_view: {note}", file=sys.stderr)
    if "plots" in kinds and not latency:
        print("Latency is not plotted: the bag has only stamps, not the times of recording.")
    if args.web:
        print("All messages loaded. Press Ctrl-C to quit.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    recording.disconnect()
    return 0


def _feed(bags: Bags, sources: Mapping[str, Source], shown: Mapping[str, CameraMessages]) -> None:
    bar = tqdm(total=bags.count(sources), unit="message", leave=False, disable=None)
    for full, recorded_ns, message in bags.messages(sources):
        source = sources[full]
        cameras = shown.values() if source.topic == _DIAGNOSTICS else (shown[source.camera],)
        for camera in cameras:
            camera.take(source.topic, message, recorded_ns)
        bar.update()
    bar.close()


def _tell(
    args: argparse.Namespace, messages: CameraMessages, there: set[str], camera: str
) -> None:
    """What was shown, and what the bag could not give."""
    counts = ", ".join(f"{topic} {count}" for topic, count in sorted(messages.shown.items()))
    print(f"{_title(camera)}: {counts or 'no messages'}")
    named = args.classes is not None or "semantic/label_info" in there
    if "semantic/labels" in messages.shown and not named:
        print("The bag has no semantic/label_info: give the class names with --classes.")


def _has_latency(bags: Bags, sources: Mapping[str, Source]) -> bool:
    """Whether the bag tells when messages came, rather than repeating their stamps."""
    if any(source.topic == _DIAGNOSTICS for source in sources.values()):
        return True
    timed = [full for full, source in sources.items() if BY_NAME[source.topic].frames]
    first = islice(bags.messages(timed), 20)
    return any(recorded != stamp_ns(message) for _, recorded, message in first)


def show_live(args: argparse.Namespace, ros_args: Sequence[str]) -> int:
    """Show a running node until Ctrl-C. Returns the exit code.

    Raises:
        ValueError, OSError, RuntimeError: the place to look at cannot be had, or an argument is
            no ROS argument; the message has the reason.
    """
    cameras = [camera.strip("/") for camera in args.camera] or [""]
    recording = _open(args, blueprint([_title(c) for c in cameras], args.only, live=True))
    node = start_node(args.namespace, _remaps(args), ros_args)
    live = None
    try:
        shown = {camera: _camera(args, recording, camera) for camera in cameras}
        topics = _live_topics(args.only, args.compressed)
        wishes = {}
        for camera in cameras:
            for topic in topics:
                name = _live_name(node, camera, topic)
                wishes[name] = (camera, topic)
        live = LiveTopics(
            node,
            [
                Wish(name, BY_NAME[topic].types, latched=topic == "semantic/label_info")
                for name, (_, topic) in wishes.items()
            ],
        )
        _follow(args, live, wishes, shown)
    except KeyboardInterrupt:
        pass  # the way it ends
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        if live is not None:
            live.close()
        node.destroy_node()
        rclpy.try_shutdown()
        recording.flush()
        recording.disconnect()
    for camera in cameras:
        counts = ", ".join(f"{t} {count}" for t, count in sorted(shown[camera].shown.items()))
        print(f"{_title(camera)}: {counts or 'no messages'}")
    return 0


def _live_topics(kinds: Iterable[str], compressed: bool) -> list[str]:
    kinds = set(kinds)
    # depth/camera_info is of the same camera, but has the node compute depth.
    unused = {
        "image" if compressed else "image/compressed",
        "camera_info" if kinds & {"depth", "points"} else "depth/camera_info",
    }
    return [name for name in BY_NAME if BY_NAME[name].kinds & kinds and name not in unused]


def _live_name(node: rclpy.node.Node, camera: str, topic: str) -> str:
    prefix = f"{camera}/" if camera else ""
    if topic == "image/compressed":  # as in the node, image moves its compressed form along
        return str(node.resolve_topic_name(f"{prefix}image")) + "/compressed"
    return topic if topic.startswith("/") else prefix + topic


def _follow(
    args: argparse.Namespace,
    live: LiveTopics,
    wishes: Mapping[str, tuple[str, str]],
    shown: Mapping[str, CameraMessages],
) -> None:
    start = heard = time.monotonic()
    said = -_REPEAT
    while rclpy.ok() and (args.seconds is None or time.monotonic() - start < args.seconds):
        news = live.wait(0.25)
        now = time.monotonic()
        for name, message in news:
            camera, topic = wishes[name]
            cameras = shown.values() if topic == _DIAGNOSTICS else (shown[camera],)
            for taker in cameras:
                taker.take(topic, message)
            if topic != _DIAGNOSTICS:
                heard = now
        if now - heard > _SILENCE and now - said > _REPEAT:
            said = now
            message = live.waiting_for() or "No new messages on the topics shown."
            print(f"dpt_view: {message}", file=sys.stderr, flush=True)


def _camera(
    args: argparse.Namespace,
    recording: rr.RecordingStream,
    camera: str,
    joined: frozenset[str] = frozenset(),
) -> CameraMessages:
    scene = CameraScene(recording, _title(camera), Look(args.range, args.max_points, args.jpeg))
    if args.classes is not None:
        scene.classes(_known_classes(args.classes))
    pose = pose_matrix(args.camera_in_base or [])
    kinds = frozenset(args.only)
    return CameraMessages(scene, camera, kinds, _complainer(), joined, pose, args.rate)


def _complainer() -> Callable[[str], None]:
    said: set[str] = set()

    def complain(message: str) -> None:
        if message not in said and len(said) < 20:
            said.add(message)
            tqdm.write(f"dpt_view: {message}", file=sys.stderr)

    return complain


def _known_classes(name: str) -> dict[int, str]:
    names = load_groups()[0] if name == "navigation" else class_names(f"labels_{name}.json")
    return dict(enumerate(names, start=1))


def _title(camera: str) -> str:
    return camera.replace("/", "_") or "camera"


def _remaps(args: argparse.Namespace) -> dict[str, str]:
    """Full names by the node's own ones."""
    pairs = (pair.split(":=", 1) for pair in args.remap)
    return {name: "/" + full.lstrip("/") for name, full in pairs}


def _open(args: argparse.Namespace, layout: rr.blueprint.Blueprint) -> rr.RecordingStream:
    """A recording that goes to where the arguments say."""
    recording = rr.RecordingStream("dpt_ros")
    # What is shown has stamps of its own; when it was drawn is of no interest.
    recording.set_log_time_enabled(False)
    recording.set_log_tick_enabled(False)
    if args.save is not None:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        with args.save.open("wb"):  # rerun would only log that it cannot be written
            pass
        recording.save(args.save, default_blueprint=layout)
    elif args.web:
        _check_free(args.web_port, args.grpc_port)
        address = recording.serve_grpc(
            grpc_port=args.grpc_port,
            default_blueprint=layout,
            server_memory_limit=args.memory,
        )
        rr.serve_web_viewer(web_port=args.web_port, open_browser=False, connect_to=address)
        where = f"http://localhost:{args.web_port}/?url={address.replace('+', '%2B')}"
        print(f"Open {where} in a browser. Press Ctrl-C to quit.", flush=True)
    elif args.connect is not None:
        host, _, port = args.connect.partition(":")
        port = port or str(_VIEWER_PORT)
        _check_there(host, port)
        recording.connect_grpc(f"rerun+http://{host}:{port}/proxy", default_blueprint=layout)
    else:
        if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            raise ValueError(
                "No display to open a window on: use --web (browser), --save FILE.rrd"
                " or --connect HOST."
            )
        recording.spawn(memory_limit=args.memory, default_blueprint=layout)
    return recording


def _check_free(*ports: int) -> None:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError as error:
                raise ValueError(
                    f"Port {port} cannot be used ({error.strerror}): choose free ports with"
                    " --web-port and --grpc-port."
                ) from error


def _check_there(host: str, port: str) -> None:
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No viewer found at {host}:{port} ({error}): start rerun there first."
        ) from error
