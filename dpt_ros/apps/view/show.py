# SPDX-License-Identifier: Apache-2.0
"""dpt_view after its arguments are parsed: opens a viewer and feeds it from bags or live topics.

Imports rerun, which is optional.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice

import rclpy
import rerun as rr
from rclpy.node import Node
from tqdm import tqdm

from dpt_ros.apps.progress import print_above
from dpt_ros.apps.view import topics as known
from dpt_ros.apps.view.bag import Bags, Source, find_sources
from dpt_ros.apps.view.live_topics import LiveTopics
from dpt_ros.apps.view.messages import CameraMessages
from dpt_ros.apps.view.scene import CameraScene, blueprint
from dpt_ros.apps.view.topics import BY_NAME, DIAGNOSTICS
from dpt_ros.bag.reader import Once
from dpt_ros.data import class_names
from dpt_ros.engine.output.label_groups import load_groups
from dpt_ros.ros.camera.geometry import pose_matrix
from dpt_ros.ros.messages.types import nanoseconds

Shown = Mapping[str, CameraMessages]  # by camera

_SILENCE = 5.0  # seconds without messages before a warning
_DISCOVERY = 30.0  # seconds that publishers may take to be found, not counted in --seconds
_REPEAT = 10.0  # seconds between warnings
_VIEWER_PORT = 9876


def show_bags(args: argparse.Namespace) -> int:
    """Show whole bags. Returns the exit code. Raises ValueError and OSError where a bag or the
    viewer cannot be opened."""
    prefixes = [prefix.strip("/") for prefix in args.camera or [args.namespace] if prefix]
    bags = Bags(args.bag)
    sources = find_sources(bags.types, _remaps(args), prefixes)
    cameras = sorted({s.camera for s in sources.values() if s.topic != DIAGNOSTICS})
    topics = {
        camera: {s.topic for s in sources.values() if s.topic == DIAGNOSTICS or s.camera == camera}
        for camera in cameras
    }
    kinds = set().union(*(known.possible_kinds(t, args.only) for t in topics.values()))
    if kinds <= {"plots"}:
        raise ValueError(
            f"--only: the bag has no topic for {', '.join(args.only)}. It has"
            f" {', '.join(sorted(bags.types))}."
        )
    latency = _has_latency(bags, sources)
    layout = blueprint([_title(camera) for camera in topics], kinds, live=False, latency=latency)
    recording = _open(args, layout)
    joined = {camera: known.joined_parts(t, args.only) for camera, t in topics.items()}
    shown = {camera: _camera(args, recording, camera, parts) for camera, parts in joined.items()}
    needed = set().union(*(known.needed_topics(t, args.only) for t in topics.values()))
    sources = {full: source for full, source in sources.items() if source.topic in needed}
    with tqdm(total=bags.count(sources), unit="message", leave=False, disable=None) as bar:
        for full, recorded_ns, message in bags.messages(sources):
            _show(shown, sources[full], message, recorded_ns)
            bar.update()
    recording.flush()
    _print_counts(shown)
    for camera, messages in shown.items():
        named = args.classes is not None or "semantic/label_info" in topics[camera]
        if "semantic/labels" in messages.shown and not named:
            print("The bag has no semantic/label_info: give the class names with --classes.")
    for warning in bags.warnings:
        print(f"dpt_view: {warning}", file=sys.stderr)
    if "plots" in kinds and not latency:
        print("Latency is not plotted: the bag has only stamps, not the times of recording.")
    if args.web:
        print("All messages loaded. Press Ctrl-C to quit.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    recording.disconnect()
    return 0


def _show(shown: Shown, source: Source, message: object, recorded_ns: int | None = None) -> None:
    everywhere = source.topic == DIAGNOSTICS
    for messages in shown.values() if everywhere else (shown[source.camera],):
        messages.show(source.topic, message, recorded_ns)


def _print_counts(shown: Shown) -> None:
    for camera, messages in shown.items():
        counts = ", ".join(f"{topic} {count}" for topic, count in sorted(messages.shown.items()))
        print(f"{_title(camera)}: {counts or 'no messages'}")


def _has_latency(bags: Bags, sources: Mapping[str, Source]) -> bool:
    """Whether the bag has the times at which messages arrived, not just their stamps."""
    if any(source.topic == DIAGNOSTICS for source in sources.values()):
        return True
    timed = [full for full, source in sources.items() if BY_NAME[source.topic].part]
    first = islice(bags.messages(timed), 20)
    return any(recorded != nanoseconds(message.header.stamp) for _, recorded, message in first)


def show_live(args: argparse.Namespace, ros_args: Iterable[str]) -> int:
    """Show a running node until Ctrl-C. Returns the exit code. Raises ValueError, OSError and
    RuntimeError where the viewer cannot be opened, or a ROS argument is wrong."""
    cameras = [camera.strip("/") for camera in args.camera] or [""]
    recording = _open(args, blueprint([_title(c) for c in cameras], args.only, live=True))
    # The namespace and remaps that the node dpt was started with.
    remaps = (part for pair in _remaps(args).items() for part in ("-r", ":=".join(pair)))
    rclpy.init(args=["--ros-args", *remaps, *ros_args])
    node = Node("dpt_view", namespace=args.namespace or None)
    live = None
    shown: dict[str, CameraMessages] = {}
    try:
        shown = {camera: _camera(args, recording, camera, frozenset()) for camera in cameras}
        topics = _live_topics(args.only, args.compressed)
        sources = {
            _live_name(node, c, topic): Source(c, topic) for c in cameras for topic in topics
        }
        types = {name: BY_NAME[source.topic].types for name, source in sources.items()}
        latched = {name for name, s in sources.items() if s.topic == "semantic/label_info"}
        live = LiveTopics(node, types, latched)
        _follow(args, live, sources, shown)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        if live is not None:
            live.close()
        node.destroy_node()
        rclpy.try_shutdown()
        recording.flush()
        recording.disconnect()
    _print_counts(shown)
    return 0


def _live_topics(kinds: Iterable[str], compressed: bool) -> list[str]:
    kinds = set(kinds)
    # depth/camera_info is of the same camera, but its subscription makes the node compute depth.
    unused = {
        "image" if compressed else "image/compressed",
        "camera_info" if kinds & {"depth", "points"} else "depth/camera_info",
    }
    return [name for name in BY_NAME if BY_NAME[name].kinds & kinds and name not in unused]


def _live_name(node: Node, camera: str, topic: str) -> str:
    prefix = f"{camera}/" if camera else ""
    if topic == "image/compressed":  # a remapping of image moves it, too, as in the node
        return str(node.resolve_topic_name(f"{prefix}image")) + "/compressed"
    return topic if topic.startswith("/") else prefix + topic


def _follow(
    args: argparse.Namespace, live: LiveTopics, sources: Mapping[str, Source], shown: Shown
) -> None:
    last_message, last_warning = time.monotonic(), -_REPEAT
    seconds = args.seconds or float("inf")
    end = last_message + seconds + _DISCOVERY
    while rclpy.ok() and time.monotonic() < end:
        messages = live.wait(0.25)
        now = time.monotonic()
        for name, message in messages:
            _show(shown, sources[name], message)
            if sources[name].topic != DIAGNOSTICS:
                last_message = now
                end = min(end, now + seconds)
        if now - last_message > _SILENCE and now - last_warning > _REPEAT:
            last_warning = now
            text = live.missing() or "No new messages on the topics shown."
            print(f"dpt_view: {text}", file=sys.stderr, flush=True)


def _camera(
    args: argparse.Namespace, recording: rr.RecordingStream, camera: str, joined: frozenset[str]
) -> CameraMessages:
    scene = CameraScene(recording, _title(camera), args.range, args.max_points, args.jpeg)
    if args.classes is not None:
        groups, file = args.classes == "navigation", f"labels_{args.classes}.json"
        scene.classes(dict(enumerate(load_groups()[0] if groups else class_names(file), start=1)))
    warn = Once(lambda message: print_above(f"dpt_view: {message}"), most=20)
    pose = pose_matrix(args.camera_in_base or [])
    return CameraMessages(scene, camera, frozenset(args.only), warn, joined, pose, args.rate)


def _title(camera: str) -> str:
    return camera.replace("/", "_") or "camera"


def _remaps(args: argparse.Namespace) -> dict[str, str]:
    """Full names by the node's own ones."""
    pairs = (pair.split(":=", 1) for pair in args.remap)
    return {name: "/" + full.lstrip("/") for name, full in pairs}


