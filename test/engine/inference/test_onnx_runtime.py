# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime computes what PyTorch computes; its providers are chosen, refused and named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.networks import CPU, embedded_networks
from torch import Tensor

from dpt_ros.engine.export.network import export_network
from dpt_ros.engine.faults import AccelerationError, is_out_of_memory
from dpt_ros.engine.inference.backend import BackendError
from dpt_ros.engine.inference.network import Network
from dpt_ros.engine.inference.onnx_runtime import OnnxRuntimeModel, engine_folder, usable_providers
from dpt_ros.model import create_model, model_spec

NAME = "dpt_hybrid_embedded"
SPEC = model_spec(NAME)
CUDA = torch.device("cuda", 1)
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded network, of one size and batch, which is exported faster than an open one."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "fixed.onnx"
    export_network(create_model(NAME), path, batch=1, size=(64, 96))
    return path


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_it_gives_the_depth_and_labels_of_torch(fixed: Path) -> None:
    model, torch_network = OnnxRuntimeModel(fixed, SPEC, CPU, threads=1), embedded_networks().depth
    batch = images(3, 64, 96)  # one by one, because the file's batch is 1
    actual, expected = model(batch), torch_network(batch)
    assert set(actual) == {"inverse_depth", "logits"}
    for name, value in expected.items():
        assert actual[name].dtype == torch.float32
        assert (actual[name] - value).abs().max() <= 1e-4 * value.abs().max()
    assert torch.equal(actual["logits"].argmax(1), expected["logits"].argmax(1))


def test_results_are_not_overwritten_and_are_only_those_asked_for(fixed: Path) -> None:
    model = OnnxRuntimeModel(fixed, SPEC, CPU, threads=1)
    first = model(images(1, 64, 96))
    kept = {name: value.clone() for name, value in first.items()}
    depth = model(images(1, 64, 96), labels=False)
    assert set(depth) == {"inverse_depth"}
    assert torch.equal(depth["inverse_depth"], kept["inverse_depth"])
    assert set(model(-images(1, 64, 96), depth=False)) == {"logits"}
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_images_that_are_not_contiguous_are_read_as_they_are(fixed: Path) -> None:
    model, batch = OnnxRuntimeModel(fixed, SPEC, CPU, threads=1), images(1, 64, 96)
    expected = model(batch)["inverse_depth"]
    laid = batch.contiguous(memory_format=torch.channels_last)
    assert torch.equal(model(laid)["inverse_depth"], expected)


def test_a_size_that_the_file_does_not_take_is_named(fixed: Path) -> None:
    model = OnnxRuntimeModel(fixed, SPEC, CPU)
    with pytest.raises(BackendError, match=r"1x3x64x96, but gets 1x3x96x64.*--size 96x64"):
        model(images(1, 96, 64))


