# SPDX-License-Identifier: Apache-2.0
"""The ways to run a network that ``dpt_bench engine`` compares, and whole frames: one row each,
measured by a process that does nothing else. So the arms do not share memory, choices of libraries
or a profiler, and an arm that fails does not affect the others."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpt_ros.apps.bench import ENGINE_ARMS, ENGINE_SIZES
from dpt_ros.apps.bench.network.frames import Cameras, picture, take, times_of
from dpt_ros.apps.bench.network.roofline import peaks
from dpt_ros.apps.child_process import emit
from dpt_ros.apps.report import summarize
from dpt_ros.engine.frame import Frame, Kind, OutputRequest
from dpt_ros.engine.inference.backend import TorchModel
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.runner.chain import Chain
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import CudaStreams, Streams
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model, model_spec

REFERENCE, TRANSFORMERS, OURS = "plain fp32", "transformers fp16", "ours"
Row = dict[str, Any]
Call = Callable[[], dict[str, Tensor]]
_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
_WAITS = ("Synchronize", "StreamWaitEvent", "Memcpy")


def _streams(device: torch.device) -> Streams:
    return CudaStreams(device) if device.type == "cuda" else Streams()


@dataclass(frozen=True)
class Case:
    """What is predicted, at which size, with which networks, where."""

    task: str
    size: tuple[int, int]  # (height, width) of the networks' input
    batch: int
    names: dict[str, str]  # of the networks by task
    weights: str  # as ``create_model`` takes them
    device: str

    @property
    def name(self) -> str:
        """For rows and files."""
        return f"{self.task} {self.size[0]}x{self.size[1]} x{self.batch}"

    @property
    def tasks(self) -> list[str]:
        """Of "depth" and "labels"."""
        return ["depth", "labels"] if self.task == "both" else [self.task]


class Bench:
    """What the arms of one case share: images, networks by task, settings, device."""

    def __init__(self, case: Case) -> None:
        self.case, self.device = case, torch.device(case.device)
        self.half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        height, width = case.size
        self.camera = ENGINE_SIZES.get(case.size, case.size)
        random = np.random.default_rng(0)
        self.pictures = [picture(random, *self.camera) for _ in range(case.batch)]
        self.pixels = torch.from_numpy(np.stack(self.pictures)).to(self.device)
        self.settings = Settings(
            input_height=height, input_width=width, output_size="network", smoothing_strength=0.0
        )
        metric, depth = model_spec(case.names["depth"]).invert, "depth" in case.tasks
        self.outputs = OutputRequest(
            depth=depth and metric, inverse=depth and not metric, labels="labels" in case.tasks
        )
        self.streams = _streams(self.device)

    def model(self, task: str) -> Any:
        """A new copy of the network for a task, always with the same weights."""
        torch.manual_seed(0)
        return create_model(self.case.names[task], self.case.weights or None)

    def networks(self, compiled: bool = False) -> Networks:
        """Our own networks, in half precision."""
        fields: dict[str, Any] = {"depth": None, "labels": None, "class_names": ()}
        for task in self.case.tasks:
            model = self.model(task)
            backend = TorchModel(model, self.device, self.half, compiled)
            fields[task] = Network(model.spec, self.device, backend)
        palette = np.zeros((256, 3), np.uint8)
        return Networks(device=self.device, precision=str(self.half), palette=palette, **fields)

    def forward(
        self, dtype: torch.dtype, predict: Callable[[str], Callable[[Tensor], Tensor]]
    ) -> Call:
        """The networks that ``predict`` makes for a task, behind preprocessing in plain torch."""
        parts = []
        for task in self.case.tasks:
            spec = model_spec(self.case.names[task])
            given = self.case.size, spec.mean, spec.std, self.device, dtype
            prepare = DeviceInput("rgb8", (*self.camera, 3), *given)
            parts.append((task, prepare, predict(task)))

        @torch.inference_mode()
        def call() -> dict[str, Tensor]:
            maps = {task: network(prepare(self.pixels)) for task, prepare, network in parts}
            if "depth" in maps:
                maps["depth"] = maps["depth"].float()
            if "labels" in maps:
                maps["labels"] = maps["labels"].argmax(1).add(1).to(torch.uint8)
            return maps

        return call


def _plain(bench: Bench, dtype: torch.dtype, wrap: Callable[[nn.Module], Any]) -> Call:
    """The published network, unchanged."""

    def predict(task: str) -> Callable[[Tensor], Tensor]:
        model = wrap(bench.model(task).to(bench.device, dtype))
        return lambda images: model(images)[task]

    return bench.forward(dtype, predict)


def _transformers(bench: Bench) -> Call:
    """The port of Hugging Face with random weights of its own: its time only."""
    import transformers

    config = transformers.DPTConfig(
        is_hybrid=True, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, backbone_out_indices=[0, 1, 8, 11],
        neck_hidden_sizes=[256, 512, 768, 768], reassemble_factors=[1, 1, 1, 0.5],
        neck_ignore_stages=[0, 1], backbone_featmap_shape=[1, 1024, 24, 24], num_labels=150,
    )  # fmt: skip

    def predict(task: str) -> Callable[[Tensor], Tensor]:
        kind, output = transformers.DPTForDepthEstimation, "predicted_depth"
        if task == "labels":
            kind, output = transformers.DPTForSemanticSegmentation, "logits"
        model = kind(config).eval().to(bench.device, bench.half)
        model.dpt.embeddings.image_size = bench.case.size  # no other is accepted
        return lambda images: getattr(model(pixel_values=images), output)

    return bench.forward(bench.half, predict)


def _ours(bench: Bench, graph: bool = True, compiled: bool = False) -> Call:
    streams, on_gpu, found = bench.streams, bench.device.type == "cuda", dict[str, Tensor]()
    kind = Kind("rgb8", (*bench.camera, 3), "uint8", bench.outputs)
    with streams.on("compute"):
        chain = Chain(bench.networks(compiled), kind, False, bench.settings, streams)

        def work() -> None:
            images, _ = chain.preprocess(bench.pixels)
            found.update(chain.finish(chain.infer(images), bench.pixels, float("inf")))

        for _ in range(3):
            work()
    streams.synchronize()
    replay = streams.capture(work) if graph else work

    def call() -> dict[str, Tensor]:
        with streams.on("compute"):
            replay()
            done = torch.cuda.current_stream().record_event() if on_gpu else None
        if done is not None:
            torch.cuda.current_stream().wait_event(done)
        return {"labels" if k == "labels" else "depth": v for k, v in found.items()}

    return call


def _from_host(bench: Bench) -> Call:
    runner = StreamRunner(bench.networks(), bench.settings, bench.streams, print)
    frames = [
        Frame(image, "rgb8", stamp_ns=k, source=str(k)) for k, image in enumerate(bench.pictures)
    ]

    def call() -> dict[str, Tensor]:
        predictions = take(runner.start(frames, bench.outputs, bench.settings))
        results = {}
        for name, key in (("depth", "depth"), ("inverse", "depth"), ("labels", "labels")):
            if getattr(predictions[0], name) is not None:
                arrays = [getattr(one, name) for one in predictions]
                results[key] = torch.from_numpy(np.stack(arrays))
        return results

    return call


_channels_last = methodcaller("to", memory_format=torch.channels_last)


def _compile(model: nn.Module) -> Any:
    return torch.compile(_channels_last(model), mode="max-autotune", dynamic=False)


_MAKERS: tuple[Callable[[Bench], Call], ...] = (
    lambda b: _plain(b, torch.float32, lambda model: model),
    lambda b: _plain(b, b.half, _channels_last),
    _transformers,
    lambda b: _plain(b, b.half, _compile),
    lambda b: _ours(b, graph=False),
    lambda b: _ours(b, compiled=True),
    _ours,
    _from_host,
)
ARMS = dict(zip(ENGINE_ARMS, _MAKERS, strict=True))


def measure(kind: str, threads: int, **given: Any) -> None:
    """Emit a row of a kind, measured by ``threads`` threads, 0 for torch's choice."""
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kinds: Any = {"peaks": peaks, "network": network, "frames": frames, "trace": trace}
    emit(kinds[kind](**given))


