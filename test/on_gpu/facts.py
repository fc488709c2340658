# SPDX-License-Identifier: Apache-2.0
"""The first step of scripts/gpu: what this machine is, and whether it can be used at all."""

from __future__ import annotations

import shutil
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers.plain_torch import plain_torch
from on_gpu.checks import attempt, require, without
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpt_ros.apps.bench.network import roofline
from dpt_ros.apps.child_process import emit
from dpt_ros.apps.report import environment
from dpt_ros.engine.inference import kernels


def _device(small: bool) -> torch.device:
    return torch.device("cpu" if small else "cuda")


def ready(small: bool, out: str) -> None:
    """The imports are done; is there a GPU that this process can use?"""
    if small:
        without("hypothesis", "rclpy")
    else:
        torch.cuda.init()
        torch.ones(1, device="cuda").sum().item()
    emit({"torch": torch.__version__, "device": str(_device(small))})


def facts(small: bool, out: str) -> None:
    """Versions, device, compiler, attention, one kernel, what a launch costs, peak rates."""
    device = _device(small)
    attempt("environment", environment)
    attempt("device", partial(_properties, device))
    attempt("compiler", _compiler)
    attempt("attention", partial(_attention, small))
    attempt("probe kernel", partial(_probe, device))
    attempt("launches", partial(_launches, small))
    attempt("peaks", lambda: roofline.peaks(str(device)))


def _properties(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"name": "cpu"}
    found = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": found.name,
        "capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "memory (MiB)": total >> 20,
        "free (MiB)": free >> 20,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "built for": torch.cuda.get_arch_list(),
    }


def _compiler() -> dict[str, Any]:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    programs = {name: shutil.which(name) for name in ("cc", "gcc", "clang", "ptxas")}
    return {**programs, "Python.h": str(header) if header.exists() else None}


def _attention(small: bool) -> dict[str, Any]:
    """Which backends compute a ViT's attention, in how many milliseconds, and the default."""
    device = _device(small)
    dtype = torch.float32 if small else torch.float16
    query = torch.randn(1, 12, 17 if small else 577, 64, device=device, dtype=dtype)
    found: dict[str, Any] = {
        "default": SDPBackend(torch._fused_sdp_choice(query, query, query)).name
    }
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.MATH,
    ):
        try:
            with torch.inference_mode(), sdpa_kernel([backend]):
                work = partial(F.scaled_dot_product_attention, query, query, query)
                found[backend.name] = _milliseconds(work, small)
        except RuntimeError as error:
            found[backend.name] = str(error).splitlines()[0][:100]
    return found


def _milliseconds(work: Callable[[], Any], small: bool, repeats: int = 50) -> float:
    """The mean of some calls in a row, after two."""
    for _ in range(2):
        work()
    _wait(small)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(small)
    return 1e3 * (time.perf_counter() - begin) / repeats


def _wait(small: bool) -> None:
    if not small:
        torch.cuda.synchronize()


def _probe(device: torch.device) -> dict[str, Any]:
    """One kernel of the project beside plain torch, and how long its first call takes."""
    x = torch.randn(1, 32, 16, 16, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(32, device=device)
    begin = time.perf_counter()
    found = kernels.group_norm_act(x, weight, weight, 8, 1e-5)
    spent = time.perf_counter() - begin
    with plain_torch():
        expected = kernels.group_norm_act(x, weight, weight, 8, 1e-5)
    error = float((found - expected).abs().max())
    require(error < 1e-4, f"the kernel is off by {error}")
    return {"first call (s)": spent, "largest difference": error}


def _launches(small: bool) -> dict[str, Any]:
    """Microseconds of Python and of the device for one small operation, alone and in a graph."""
    x = torch.zeros(64, device=_device(small))
    count = 1000
    x.add_(1)
    _wait(small)
    begin = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    launched = time.perf_counter()
    _wait(small)
    done = time.perf_counter()
    found = {
        "launch (us)": 1e6 * (launched - begin) / count,
        "all (us)": 1e6 * (done - begin) / count,
    }
    if not small:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                x.add_(1)
        found["in a graph (us)"] = 1e3 * _milliseconds(graph.replay, small, 10) / count
    return found
