# SPDX-License-Identifier: Apache-2.0
"""The soak: a camera at full rate for a long time; memory, latency, every frame accounted for."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.ros_processes import Domain, Process, ros_domain

from soak.frames import Watch

CAMERA = str(Path(__file__).with_name("camera.py"))
# The embedded network as it is shipped; small inputs, because the load is of frames.
EMBEDDED = {"depth_weights": "''", "label_weights": "''"}  # YAML's empty text
SLOPE = 1.0  # MB of host memory per minute
LATENCY_GROWTH = 1.5  # of the median, from the first third to the last


@dataclass(frozen=True)
class Sample:
    """The node at one moment: megabytes of host memory, and milliseconds since receipt."""

    minutes: float
    memory: float
    p50: float
    p99: float
    threads: int
    files: int
    published: int


@dataclass(frozen=True)
class Account:
    """Where the frames went, by /diagnostics, and what the judge of the outputs has to say."""

    sent: int
    received: int
    published: int
    dropped: dict[str, int]
    missed: int
    failed: int
    wrong: list[str]

    def complaints(self) -> list[str]:
        """Sentences; none if every frame was published or counted with its reason."""
        said = list(self.wrong[:10])
        if self.sent != self.received + self.missed:
            said.append(
                f"{self.sent} sent, but {self.received} received and {self.missed} missed."
            )
        if self.received != self.published + sum(self.dropped.values()) + self.failed:
            said.append(
                f"{self.received} received, but {self.published} published, {self.dropped}"
                f" dropped and {self.failed} failed."
            )
        if self.failed:
            said.append(f"{self.failed} frames failed.")
        return said


def memory_of(pid: int) -> float:
    """Resident host memory of a process, megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def take_sample(domain: Domain, dpt: Process, begin: float) -> Sample:
    """Ask /diagnostics and the kernel."""
    values = domain.diagnostics("dpt: image")
    folder = Path(f"/proc/{dpt.pid}")
    return Sample(
        (time.monotonic() - begin) / 60,
        memory_of(dpt.pid),
        float(values.get("latency from receipt p50 (ms)", "nan")),
        float(values.get("latency from receipt p99 (ms)", "nan")),
        len(list((folder / "task").iterdir())),
        len(list((folder / "fd").iterdir())),
        int(values["frames published"]),
    )


def account(domain: Domain, sent: int, watch: Watch) -> Account:
    """The counts of /diagnostics now, when nothing is on its way any more."""
    values = domain.diagnostics("dpt: image")

    def counts(prefix: str) -> dict[str, int]:
        return {k.removeprefix(prefix): int(v) for k, v in values.items() if k.startswith(prefix)}

    return Account(
        sent,
        int(values["frames received"]),
        int(values["frames published"]),
        counts("dropped: "),
        sum(counts("missed: ").values()),
        sum(counts("error: ").values()),
        watch.wrong,
    )


def slope(samples: Sequence[Sample]) -> float:
    """Growth of host memory, MB per minute, by Theil and Sen: a few outliers do not matter."""
    pairs = [
        (b.memory - a.memory) / (b.minutes - a.minutes)
        for i, a in enumerate(samples)
        for b in samples[i + 1 :]
    ]
    return float(np.median(pairs))


def latency_growth(samples: Sequence[Sample]) -> float:
    """Median latency of the last third over that of the first."""
    third = max(len(samples) // 3, 1)
    first, last = ([s.p50 for s in part] for part in (samples[:third], samples[-third:]))
    return float(np.median(last) / np.median(first))


def soak(
    domain: Domain,
    minutes: float,
    warm_up: float,
    size: tuple[int, int],
    rate: float,
    every: float,
    log: Path | None = None,
    **parameters: object,
) -> tuple[list[Sample], Account]:
    """Run a camera and the node; samples after the warm-up, and the account of all frames.

    Args:
        domain: to run on.
        minutes: how long the camera runs.
        warm_up: minutes of it before the first sample.
        size: of the images, width and height.
        rate: frames per second.
        every: seconds between samples.
        log: a file that gets each sample as a line of JSON.
        parameters: of the node.
    """
    dpt = domain.start_dpt(**{**EMBEDDED, "diagnostics_period": 0.5, **parameters})
    watch = Watch(domain.node)
    domain.wait_for_state("active")
    options = ("--rate", str(rate), "--seconds", str(60 * minutes), "--wait")
    camera = domain.start(CAMERA, *map(str, size), *options)
    domain.spin_until(lambda: watch.counts["depth/image"])
    begin, samples = time.monotonic(), []
    domain.spin_for(60 * warm_up)
    while "sent" not in camera.output:
        assert camera.running, camera.output
        assert dpt.running, dpt.output
        samples.append(take_sample(domain, dpt, begin))
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps(asdict(samples[-1])) + "\n")
        deadline = time.monotonic() + every
        while time.monotonic() < deadline and "sent" not in camera.output:
            domain.spin_for(0.2)
    domain.spin_for(1.5)
    sent = int(camera.output.split("sent ")[1])
    result = account(domain, sent, watch)
    camera.end()
    code, seconds = dpt.end()
    assert (code, seconds < 2.0) == (0, True), (code, seconds, dpt.output)
    assert "Traceback" not in dpt.output, dpt.output
    return samples, result


def main() -> int:
    """Soak and judge; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python test/soak/run.py --minutes 60 --rate 15"
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=2.0, help="minutes of it")
    parser.add_argument("--size", default="640x480", help="of the images")
    parser.add_argument("--rate", type=float, default=15.0, help="frames per second")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--log", type=Path, help="gets each sample as a line of JSON")
    parser.add_argument("--parameter", nargs="*", default=[], metavar="NAME:=VALUE")
    args = parser.parse_args()
    size = tuple(int(word) for word in args.size.split("x"))
    parameters = dict(word.split(":=", 1) for word in args.parameter)
    with ros_domain() as domain:
        samples, result = soak(
            domain, args.minutes, args.warm_up, size, args.rate, args.every, args.log, **parameters
        )
    growth, ratio = slope(samples), latency_growth(samples)
    first, last = samples[0], samples[-1]
    print(f"{args.minutes:g} minutes, {result.sent} frames sent at {args.rate:g} Hz, {args.size}")
    print(f"received {result.received}, published {result.published}, dropped {result.dropped}")
    print(f"missed {result.missed}, failed {result.failed}, wrong outputs {len(result.wrong)}")
    print(f"host memory {first.memory:.1f} to {last.memory:.1f} MB, {growth:+.3f} MB per minute")
    print(f"latency p50 {first.p50:.1f} to {last.p50:.1f} ms, last third over first {ratio:.2f}")
    print(f"threads {first.threads} to {last.threads}, open files {first.files} to {last.files}")
    complaints = result.complaints()
    if growth > SLOPE:
        complaints.append(f"Memory grows by {growth:.2f} MB per minute; {SLOPE:g} are allowed.")
    if ratio > LATENCY_GROWTH:
        complaints.append(f"Latency grew {ratio:.2f} times.")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
