# SPDX-License-Identifier: Apache-2.0
"""What a profiler sees of a few frames: kernels, launches, waits. Run last: it slows what follows.

The profiler attaches CUPTI to the process for good, so nothing may be timed after it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
_WAITS = ("Synchronize", "StreamWaitEvent", "Memcpy")


def count_kernels(call: Callable[[], Any]) -> int:
    """Kernels of one call, copies left out; 0 without a GPU."""
    return sum(counts(call, 1)["kernels"].values()) if torch.cuda.is_available() else 0


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
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    if path is not None:
        profile.export_chrome_trace(str(path))
    kernels: Counter[str] = Counter()
    spent: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    copies = operations = 0
    for event in profile.events():
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if name.startswith(("Memcpy", "Memset")):
                copies += 1
            elif not getattr(event, "is_user_annotation", False):
                kernels[name] += 1
                spent[name] += event.time_range.elapsed_us() * 1e-3
        elif name.startswith(("cuda", "cu")):
            calls[name] += 1
        else:
            operations += name.startswith("aten::")
    most = sorted(spent, key=lambda name: -spent[name])[:20]
    launches = {k: n / repeats for k, n in calls.items() if any(p in k for p in _LAUNCHES)}
    waits = {
        k: n / repeats
        for k, n in calls.items()
        if k not in launches and any(p in k for p in _WAITS)
    }
    return {
        "kernels": {name: n / repeats for name, n in kernels.items()},
        "copies": copies / repeats,
        "launches": launches,
        "waits": waits,
        "kernel ms": {name[:100]: spent[name] / repeats for name in most},
        "operations": operations / repeats,
    }
