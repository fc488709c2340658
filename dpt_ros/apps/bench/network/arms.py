# SPDX-License-Identifier: Apache-2.0
"""The ways to run a network that ``dpt_bench engine`` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpt_ros.apps.bench.network.frames import picture
from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput
from dpt_ros.engine.runner.chain import Chain, Kind
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import CudaStreams, HostStreams, Streams
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model, model_spec

REFERENCE = "plain fp32"
OURS = "ours"
TRANSFORMERS = "transformers fp16"
# Size of the network's input, height x width, and the camera's picture that leads to it.
SIZES: dict[str, tuple[int, int]] = {
    "384x384": (480, 480),
    "384x512": (480, 640),
    "384x672": (720, 1280),
}
SIZES["480x640"] = (480, 640)


@dataclass(frozen=True)
class Case:
    """What to predict at which size: ``size`` is (height, width) of the network's input."""

    task: str
    size: tuple[int, int]
    batch: int

    @property
    def name(self) -> str:
        return f"{self.task} {self.size[0]}x{self.size[1]} x{self.batch}"


class Bench:
    """What the arms of one case share: the pictures, the weights, the device.

    Args:
        case: what to measure.
        depth_network, label_network: names of the zoo.
        weights: as ``create_model`` takes them.
        device: where to run.
    """

    def __init__(
        self,
        case: Case,
        depth_network: str,
        label_network: str,
        weights: str,
        device: torch.device,
    ) -> None:
        self.case = case
        self.device = device
        self.half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self.names = {"depth": depth_network, "labels": label_network}
        self._weights = weights
        self.camera = SIZES.get(f"{case.size[0]}x{case.size[1]}", case.size)
        random = np.random.default_rng(0)
        self.pictures = [picture(random, *self.camera) for _ in range(case.batch)]
        self.pixels = torch.from_numpy(np.stack(self.pictures)).to(device)
        self.wants = {"depth": case.task != "labels", "labels": case.task != "depth"}

    def model(self, task: str) -> Any:
        """A new copy of the network for a task, always with the same weights."""
        torch.manual_seed(0)
        return create_model(self.names[task], self._weights or None)

    def tasks(self) -> list[str]:
        return [task for task, wanted in self.wants.items() if wanted]

    def settings(self) -> Settings:
        height, width = self.case.size
        return Settings(
            input_height=height,
            input_width=width,
            output_size="network",
            smoothing_strength=0.0,
        )

    def networks(self, dtype: torch.dtype, compiled: bool = False) -> Networks:
        nets = {
            task: Network(self.model(task), self.device, dtype, compiled=compiled)
            for task in self.tasks()
        }
        return Networks(
            depth=nets.get("depth"),
            labels=nets.get("labels"),
            device=self.device,
            precision=str(dtype),
            class_names=(),
            palette=np.zeros((256, 3), np.uint8),
            random=True,
            notes=(),
        )

    def outputs(self) -> OutputRequest:
        metric = model_spec(self.names["depth"]).invert
        depth = self.wants["depth"]
        return OutputRequest(
            depth=depth and metric,
            inverse=depth and not metric,
            labels=self.wants["labels"],
        )

    def streams(self) -> Streams:
        return CudaStreams(self.device) if self.device.type == "cuda" else HostStreams()


Call = Callable[[], dict[str, Tensor]]


def _plain(bench: Bench, dtype: torch.dtype, wrap: Callable[[nn.Module], Any]) -> Call:
    """The published network as it is, behind preprocessing in plain torch."""
    parts = []
    for task in bench.tasks():
        model = bench.model(task).to(bench.device, dtype)
        spec = model.spec
        prepare = DeviceInput(
            "rgb8", (*bench.camera, 3), bench.case.size, spec.mean, spec.std, bench.device, dtype
        )
        parts.append((task, prepare, wrap(model)))

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        results = {}
        for task, prepare, model in parts:
            found = model(prepare(bench.pixels))[task]
            results[task] = (
                found.float() if task == "depth" else found.argmax(1).add(1).to(torch.uint8)
            )
        return results

    return call


