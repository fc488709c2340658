# SPDX-License-Identifier: Apache-2.0
"""A camera and the node in two network namespaces, with a bad link between them.

Raw and JPEG images, reliable and best effort, over links that lose, delay and reorder packets, and
links that are cut. Needs root and iproute2. The kernel need not have netem: this program carries
the packets from one namespace to the other. Images go over UDP, never through shared memory.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import itertools
import multiprocessing
import os
import random
import re
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.ros_processes import Domain, ros_domain

from soak.frames import Watch
from soak.run import CAMERA, EMBEDDED

SIDES = {"camera": "10.77.0.1/24", "node": "10.77.0.2/24"}
RATE = 10.0
SETTLE = 40.0
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL, _STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
_ALL_PROTOCOLS = 3
_LONGEST = 65536


@dataclass(frozen=True)
class Link:
    """What happens to each packet, in both directions.

    Args:
        loss: probability that it is left out.
        delay: seconds that it takes, on average.
        jitter: seconds that it may take more or less; a later packet may overtake it.
    """

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0

    def __str__(self) -> str:
        delay = f"{self.delay * 1e3:g} +- {self.jitter * 1e3:g} ms"
        return f"{self.loss:.0%} of packets lost, {delay}"


def ip(*words: str) -> None:
    """Run ``ip``.

    Raises:
        CalledProcessError: it is not permitted.
    """
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def namespaces(sysctl: list[str]) -> Iterator[dict[str, str]]:
    """Two namespaces, and by side the name of our end of the cable that leads there.

    Args:
        sysctl: what to set in both, as "name=value".
    """
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
                for setting in sysctl:
                    key, _, value = setting.partition("=")
                    Path("/proc/sys", key.replace(".", "/")).write_text(value)
        yield names
    finally:
        for name in names.values():
            # The namespace lives on while anything in it does; the cable's name is needed again.
            for words in (["link", "del", name], ["netns", "del", name]):
                subprocess.run(["ip", *words], check=False, capture_output=True)


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


def carry(links: list[str], state: Any) -> None:
    """Carry packets between two links for ever, as ``state`` (the values of a `Link`) says."""
    ends = []
    for link in links:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        end.bind((link, 0))
        ends.append(end)
    chance = random.Random(0)
    number = itertools.count()
    on_the_way: list[tuple[float, int, int, bytes]] = []
    while True:
        patience = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for end in select.select(ends, [], [], patience)[0]:
            packet, (_, _, kind, _, _) = end.recvfrom(_LONGEST)
            loss, delay, jitter = state
            if kind != socket.PACKET_OUTGOING and chance.random() >= loss:
                due = time.monotonic() + delay + chance.uniform(-jitter, jitter)
                heapq.heappush(on_the_way, (due, next(number), 1 - ends.index(end), packet))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, _, other, packet = heapq.heappop(on_the_way)
            ends[other].send(packet)


@contextmanager
def flow(
    args: argparse.Namespace, encoding: str, best_effort: bool
) -> Iterator[tuple[Domain, Watch, Any]]:
    """A camera whose images the node takes, and the state of the link between them."""
    state = multiprocessing.Array("d", astuple(Link()))
    with namespaces(args.sysctl) as names:
        ends = [names["camera"], names["node"]]
        carrier = multiprocessing.Process(target=carry, args=(ends, state), daemon=True)
        carrier.start()
        try:
            with inside(names["node"]), ros_domain() as domain:
                domain.env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET"
                domain.env["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"
                dpt = domain.start_dpt(
                    **EMBEDDED,
                    diagnostics_period=0.2,
                    input_width=96,
                    input_height=64,
                    image_transport="compressed" if encoding == "jpeg" else "raw",
                )
                watch = Watch(domain.node)
                domain.wait_for_state("active")
                options = ["--best-effort"] if best_effort else []
                # By the name that Kilted knows, and by that of Jazzy and before.
                variables = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
                env = dict.fromkeys(variables, args.profile) if args.profile else {}
                with inside(names["camera"]):
                    size = args.size.split("x")
                    words = ["--encoding", encoding, "--rate", str(RATE), *options]
                    domain.start(CAMERA, *size, *words, **env)
                domain.spin_until(lambda: watch.counts["depth/image"] > RATE)
                yield domain, watch, state
                if dpt.end()[0] != 0:
                    watch.wrong.append("The node ended with another code than 0.")
        finally:
            carrier.terminate()
            carrier.join()


def measure(domain: Domain, watch: Watch, what: str, seconds: float) -> None:
    """Print outputs per second, what /diagnostics counted, and how old the outputs were."""
    before = domain.diagnostics("dpt: image")
    depths = watch.arrivals["depth/image"]
    count, begin = watch.counts["depth/image"], time.monotonic()
    domain.spin_for(seconds)
    rate = (watch.counts["depth/image"] - count) / (time.monotonic() - begin)
    after = domain.diagnostics("dpt: image")
    grown = {
        name: int(after[name]) - int(before.get(name, 0))
        for name in after
        if name == "frames received" or name.startswith(("missed: ", "dropped: "))
    }
    offset = time.time() - time.monotonic()
    ages = [when + offset - stamp * 1e-9 for stamp, when in depths if when > begin]
    middle = f"{statistics.median(ages) * 1e3:.0f} ms" if ages else "-"
    sockstat = Path("/proc/thread-self/net/sockstat").read_text()
    pieces = int(re.findall(r"FRAG: .* memory (\d+)", sockstat)[0]) / 1e6
    print(
        f"{what}: {rate:.1f} of {RATE:g} outputs per second, {middle} old;"
        f" {', '.join(f'{name} {value}' for name, value in grown.items() if value)};"
        f" {pieces:.1f} MB of incomplete datagrams",
        flush=True,
    )


def cut(domain: Domain, watch: Watch, state: Any, seconds: float) -> None:
    """Cut the link for a while, and say how long the node needs after that."""
    state[:] = astuple(Link(loss=1.0))
    domain.spin_for(seconds)
    state[:] = astuple(Link())
    start, count = time.monotonic(), watch.counts["depth/image"]
    domain.spin_until(lambda: watch.counts["depth/image"] > count, 60)
    first = time.monotonic() - start
    domain.spin_until(lambda: watch.counts["depth/image"] > count + RATE, 60)
    full = time.monotonic() - start - 1
    print(f"cut for {seconds:g} s: an output after {first:.2f} s, full rate after {full:.2f} s")


def main() -> int:
    """Each kind of images over each link; 1 if an output is wrong, 2 if it may not be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    encodings, offers = ["rgb8", "jpeg"], ["reliable", "best_effort"]
    parser.add_argument("--encodings", nargs="*", default=encodings, choices=encodings)
    parser.add_argument("--offers", nargs="*", default=offers, choices=offers, help="of cameras")
    parser.add_argument("--loss", type=float, nargs="*", default=[0.01, 0.05])
    parser.add_argument(
        "--delay", type=float, nargs=2, default=[0.02, 0.01], help="and jitter, seconds"
    )
    parser.add_argument(
        "--cut", type=float, nargs="*", default=[5.0, 30.0], help="seconds, first kind"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="per link")
    parser.add_argument("--size", default="160x120", help="of the images")
    parser.add_argument("--profile", default="", help="of Fast DDS, for the camera alone")
    parser.add_argument("--sysctl", nargs="*", default=[], help="such as net.ipv4.ipfrag_time=1")
    args = parser.parse_args()
    # Loss comes last, for it leaves pieces of datagrams behind.
    links = [Link(), Link(0.0, *args.delay), *map(Link, args.loss)]
    outputs, wrong = 0, []
    try:
        for encoding, offer in itertools.product(args.encodings, args.offers):
            with flow(args, encoding, offer == "best_effort") as (domain, watch, state):
                for link in links:
                    state[:] = astuple(link)
                    domain.spin_for(SETTLE if link.loss else 3.0)
                    measure(domain, watch, f"{encoding}, {offer}, {link}", args.seconds)
                for seconds in args.cut if not outputs else ():
                    cut(domain, watch, state, seconds)
            outputs += watch.counts["depth/image"]
            wrong += watch.wrong
    except (subprocess.CalledProcessError, FileNotFoundError, PermissionError) as error:
        print(f"Network namespaces cannot be made here: {error}", file=sys.stderr)
        return 2
    print(f"{outputs} outputs, {len(wrong)} wrong")
    for complaint in wrong[:10]:
        print(complaint, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