def test_a_file_that_is_damaged_is_named_with_the_reason(fixed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(fixed.read_bytes()[:100_000])
    with pytest.raises(BackendError, match=r"cannot read .*broken\.onnx: .*[Pp]rotobuf"):
        OnnxRuntimeModel(broken, SPEC, CPU)


def test_without_onnx_runtime_the_error_tells_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        OnnxRuntimeModel(Path("any.onnx"), SPEC, CPU)


@pytest.mark.parametrize(
    ("providers", "device", "available", "expected"),
    [
        ("auto", "cuda", GPU, ["tensorrt", "cuda"]),
        ("auto", "cuda", GPU[1:], ["cuda"]),
        ("auto", "cpu", GPU, ["cpu"]),
        ("cuda,tensorrt,cpu", "cuda", GPU, ["cuda", "tensorrt"]),
        ("cuda,cpu", "cpu", GPU[2:], ["cpu"]),
    ],
)
def test_providers_are_those_that_fit_by_preference(
    providers: str, device: str, available: list[str], expected: list[str]
) -> None:
    assert usable_providers(providers, device, available) == expected


@pytest.mark.parametrize(
    ("providers", "device", "available", "sentence"),
    [
        ("cpu", "cuda", GPU, "is cpu, but device is cuda, which takes tensorrt or cuda"),
        ("cuda", "cpu", GPU, "is cuda, but device is cpu, which takes cpu"),
        ("auto", "cuda", GPU[2:], "no provider tensorrt, cuda, only CPU. Install onnxruntime-gpu"),
        ("tensorrt,cuda", "cuda", GPU[1:], "has no provider tensorrt, only CUDA, CPU."),
    ],
)
def test_providers_that_are_not_there_are_named(
    providers: str, device: str, available: list[str], sentence: str
) -> None:
    with pytest.raises(BackendError) as refusal:
        usable_providers(providers, device, available)
    assert sentence in str(refusal.value)


class Runtime(SimpleNamespace):
    """onnxruntime and torch's streams of a GPU that is not there, and what is done with them."""

    def __init__(self, refusals: dict[str, str], absent: tuple[str, ...] = ()) -> None:
        super().__init__(__version__="0", SessionOptions=SessionOptions, RunOptions=RunOptions)
        self.GraphOptimizationLevel = SimpleNamespace(ORT_DISABLE_ALL=0)
        self.refusals, self.absent = refusals, absent
        self.sessions: list[dict[str, dict[str, str]]] = []
        self.events: list[str] = []
        self.fail = ""

    def get_available_providers(self) -> list[str]:
        return GPU

    def InferenceSession(
        self,
        path: str,
        options: Any,
        providers: list[str],
        provider_options: list[dict[str, str]] | None = None,
        enable_fallback: int = 1,
    ) -> Any:
        if provider_options:  # else it is read only
            assert enable_fallback == 0
            if providers[0] in self.refusals:
                raise RuntimeError(self.refusals[providers[0]])
            self.sessions.append(dict(zip(providers, provider_options, strict=True)))
        there = [name for name in providers if name not in self.absent]
        return SimpleNamespace(
            get_providers=lambda: [*there, GPU[2]],
            get_inputs=lambda: [SimpleNamespace(shape=["batch", 3, "16*height", "16*width"])],
            io_binding=lambda: SimpleNamespace(
                bind_input=lambda *args: self.events.append(f"{args[0]} {args[1:3]}"),
                bind_output=lambda *args: self.events.append(f"{args[0]} {args[1:3]}"),
            ),
            run_with_iobinding=self._run,
        )

    def _run(self, binding: Any, options: Any) -> None:
        if self.fail:
            raise ValueError(self.fail)
        self.events.append("run")


class SessionOptions(SimpleNamespace):
    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        setattr(self, name, size)

    def add_session_config_entry(self, key: str, value: str) -> None:
        setattr(self, key, value)


class RunOptions(SimpleNamespace):
    def add_run_config_entry(self, key: str, value: str) -> None:
        setattr(self, key, value)


class Stream:
    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self._events, self.device, self.cuda_stream = name, events, CUDA, 4711

    def wait_stream(self, other: Stream) -> None:
        self._events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Runtime]:
    def make(refusals: dict[str, str] | None = None, absent: tuple[str, ...] = ()) -> Runtime:
        runtime = Runtime(refusals or {}, absent)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        own, caller = (Stream(name, runtime.events) for name in ("own", "caller"))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: own)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
        properties = SimpleNamespace(name="H200", major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        return runtime

    monkeypatch.setenv("DPT_ROS_CACHE", str(tmp_path))
    return make


def checked(model: OnnxRuntimeModel) -> Network:
    """The network as the node checks it, but with images on the host."""
    network = Network(SPEC, CPU, model)
    network.check(240, 320)
    return network


def test_tensorrt_has_a_session_and_an_engine_for_each_size(gpu, tmp_path: Path) -> None:
    runtime = gpu()
    model = OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA, precision="fp16")
    for size in ((240, 320), (240, 320), (64, 96)):
        model(images(2, *size))
    assert [list(session) for session in runtime.sessions] == [GPU[:2]] * 2
    folders = []
    for session, size in zip(runtime.sessions, ("240x320", "64x96"), strict=True):
        options = session[GPU[0]]
        assert options["trt_profile_min_shapes"] == f"images:1x3x{size}"
        assert options["trt_profile_max_shapes"] == f"images:4x3x{size}"
        assert options["trt_fp16_enable"] == options["trt_engine_cache_enable"] == "True"
        assert options["device_id"] == session[GPU[1]]["device_id"] == "1"
        assert options["user_compute_stream"] == "4711"
        folders.append(Path(options["trt_engine_cache_path"]))
    assert len(set(folders)) == 2
    assert all(folder.is_dir() and folder.parent == tmp_path / "tensorrt" for folder in folders)


