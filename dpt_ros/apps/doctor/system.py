# SPDX-License-Identifier: Apache-2.0
"""Checks of the machine itself: CPU, memory, clock, shared memory, sockets, compiler."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import dpt_ros
from dpt_ros.apps.doctor.finding import Finding, Machine, error, size_of, versions, warning

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_SEGMENT = 64 << 20  # of config/fastdds.xml
_RECEIVE_BUFFER = 8 << 20  # bytes: a raw image of a large camera
_STA_UNSYNC = 0x40  # timex.h
_CONTAINER = "In a container: --shm-size=256m or --ipc=host"


def check_system(machine: Machine) -> Iterator[Finding]:
    """All checks of this file; they import nothing of others."""
    yield _package()
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")
    name = platform.system()
    with suppress(OSError, KeyError):
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    yield Finding("system", f"{name}, kernel {platform.release()}, {platform.machine()}")
    yield _cpu(machine)
    yield _memory(machine)
    yield _clock()
    yield _shared_memory(machine)
    yield _sockets(machine)
    yield _compiler(machine)


def _package() -> Finding:
    installed = versions("dpt_ros").get("dpt_ros")
    message = f"{dpt_ros.__version__} in {Path(dpt_ros.__file__).parent}"
    if installed in (None, dpt_ros.__version__):
        return Finding("dpt_ros", message)
    message += f", but {installed} is installed: two copies are mixed."
    return warning("dpt_ros", message, "Unset PYTHONPATH, or install again.")


def _cpu(machine: Machine) -> Finding:
    lines = [line.partition(":") for line in machine.read("cpuinfo").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # of the first core
    model = facts.get("model name", platform.machine())
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    has = [name for name in _CPU_FEATURES if name in flags]
    bf16 = "fast" if {"avx512_bf16", "amx_bf16", "bf16"} & flags else "emulated, slower than fp32"
    cores = len(os.sched_getaffinity(0))
    return Finding("CPU", f"{model}, {cores} usable cores, {' '.join(has)}; bf16 is {bf16}")


def _memory(machine: Machine) -> Finding:
    lines = (line.split() for line in machine.read("meminfo").splitlines())
    sizes = {words[0]: 1024 * int(words[1]) for words in lines}
    free, total = sizes.get("MemAvailable:", 0), sizes.get("MemTotal:", 0)
    message = f"{size_of(free)} of {size_of(total)} free"
    if free < 2e9:
        return warning("memory", f"{message}; large networks need 3 GB.", "End other programs.")
    return Finding("memory", message)


def _clock() -> Finding:
    now = time.time()
    message = datetime.fromtimestamp(now).astimezone().isoformat(timespec="seconds")
    if now < Path(dpt_ros.__file__).stat().st_mtime - 86400:
        message += " is before dpt_ros was installed: stamps are wrong, and downloads fail."
        return error("clock", message, "Set the clock: timedatectl set-ntp true.")
    state = "unknown"
    timex = (ctypes.c_long * 64)()  # zeros read; its sixth field is the status
    with suppress(AttributeError):
        if ctypes.CDLL(None).adjtimex(timex) >= 0:
            state = "no (timedatectl set-ntp true)" if timex[5] & _STA_UNSYNC else "yes"
    return Finding("clock", f"{message}; synchronised, for cameras on other machines: {state}")


def _shared_memory(machine: Machine) -> Finding:
    name = str(machine.shm)
    try:
        room = shutil.disk_usage(machine.shm)
    except OSError as why:
        message = f"It cannot be used ({why.strerror}): large images are lost."
        return error(name, message, f"{_CONTAINER}.")
    count, left = _left_over(machine.shm)
    message = f"{size_of(room.free)} of {size_of(room.total)} free"
    clean = f"With no ROS process running: rm {name}/fastrtps_* {name}/fastdds_*."
    if count:
        message += f"; {count} segments left over by Fast DDS take {size_of(left)}"
    if room.free < 1.1 * _SEGMENT:
        return error(
            name,
            f"{message}: too little for the {size_of(_SEGMENT)} segment of the Fast DDS profile;"
            " images above 0.5 MB get lost.",
            f"{clean if left else ''} {_CONTAINER}; else: mount -o remount,size=1g {name}.",
        )
    if left > min(1e9, room.total / 4):
        return warning(name, f"{message}.", clean)
    if room.total < 256e6:
        message += ": room for one node, not for two and a camera."
        return warning(name, message, f"{_CONTAINER}.")
    return Finding(name, message)


def _left_over(folder: Path) -> tuple[int, int]:
    """Number and bytes of segments without an owner, who would hold a lock on NAME_el."""
    count = size = 0
    for lock in folder.glob("fast*_el"):
        with suppress(OSError), lock.open("rb") as file:  # held, of another user, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size += lock.with_name(lock.name.removesuffix("_el")).stat().st_size
            count += 1
    return count, size


def _sockets(machine: Machine) -> Finding:
    text = machine.read("sys/net/core/rmem_max").strip() or "0"
    message = f"net.core.rmem_max is {size_of(int(text))}"
    if int(text) < _RECEIVE_BUFFER:
        more = f"sysctl -w net.core.rmem_max={_RECEIVE_BUFFER}"
        message += f"; for raw images from another machine: {more}"
    return Finding("UDP buffers", message)


def _compiler(machine: Machine) -> Finding:
    given = machine.env.get("CC", "")  # as triton/runtime/build.py looks for it
    compiler = machine.which(given) if given else machine.which("gcc", "clang")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = [] if compiler else [f"no {given or 'gcc or clang'} on PATH"]
    missing += [] if header.exists() else [f"no {header}"]
    if not missing:
        return Finding("C compiler", compiler)
    message = f"{' and '.join(missing)}: Triton cannot compile its launcher, so on a GPU the node"
    message += " runs plain torch, which is slower. On a CPU nothing is lost."
    if not versions("triton") and not machine.which("nvidia-smi"):
        return Finding("C compiler", message)
    return warning("C compiler", message, "apt install gcc python3-dev, or set CC.")
