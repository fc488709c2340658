# SPDX-License-Identifier: Apache-2.0
"""Kernels, launches and waits of a few frames by the profiler. Run last: it slows what follows.

The profiler attaches CUPTI to the process for good, so nothing may be timed after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
_WAITS = ("Synchronize", "StreamWaitEvent", "Memcpy")


def counts(call: Callable[[], Any], repeats: int, path: Path | None = None) -> dict[str, Any]:
    """Profile some calls.

    Args:
        call: what to profile; it need not wait for the device.
        repeats: how many calls.
        path: of a trace for chrome://tracing or Perfetto, None for none.

    Returns:
        all per call: "kernels" by name, "copies", "launches" and "waits" by the CUDA function
        that was called, "kernel ms" by name (the 20 that took most), "operations" (ATen, from
        Python or from inside of others).
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    if path is not None:
        profile.export_chrome_trace(str(path))
    found: dict[str, Counter[str]] = {
        name: Counter() for name in ("kernels", "copies", "launches", "waits", "operations")
    }
    spent: Counter[str] = Counter()
    for event in profile.events():
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if name.startswith(("Memcpy", "Memset")):
                found["copies"][name] += 1
            elif not getattr(event, "is_user_annotation", False):
                found["kernels"][name] += 1
                spent[name[:100]] += event.time_range.elapsed_us() * 1e-3
        elif not name.startswith(("cuda", "cu")):
            found["operations"][name] += name.startswith("aten::")
        elif any(part in name for part in _LAUNCHES):
            found["launches"][name] += 1
        elif any(part in name for part in _WAITS):
            found["waits"][name] += 1
    return {
        **{
            name: {key: n / repeats for key, n in found[name].items()}
            for name in ("kernels", "launches", "waits")
        },
        "copies": found["copies"].total() / repeats,
        "kernel ms": {name: ms / repeats for name, ms in spent.most_common(20)},
        "operations": found["operations"].total() / repeats,
    }