def _open(args: argparse.Namespace, layout: rr.blueprint.Blueprint) -> rr.RecordingStream:
    """A recording with the sink that the arguments name."""
    recording = rr.RecordingStream("dpt_ros")
    # Only the stamps of the messages matter, not when they were logged.
    recording.set_log_time_enabled(False)
    recording.set_log_tick_enabled(False)
    if args.save is not None:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        args.save.open("wb").close()  # rerun would only log an error
        recording.save(args.save, default_blueprint=layout)
    elif args.web:
        _check_free(args.web_port, args.grpc_port)
        address = recording.serve_grpc(
            grpc_port=args.grpc_port, default_blueprint=layout, server_memory_limit=args.memory
        )
        rr.serve_web_viewer(web_port=args.web_port, open_browser=False, connect_to=address)
        where = f"http://localhost:{args.web_port}/?url={address.replace('+', '%2B')}"
        print(f"Open {where} in a browser. Press Ctrl-C to quit.", flush=True)
    elif args.connect is not None:
        host, _, port = args.connect.partition(":")
        port = port or str(_VIEWER_PORT)
        _check_there(host, port)
        recording.connect_grpc(f"rerun+http://{host}:{port}/proxy", default_blueprint=layout)
    elif sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        raise ValueError(
            "No display for a window: use --web (browser), --save FILE.rrd or --connect HOST."
        )
    else:
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
        raise ValueError(f"No viewer at {host}:{port} ({error}): start rerun there.") from error
