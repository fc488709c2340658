# SPDX-License-Identifier: Apache-2.0
"""The ways to run a network that ``dpt_bench engine`` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpt_ros.apps.bench.arguments import ENGINE_ARMS, ENGINE_SIZES
from dpt_ros.apps.bench.network.frames import picture, take
from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.inference.backend import TorchModel
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput
from dpt_ros.engine.runner.chain import Chain
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.kind import Kind
from dpt_ros.engine.runner.streams import CudaStreams, HostStreams
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model, model_spec

REFERENCE, TRANSFORMERS, OURS = "plain fp32", "transformers fp16", "ours"
Call = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """What to predict at which size: ``size`` is (height, width) of the network's input."""

    task: str
    size: tuple[int, int]
    batch: int

    @property
    def name(self) -> str:
        """For rows and files."""
        return f"{self.task} {self.size[0]}x{self.size[1]} x{self.batch}"

    @property
    def tasks(self) -> list[str]:
        """Of "depth" and "labels"."""
        return ["depth", "labels"] if self.task == "both" else [self.task]


class Bench:
    """What the arms of one case share: images, networks by task, settings, device; ``weights`` as
    ``create_model`` takes them."""

    def __init__(
        self, case: Case, names: dict[str, str], weights: str, device: torch.device
    ) -> None:
        self.case, self._names, self._weights, self.device = case, names, weights, device
        self.half = torch.float16 if device.type == "cuda" else torch.bfloat16
        height, width = case.size
        self.camera = ENGINE_SIZES.get(case.size, case.size)
        random = np.random.default_rng(0)
        self.pictures = [picture(random, *self.camera) for _ in range(case.batch)]
        self.pixels = torch.from_numpy(np.stack(self.pictures)).to(device)
        self.settings = Settings(
            input_height=height, input_width=width, output_size="network", smoothing_strength=0.0
        )
        metric, depth = model_spec(names["depth"]).invert, "depth" in case.tasks
        self.outputs = OutputRequest(
            depth=depth and metric, inverse=depth and not metric, labels="labels" in case.tasks
        )
        self.streams = CudaStreams(device) if device.type == "cuda" else HostStreams()

    def model(self, task: str) -> Any:
        """A new copy of the network for a task, always with the same weights."""
        torch.manual_seed(0)
        return create_model(self._names[task], self._weights or None)

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
            spec = model_spec(self._names[task])
            given = self.case.size, spec.mean, spec.std, self.device, dtype
            prepare = DeviceInput("rgb8", (*self.camera, 3), *given)
            parts.append((task, prepare, predict(task)))

        @torch.inference_mode()
        def call() -> dict[str, Tensor]:
            maps = {task: network(prepare(self.pixels)) for task, prepare, network in parts}
            return {
                task: m.float() if task == "depth" else m.argmax(1).add(1).to(torch.uint8)
                for task, m in maps.items()
            }

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
        if task == "depth":
            kind, output = transformers.DPTForDepthEstimation, "predicted_depth"
        else:
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


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


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