def _transformers(bench: Bench) -> Call:
    """The port of Hugging Face with random weights of its own: its time only."""
    import transformers

    parts = []
    for task in bench.tasks():
        kind = transformers.DPTForDepthEstimation
        if task == "labels":
            kind = transformers.DPTForSemanticSegmentation
        config = transformers.DPTConfig(
            is_hybrid=True,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            backbone_out_indices=[0, 1, 8, 11],
            neck_hidden_sizes=[256, 512, 768, 768],
            reassemble_factors=[1, 1, 1, 0.5],
            neck_ignore_stages=[0, 1],
            backbone_featmap_shape=[1, 1024, 24, 24],
            num_labels=150,
        )
        spec = model_spec("dpt_hybrid_midas")
        prepare = DeviceInput(
            "rgb8",
            (*bench.camera, 3),
            bench.case.size,
            spec.mean,
            spec.std,
            bench.device,
            bench.half,
        )
        model = kind(config).eval().to(bench.device, bench.half)
        model.dpt.embeddings.image_size = bench.case.size  # it refuses any other
        parts.append((task, prepare, model))

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        results = {}
        for task, prepare, model in parts:
            found = model(pixel_values=prepare(bench.pixels))
            if task == "depth":
                results[task] = found.predicted_depth.float()
            else:
                results[task] = found.logits.argmax(1).add(1).to(torch.uint8)
        return results

    return call


def _ours(bench: Bench, graph: bool = True, compiled: bool = False) -> Call:
    networks = bench.networks(bench.half, compiled)
    streams = bench.streams()
    kind = Kind("rgb8", (*bench.camera, 3), "uint8", bench.outputs())
    with streams.on("compute"):
        chain = Chain(networks, kind, False, bench.settings(), streams)
        for _ in range(3):
            found = chain(bench.pixels, float("inf"))
    streams.settle()
    if graph:
        replay, found = streams.record(lambda: chain(bench.pixels, float("inf")))

    def call() -> dict[str, Tensor]:
        with streams.on("compute"):
            if graph:
                replay()
                results = found
            else:
                results = chain(bench.pixels, float("inf"))
            if bench.device.type == "cuda":
                done = torch.cuda.current_stream().record_event()
        if bench.device.type == "cuda":
            torch.cuda.current_stream().wait_event(done)
        return {"labels" if k == "labels" else "depth": v for k, v in results.items()}

    return call


def _from_host(bench: Bench) -> Call:
    runner = StreamRunner(bench.networks(bench.half), bench.settings(), bench.streams(), print)
    frames = [
        Frame(picture, "rgb8", stamp_ns=k, source=str(k))
        for k, picture in enumerate(bench.pictures)
    ]

    def call() -> dict[str, Tensor]:
        ticket = runner.start(frames, bench.outputs(), bench.settings())
        predictions = ticket.wait()
        ticket.release()
        results = {}
        for name in ("depth", "inverse", "labels"):
            arrays = [getattr(p, name) for p in predictions]
            if arrays[0] is not None:
                key = "labels" if name == "labels" else "depth"
                results[key] = torch.from_numpy(np.stack(arrays))
        return results

    return call


def _compile(model: nn.Module) -> Any:
    return torch.compile(
        model.to(memory_format=torch.channels_last), mode="max-autotune", dynamic=False
    )


ARMS: dict[str, Callable[[Bench], Call]] = {
    REFERENCE: lambda b: _plain(b, torch.float32, lambda m: m),
    "plain fp16": lambda b: _plain(
        b, b.half, lambda m: m.to(memory_format=torch.channels_last)
    ),
    TRANSFORMERS: _transformers,
    "compile max-autotune fp16": lambda b: _plain(b, b.half, _compile),
    "ours, no graph": lambda b: _ours(b, graph=False),
    "ours, compiled": lambda b: _ours(b, compiled=True),
    OURS: _ours,
    "ours, from host": _from_host,
}  # fmt: skip
