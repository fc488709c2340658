# SPDX-License-Identifier: Apache-2.0
"""A camera and the node in two network namespaces, with loss and a cut link between them.

Needs root and iproute2. The kernel need not have netem: this program carries the packets from one
namespace to the other and leaves some out. Images go over UDP, never through shared memory.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import multiprocessing
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ros_processes import Domain, ros_domain

from soak.frames import Watch
from soak.run import CAMERA, EMBEDDED

SIDES = {"camera": "10.77.0.1/24", "node": "10.77.0.2/24"}
RATE = 10.0
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL, _STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
_ALL_PROTOCOLS = 3
_LONGEST = 65536


def ip(*words: str) -> None:
    """Run ``ip``.

    Raises:
        CalledProcessError: it is not permitted.
    """
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def namespaces() -> Iterator[dict[str, str]]:
    """Two namespaces, and by side the name of our end of the cable that leads there."""
    tag = os.getpid() % 10000
    names = {side: f"dpt{side[0]}{tag}" for side in SIDES}
    try:
        for side, address in SIDES.items():
            name = names[side]
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "up")
            ip("-n", name, "address", "add", address, "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "eth0")
            with inside(name):
                fill_in_checksums("eth0")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, and the processes that it starts, in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{name}") as there:
        libc.setns(there.fileno(), _CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(home.fileno(), _CLONE_NEWNET)


def fill_in_checksums(link: str) -> None:
    """Let the kernel do so and not the card, for there is none on the way."""
    value = ctypes.create_string_buffer(struct.pack("II", _STXCSUM, 0))
    request = struct.pack("16sP", link.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def carry(links: list[str], loss: Any) -> None:
    """Carry packets between two links for ever; each is lost with the probability ``loss``."""
    ends = []
    for link in links:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        end.bind((link, 0))
        ends.append(end)
    chance = random.Random(0)
    while True:
        for end in select.select(ends, [], [])[0]:
            packet, (_, _, kind, _, _) = end.recvfrom(_LONGEST)
            if kind != socket.PACKET_OUTGOING and chance.random() >= loss.value:
                ends[1 - ends.index(end)].send(packet)


def measure(domain: Domain, watch: Watch, what: str, seconds: float) -> float:
    """Outputs per second, printed."""
    before = domain.diagnostics("dpt: image")
    count = watch.counts["depth/image"]
    domain.spin_for(seconds)
    rate = (watch.counts["depth/image"] - count) / seconds
    after = domain.diagnostics("dpt: image")
    lost = {
        name.removeprefix("missed: "): int(after[name]) - int(before[name])
        for name in after
        if name.startswith("missed: ")
    }
    print(f"{what}: {rate:.1f} of {RATE:g} outputs per second, {lost}", flush=True)
    return rate


def cut(domain: Domain, watch: Watch, loss: Any, seconds: float) -> None:
    """Cut the link for a while, and say how long the node needs after that."""
    loss.value = 1.0
    domain.spin_for(seconds)
    loss.value = 0.0
    start, count = time.monotonic(), watch.counts["depth/image"]
    domain.spin_until(lambda: watch.counts["depth/image"] > count, 60)
    first = time.monotonic() - start
    domain.spin_until(lambda: watch.counts["depth/image"] > count + RATE, 60)
    full = time.monotonic() - start - 1
    print(f"cut for {seconds:g} s: an output after {first:.2f} s, full rate after {full:.2f} s")


def main() -> int:
    """Loss, then cuts; 1 if an output says what it must not, 2 if this may not be done here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", type=float, nargs="*", default=[0.0, 0.01, 0.05])
    parser.add_argument("--cut", type=float, nargs="*", default=[5.0, 30.0], help="seconds")
    parser.add_argument("--seconds", type=float, default=15.0, help="per loss")
    parser.add_argument("--size", default="160x120", help="of the images")
    parser.add_argument("--best-effort", action="store_true", help="what the camera offers")
    args = parser.parse_args()
    loss = multiprocessing.Value("d", 0.0)
    try:
        with namespaces() as names:
            carrier = multiprocessing.Process(
                target=carry, args=([names["camera"], names["node"]], loss), daemon=True
            )
            carrier.start()
            with inside(names["node"]), ros_domain() as domain:
                domain.env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET"
                domain.env["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"
                dpt = domain.start_dpt(
                    **EMBEDDED, diagnostics_period=0.2, input_width=96, input_height=64
                )
                watch = Watch(domain.node)
                domain.wait_for_state("active")
                with inside(names["camera"]):
                    options = ["--best-effort"] if args.best_effort else []
                    size = args.size.split("x")
                    domain.start(CAMERA, *size, "--rate", str(RATE), *options)
                domain.spin_until(lambda: watch.counts["depth/image"] > RATE)
                for probability in args.loss:
                    loss.value = probability
                    measure(domain, watch, f"{probability:.0%} of packets lost", args.seconds)
                loss.value = 0.0
                measure(domain, watch, "after that", 5.0)
                for seconds in args.cut:
                    cut(domain, watch, loss, seconds)
                code, took = dpt.end()
            carrier.terminate()
    except (subprocess.CalledProcessError, FileNotFoundError, PermissionError) as error:
        print(f"Network namespaces cannot be made here: {error}", file=sys.stderr)
        return 2
    print(f"{watch.counts['depth/image']} outputs, {len(watch.wrong)} wrong; end in {took:.2f} s")
    for complaint in watch.wrong[:10]:
        print(complaint, file=sys.stderr)
    return int(bool(watch.wrong) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