def network(
    case: Case, arm: str, expected: Path, rounds: int, warm_up: int, rate: float, paced_rounds: int
) -> Row:
    """One arm: its parity with the reference, its times, last its kernels."""
    bench = Bench(case)
    on_gpu = bench.device.type == "cuda"
    start = time.perf_counter()
    call = ARMS[arm](bench)
    found = {name: value.clone().cpu() for name, value in call().items()}
    row: Row = {"first (s)": time.perf_counter() - start, "parity": {}}
    if arm == REFERENCE:
        torch.save(found, expected)
    if arm != TRANSFORMERS and expected.exists():  # theirs has other random weights
        row["parity"] = compare(found, torch.load(expected, weights_only=True))
    row["paces"] = {"back to back": _times(call, on_gpu, rounds, min(warm_up, rounds))}
    if paced_rounds:
        paced = _times(call, on_gpu, paced_rounds, min(10, paced_rounds), rate)
        row["paces"][f"{rate:g} Hz"] = paced
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    if on_gpu:
        torch.cuda.synchronize()
    row["pictures per second"] = case.batch * rounds / (time.perf_counter() - start)
    if on_gpu:
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    row["kernels"] = sum(_counts(call, 1)["kernels"].values()) if on_gpu else 0
    return row


def frames(settings: Row, cameras: int, picture: tuple[int, int], rounds: int) -> Row:
    """Whole frames with the node's default settings, smoothing included."""
    own, notes = Settings(**settings), list[str]()
    runner, outputs = _runner(own, notes)
    row = times_of(runner, Cameras(cameras, *picture), outputs, own, rounds)
    if own.device.startswith("cuda"):
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    return row | {"notes": notes}


