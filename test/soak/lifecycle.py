# SPDX-License-Identifier: Apache-2.0
"""Lifecycle transitions in random order under load: right, refused, or nothing happened."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.ros_processes import Domain, Process, ros_domain

from soak.frames import Watch
from soak.run import CAMERA, EMBEDDED, memory_of

# What each transition leads from and to; in any other state it must be refused.
TRANSITIONS = {
    "configure": ("unconfigured", "inactive"),
    "activate": ("inactive", "active"),
    "deactivate": ("active", "inactive"),
    "cleanup": ("inactive", "unconfigured"),
}
_POSSIBLE = 0.6  # how often one is chosen that can be made
_LOOK = 0.4  # how often frames are waited for after activate


@dataclass
class Walk:
    """What happened: transitions made and refused, the seconds they took, and complaints."""

    made: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    first_output: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def random_walk(
    domain: Domain, dpt: Process, watch: Watch, number: int, seed: int, state: str = "active"
) -> Walk:
    """Ask for transitions at random, possible or not, while a camera publishes.

    Args:
        domain: where the node and the camera run.
        dpt: the node's process.
        watch: of its outputs.
        number: of transitions asked for; the node is active at the end.
        seed: of the order.
        state: of the node at the beginning.
    """
    chance, walk = random.Random(seed), Walk()
    while number > 0 or state != "active":
        if number > 0:
            possible = [name for name, (begin, _) in TRANSITIONS.items() if begin == state]
            some = possible if chance.random() < _POSSIBLE else list(TRANSITIONS)
            label = chance.choice(some)
        else:
            label = "configure" if state == "unconfigured" else "activate"
        number -= 1
        before, after = TRANSITIONS[label]
        start = time.monotonic()
        success = domain.change(label)
        took = time.monotonic() - start
        if success != (state == before):
            word = "was made" if success else "was refused"
            walk.complaints.append(f"{label} {word} in state {state}.")
        if success:
            state = after
            walk.made[label] += 1
            walk.slowest[label] = max(walk.slowest.get(label, 0.0), took)
        else:
            walk.refused[label] += 1
        if (found := domain.state()) != state:
            walk.complaints.append(f"After {label} the node is {found} instead of {state}.")
            state = found
        if not dpt.running:
            walk.complaints.append(f"The node ended at {label}: {dpt.output}")
            return walk
        if state == "active" and label == "activate" and chance.random() < _LOOK:
            seen = watch.counts["depth/image"]
            domain.spin_until(lambda seen=seen: watch.counts["depth/image"] > seen)
            walk.first_output.append(time.monotonic() - start)
        elif state != "active" and label == "deactivate":
            domain.spin_for(0.1)  # what was on its way
            seen = watch.counts["depth/image"]
            domain.spin_for(0.15)
            if watch.counts["depth/image"] != seen:
                walk.complaints.append(f"An output came in state {state}.")
    return walk


def main() -> int:
    """Walk and judge; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python test/soak/lifecycle.py --transitions 200"
    )
    parser.add_argument("--transitions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=10.0, help="of the camera")
    args = parser.parse_args()
    with ros_domain() as domain:
        dpt = domain.start_dpt(**EMBEDDED, diagnostics_period=0.2)
        watch = Watch(domain.node)
        domain.wait_for_state("active")
        domain.start(CAMERA, "320", "240", "--rate", str(args.rate))
        domain.spin_until(lambda: watch.counts["depth/image"])
        before = memory_of(dpt.pid)
        walk = random_walk(domain, dpt, watch, args.transitions, args.seed)
        domain.spin_for(1.0)
        after = memory_of(dpt.pid)
        code, seconds = dpt.end()
        complaints = [*walk.complaints, *watch.wrong[:10]]
        if (code, seconds < 2.0) != (0, True):
            complaints.append(f"The node ended with {code} after {seconds:.1f} s.")
        if "Traceback" in dpt.output or "Unexpected" in dpt.output:
            complaints.append(dpt.output)
    print(f"made {dict(walk.made)}, refused {dict(walk.refused)}")
    print("slowest", {label: f"{took:.2f} s" for label, took in walk.slowest.items()})
    if walk.first_output:
        print(f"first output after activate: at most {max(walk.first_output):.2f} s")
    print(f"{watch.counts['depth/image']} outputs, {len(watch.wrong)} wrong")
    print(f"host memory {before:.0f} to {after:.0f} MB; end in {seconds:.2f} s")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