def test_a_few_shapes_have_sessions_and_when_they_come_back_one_serves_all(gpu, tmp_path) -> None:
    runtime = gpu()
    model = OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA, "cuda")
    made = []
    for width in (64, 96, 64, 128, 96, 64, 160, 64):
        model(images(1, 64, width))
        made.append(len(runtime.sessions))
    # Two are kept; 96 was dropped for 128, and from its return on there is one for all.
    assert made == [1, 2, 2, 3, 4, 4, 4, 4]
    assert list(model._sessions) == [()]


def test_its_work_stands_between_that_of_the_callers_stream(gpu, tmp_path: Path) -> None:
    runtime = gpu()
    model = OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA, "cuda")
    model(images(1, 64, 96), labels=False)
    assert runtime.events == [
        "images ('cuda', 1)",
        "inverse_depth ('cuda', 1)",
        "own waits for caller",
        "run",
        "caller waits for own",
    ]
    assert not model.capturable
    assert "cannot be captured in a CUDA graph" in model.warnings[0]


def test_a_provider_that_refuses_is_left_out_with_its_reason(gpu, tmp_path: Path) -> None:
    runtime = gpu({GPU[0]: "libnvinfer.so.10 is missing"})
    network = checked(OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA))
    assert [list(session) for session in runtime.sessions] == [[GPU[1]]]
    _, warning = network.warnings
    assert "with cuda, which is slower, because of tensorrt: libnvinfer.so.10" in warning


def test_a_provider_that_is_silently_left_out_is_found(gpu, tmp_path: Path) -> None:
    gpu(absent=(GPU[0],))
    network = checked(OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA))
    assert "because of tensorrt: its libraries cannot be loaded" in network.warnings[1]


def test_the_cpu_is_not_taken_in_the_place_of_a_gpu(gpu, tmp_path: Path) -> None:
    gpu({GPU[0]: "no TensorRT"}, absent=(GPU[1],))
    model = OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA)
    with pytest.raises(BackendError) as refusal:
        checked(model)
    for part in (
        "tensorrt: no TensorRT",
        "cuda: its libraries",
        "onnxruntime-gpu",
        "device to cpu",
    ):
        assert part in str(refusal.value)


def test_a_size_that_tensorrt_refuses_later_is_an_acceleration_less(gpu, tmp_path: Path) -> None:
    runtime = gpu()
    model = OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA)
    model(images(1, 240, 320))
    runtime.refusals[GPU[0]] = "engine failed"
    with pytest.raises(AccelerationError, match="engine failed") as error:
        model(images(1, 64, 96))
    error.value.turn_off()
    model(images(1, 64, 96))
    assert [list(session) for session in runtime.sessions] == [GPU[:2], [GPU[1]]]


def test_memory_that_runs_out_is_told_from_other_faults(gpu, tmp_path: Path) -> None:
    runtime = gpu()
    model = OnnxRuntimeModel(tmp_path / "some.onnx", SPEC, CUDA, "cuda")
    for text, full in (
        ("Failed to allocate memory for requested buffer of size 9", True),
        ("CUDA failure 2: out of memory", True),
        ("CUDNN failure 8", False),
    ):
        runtime.fail = text
        with pytest.raises(BackendError, match=text) as error:
            model(images(1, 64, 96))
        assert is_out_of_memory(error.value) == full


def test_an_engine_is_for_one_file_and_one_machine(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"1")
    first = engine_folder(file, ("H200", 240))
    assert engine_folder(file, ("H200", 240)) == first
    assert engine_folder(file, ("Orin", 240)) != first
    (tmp_path / "a.onnx.data").write_bytes(b"weights")
    second = engine_folder(file, ("H200", 240))
    file.write_bytes(b"2")
    assert len({first, second, engine_folder(file, ("H200", 240))}) == 3
