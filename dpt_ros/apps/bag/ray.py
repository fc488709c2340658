# SPDX-License-Identifier: Apache-2.0
"""Many bags on the processes of a Ray cluster; a bag whose process is killed goes to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from dpt_ros.bag.job import Job, Result
from dpt_ros.bag.reader import BagError
from dpt_ros.bag.run import convert
from dpt_ros.engine.faults import DeviceLostError
from dpt_ros.engine.loading import NetworkError
from dpt_ros.engine.provenance import weights_paths

_RETRIES = 5  # processes that one bag may lose
_CPUS = 4


def run_on_ray(
    jobs: Sequence[Job], cpus: int | None, address: str | None, warn: Callable[[str], None]
) -> Iterator[tuple[Job, Result | str]]:
    """Run jobs, each in a process of its own that has a GPU or some CPU cores: each job with its
    result, or an error message, in the order of finishing.

    A job whose process ends is given to another one, which resumes after the last complete file.
    All processes must see the folders of input and output.

    Args:
        cpus: cores of each process; None for one GPU each, or a few cores where there is none.
        address: of a running cluster; None takes the one that this process is connected to, else
            starts one on this machine and ends it.

    Raises:
        ValueError: there is no cluster at the address, or it is too small.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry by default
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, include_dashboard=None if address else False)
        except ConnectionError as error:
            raise ValueError(f"No Ray cluster found at {address}: {error}") from error
    there = ray.cluster_resources()
    needs = _needs(cpus, there)
    if short := [name for name, count in needs.items() if there.get(name, 0) < count]:
        if ours:
            ray.shutdown()
        raise ValueError(
            f"Each process needs {needs[short[0]]} {short[0]}, but the Ray cluster has"
            f" {there.get(short[0], 0):g}; set --cpus."
        )
    return _results(ray, jobs, needs, ours, warn)


def _needs(cpus: int | None, there: dict[str, float]) -> dict[str, int]:
    if cpus is None and there.get("GPU"):
        return {"CPU": 1, "GPU": 1}
    return {"CPU": cpus or max(1, min(_CPUS, int(there.get("CPU", 1))))}


def _results(
    ray: Any, jobs: Sequence[Job], needs: dict[str, int], ours: bool, warn: Callable[[str], None]
) -> Iterator[tuple[Job, Result | str]]:
    room = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
    task = ray.remote(**room, max_retries=_RETRIES)(_convert)
    threads = None if "GPU" in needs else needs["CPU"]
    try:
        tasks = {task.remote(_anywhere(job), threads): job for job in jobs}
        with tqdm(total=len(jobs), unit="bag", disable=None) as bar:
            while tasks:
                (ready,), _ = ray.wait(list(tasks), num_returns=1)
                job = tasks.pop(ready)
                try:
                    result, warnings = ray.get(ready)
                except ray.exceptions.RayError as error:
                    result, warnings = f"its process failed: {error}", []
                for message in warnings:
                    warn(f"{job.source}: {message}")
                bar.update()
                yield job, result
    finally:
        if ours:
            ray.shutdown()


def _anywhere(job: Job) -> Job:
    """A job with absolute paths."""
    paths = {k: str(path.absolute()) for k, path in weights_paths(job.settings).items()}
    settings = replace(job.settings, **paths)  # type: ignore[arg-type]
    return replace(job, source=job.source.absolute(), out=job.out.absolute(), settings=settings)


def _convert(job: Job, threads: int | None) -> tuple[Result | str, list[str]]:
    """On a process of the cluster: the result or an error message; and the warnings."""
    if threads is not None:
        torch.set_num_threads(threads)
    warnings: list[str] = []
    try:
        return convert(job, warnings.append), warnings
    except (
        BagError, NetworkError, OSError, DeviceLostError, torch.OutOfMemoryError
    ) as error:  # fmt: skip
        return str(error), warnings
