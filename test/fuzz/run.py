# SPDX-License-Identifier: Apache-2.0
"""Run the fuzzing targets: see ``test/fuzz/__init__.py``."""

from __future__ import annotations

import argparse
import importlib
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fuzz import TARGETS  # noqa: E402
from fuzz.archive import archive_of, name_of, unpack, write_archive  # noqa: E402
from fuzz.properties import repeated  # noqa: E402

FOUND = HERE / "found"  # inputs that once broke the property
KEPT_BYTES = 20_000  # per target
LONGEST = 16_384  # bytes of an input
ADDRESS_SPACE = 6 << 30  # bytes more than the process has when it begins


def fuzz(target: str, options: Sequence[str]) -> None:
    """Hand this process to libFuzzer, which ends it."""
    import atheris
    import cv2
    import torch

    # To watch one file of torch must not mean to watch all of it, which takes minutes.
    early = [importlib.import_module(name) for name in TARGETS[target] if "torch" in name]
    with atheris.instrument_imports(include=list(TARGETS[target])):
        for module in early:
            importlib.reload(module)
        module = importlib.import_module(f"fuzz.{target}")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit_address_space()
    # libFuzzer starts itself anew by this name to compare inputs.
    itself = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)} --inside {target}"
    atheris.Setup([itself, *options], repeated(module.one_input))
    atheris.Fuzz()


def limit_address_space() -> None:
    """A claim of more memory than a robot has must fail here as it would there."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    # The soft one: a process that this one starts sets its own.
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run(target: str, seconds: int, work: Path) -> bool:
    """Fuzz one target; whether it held. New inputs are written to ``work/TARGET/corpus``."""
    found, kept, log = (work / target / name for name in ("corpus", "kept", "log.txt"))
    found.mkdir(parents=True, exist_ok=True)
    unpack(target, kept)
    for seed in seeds(target):
        (found / name_of(seed)).write_bytes(seed)
    options = [
        *(str(folder) for folder in (found, kept, FOUND / target) if folder.is_dir()),
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={work / target}/broken-",
        "-timeout=120",
        "-rss_limit_mb=6000",
        "-print_final_stats=1",
    ]
    start = time.monotonic()
    print(f"{target}: {seconds} s, log in {log}", flush=True)
    code = _inside(target, options, log)
    spent = time.monotonic() - start
    text = log.read_text(errors="replace")
    executed = [line.split()[-1] for line in text.splitlines() if "number_of_executed" in line]
    print(f"{target}: {' '.join(executed) or '?'} inputs in {spent:.0f} s; exit code {code}")
    if code:
        print("".join(f"  {line}\n" for line in text.splitlines()[-40:]), file=sys.stderr)
    return code == 0


def keep(target: str, work: Path) -> None:
    """Pack as few and as small inputs as reach everything that was reached into ``corpus/``."""
    found, kept, smallest = (work / target / name for name in ("corpus", "kept", "smallest"))
    smallest.mkdir(exist_ok=True)
    options = ["-merge=1", f"-max_len={LONGEST}", "-timeout=120", "-rss_limit_mb=6000"]
    folders = [str(smallest), str(found), str(kept)]
    code = _inside(target, [*options, *folders], work / target / "merge.txt")
    if code:
        raise RuntimeError(f"The merge ended with {code}; see {work / target / 'merge.txt'}.")
    left, inputs = KEPT_BYTES, []
    for content in sorted((path.read_bytes() for path in smallest.iterdir()), key=len):
        left -= len(content)
        if left < 0:
            break
        inputs.append(content)
    write_archive(archive_of(target), inputs)


def seeds(target: str) -> list[bytes]:
    """The inputs that a target begins with."""
    found: list[bytes] = importlib.import_module(f"fuzz.{target}").seeds()
    return found


def _inside(target: str, options: Sequence[str], log: Path) -> int:
    command = [sys.executable, str(HERE / "run.py"), "--inside", target, *options]
    with log.open("wb") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--inside"]:
        fuzz(args[1], args[2:])
    parser = argparse.ArgumentParser(
        description="Fuzz what reads bytes from outside, guided by coverage.",
        epilog="Example: python test/fuzz/run.py image cdr --seconds 60",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="per target (default: 600)")
    parser.add_argument("--work", type=Path, help="folder for logs, inputs and what breaks")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="pack what reached something new into corpus/TARGET.tar.xz",
    )
    given = parser.parse_args(args)
    for target in given.targets:
        if target not in TARGETS:
            parser.error(f"There is no target {target!r}; there are {', '.join(TARGETS)}.")
    if importlib.util.find_spec("atheris") is None:
        parser.error("Fuzzing needs atheris: pip install atheris.")
    work = given.work or Path(tempfile.mkdtemp(prefix="dpt_ros_fuzz_"))
    held = []
    for target in given.targets or TARGETS:
        held.append(run(target, given.seconds, work))
        if given.keep and held[-1]:
            keep(target, work)
    print(f"{sum(held)} of {len(held)} targets held; everything is in {work}.")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