def trace(settings: Row, cameras: int, picture: tuple[int, int], path: Path) -> Row:
    """Three default frames under the profiler, written to a file."""
    own, shown, numbers = Settings(**settings), Cameras(cameras, *picture), itertools.count()
    runner, outputs = _runner(own, [])

    def call() -> None:
        take(runner.start(shown.frames(next(numbers)), outputs, own))

    for _ in range(6):
        call()
    return _counts(call, 3, path)


def _runner(settings: Settings, notes: list[str]) -> tuple[StreamRunner, OutputRequest]:
    networks = load_networks(settings)
    runner = StreamRunner(networks, settings, _streams(networks.device), notes.append)
    return runner, OutputRequest(depth=networks.metric, inverse=not networks.metric, labels=True)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Mean relative depth error and the share of equal labels, for what both have.

    The error is infinite where a depth is not finite though the expected one is. Random weights
    can give a depth of 0 everywhere, which nothing can be compared with: then there is no error.
    """
    result = {}
    if "depth" in found and "depth" in expected:
        depth, truth = found["depth"].double(), expected["depth"].double().clamp(min=0)
        known = torch.isfinite(truth)
        largest = float(truth[known].max()) if known.any() else 0.0
        if largest > 0:
            error = (depth - truth).abs() / truth.clamp(min=1e-3 * largest)
            result["AbsRel"] = float(error[known].nan_to_num(nan=torch.inf).mean())
    if "labels" in found and "labels" in expected:
        result["labels equal"] = float((found["labels"] == expected["labels"]).double().mean())
    return result


def _times(call: Call, on_gpu: bool, rounds: int, warm_up: int, rate: float = 0.0) -> Row:
    """Milliseconds of ``rounds`` calls one by one, by wall clock, and by events around them on a
    GPU; ``rate`` per second, 0 for back to back. A device that idles between frames clocks down,
    as it does behind a camera."""
    wall: list[float] = []
    events: list[float] = []
    if on_gpu:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in tqdm(range(warm_up + rounds), leave=False, disable=None):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        if on_gpu:
            begun.record()
        call()
        if on_gpu:
            ended.record()
            ended.synchronize()
        end = time.perf_counter()
        wall.append(1e3 * (end - start))
        if on_gpu:
            events.append(begun.elapsed_time(ended))
        if rate:
            time.sleep(max(start + 1.0 / rate - end, 0.0))
    times = {"wall": wall, "events": events} if on_gpu else {"wall": wall}
    return {name: asdict(summarize(values[warm_up:])) for name, values in times.items()}


def _counts(call: Callable[[], Any], repeats: int, path: Path | None = None) -> dict[str, Any]:
    """Profile some calls, which need not wait for the device; with ``path``, write a trace.

    The profiler attaches CUPTI to the process for good, so nothing may be timed after it. Returns
    all per call: "kernels" by name, "copies", "launches" and "waits" by the CUDA function that was
    called, "kernel ms" by name (the 20 that took most), "operations" (ATen, also inside others).
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
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for event in profile.events():
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if name.startswith(("Memcpy", "Memset")):
                found["copies"][name] += 1
            elif not getattr(event, "is_user_annotation", False):
                found["kernels"][name] += 1
                found["kernel ms"][name[:100]] += event.time_range.elapsed_us() * 1e-3
        elif not name.startswith(("cuda", "cu")):
            found["operations"][name] += name.startswith("aten::")
        elif any(part in name for part in _LAUNCHES):
            found["launches"][name] += 1
        elif any(part in name for part in _WAITS):
            found["waits"][name] += 1
    row: Row = {name: found[name].total() / repeats for name in ("copies", "operations")}
    row["kernels"] = {name: count / repeats for name, count in found["kernels"].items()}
    for kind in ("kernel ms", "launches", "waits"):
        row[kind] = {name: value / repeats for name, value in found[kind].most_common(20)}
    return row
