# SPDX-License-Identifier: Apache-2.0
"""A network in an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.faults import AccelerationError, first_line
from dpt_ros.engine.inference.backend import Backend, BackendError, Maps
from dpt_ros.engine.parameter import PROVIDERS
from dpt_ros.model.download import cache_folder
from dpt_ros.model.zoo import ModelSpec

_NAMES = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_FITTING = {"cpu": ("cpu",), "cuda": ("tensorrt", "cuda")}
_CURES = {
    "cpu": "Set backend to torch, or device to cuda.",
    "cuda": "Install onnxruntime-gpu with its CUDA libraries, or set device to cpu, or backend to"
    " torch.",
}
_MOST_SESSIONS = 2  # for single shapes
_MOST_CAMERAS = 4  # in one batch on a GPU


class OnnxRuntimeModel(Backend):
    """A file of ``export_network``, run by the first provider that takes it; see `Backend`.

    Images and results are torch's memory, which nothing is copied to or from. On a GPU the work
    is queued on a stream of its own, which waits for the caller's, and the caller's for it.
    Providers other than the CPU's were never run.

    Args:
        path: of the file.
        spec: what is in the file.
        device: where images and results are.
        providers: "auto", or names of `PROVIDERS` by preference, separated by commas. Those that
            do not fit the device are left out. TensorRT leaves to the next one what it lacks.
        precision: of the file: "fp32" or "fp16".
        threads: of the CPU; 0 lets ONNX Runtime choose.

    Attributes:
        shape: of the images, (B, 3, H, W); a name stands for an open size.

    Raises:
        ImportError: ONNX Runtime is not installed.
        BackendError: no provider takes the file; the message has the reason of each.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        device: torch.device,
        providers: str = "auto",
        precision: str = "fp32",
        threads: int = 0,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "ONNX Runtime is not installed: install it with pip install onnxruntime (for a GPU"
                " onnxruntime-gpu), or choose another backend."
            ) from error
        self._runtime = onnxruntime
        self._path, self._spec, self._half = path, spec, precision == "fp16"
        self._place = (device.type, device.index or 0)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._threads = threads
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        available = onnxruntime.get_available_providers()
        self._providers = usable_providers(providers, device.type, available)
        if device.type == "cuda":
            self.warnings = (
                "backend is onnxruntime, whose work cannot be captured in a CUDA graph: kernels"
                " are launched one by one, which is slower.",
            )
        self._refused: list[str] = []
        # By shape, last used last; () is the one for all shapes.
        self._sessions: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._dropped: set[tuple[int, ...]] = set()
        self.shape = self._input_shape()

    def __call__(self, images: Tensor, depth: bool = True, labels: bool = True) -> Maps:
        """See `Backend`; the first call of a shape may take longer, with TensorRT minutes. All
        outputs are computed, and those that are needed returned."""
        if self.shape[0] == 1 and len(images) > 1:
            parts = [self(image, depth, labels) for image in images.split(1)]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        batch, _, height, width = shape = tuple(images.shape)
        for size, own in zip(shape, self.shape, strict=True):
            if isinstance(own, int) and size != own:
                mine, given = ("x".join(map(str, one)) for one in (self.shape, shape))
                raise BackendError(
                    f"{self._path} takes images of {mine}, but gets {given}. Export it for this"
                    f" size (dpt_export --size {height}x{width}), or without --size for all."
                )
        session = self._session(shape)
        images, results = images.contiguous(), Maps()
        if depth and "depth" in self._spec.tasks:
            results["inverse_depth"] = images.new_empty(batch, height, width)
        if labels and "labels" in self._spec.tasks:
            half = (height // 2, width // 2)
            results["logits"] = images.new_empty(batch, self._spec.num_classes, *half)
        binding = session.io_binding()
        place = (*self._place, np.float32)
        binding.bind_input("images", *place, shape, images.data_ptr())
        for name, result in results.items():
            binding.bind_output(name, *place, tuple(result.shape), result.data_ptr())
        try:
            self._run(session, binding)
        except Exception as error:  # those of ONNX Runtime have no other class in common
            raise BackendError(f"ONNX Runtime: {first_line(error)}") from error
        return results

    def _run(self, session: Any, binding: Any) -> None:
        if self._stream is None:
            session.run_with_iobinding(binding, self._run_options)
            return
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        try:
            session.run_with_iobinding(binding, self._run_options)
        finally:
            # The memory is the caller's, who uses or frees it after this.
            caller.wait_stream(self._stream)

    def _session(self, shape: tuple[int, ...]) -> Any:
        """The session for a shape.

        One for a single shape is up to 10 % faster, but has weights of its own. So the last ones
        are kept, and where a shape comes back after it was dropped, one serves all from then on.
        TensorRT needs one for each size.
        """
        if "tensorrt" in self._providers:
            key = shape[2:]
        else:
            key = () if self._dropped & {shape, ()} else shape
        if key not in self._sessions:
            if not key:
                self._sessions.clear()
                self._dropped.add(())
            self._sessions[key] = self._open(shape, fixed=bool(key))
            while len(self._sessions) > _MOST_SESSIONS and "tensorrt" not in self._providers:
                self._dropped.add(self._sessions.popitem(last=False)[0])
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _session_options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that wait in a loop take the cores from the rest of the frame.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return options

    def _input_shape(self) -> list[int | str]:
        options = self._session_options()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = self._runtime.InferenceSession(
                str(self._path), options, providers=[_NAMES["cpu"]]
            )
        except Exception as error:  # those of ONNX Runtime have no other class in common
            raise BackendError(
                f"ONNX Runtime cannot read {self._path}: {first_line(error)}"
            ) from error
        return session.get_inputs()[0].shape

    def _open(self, shape: tuple[int, ...], fixed: bool) -> Any:
        session_options = self._session_options()
        if fixed and "tensorrt" not in self._providers:
            for name, size in zip(self.shape, shape, strict=True):
                if isinstance(name, str):
                    session_options.add_free_dimension_override_by_name(name, size)
        options = [self._provider_options(one, *shape[2:]) for one in self._providers]
        try:
            session = self._runtime.InferenceSession(
                str(self._path),
                session_options,
                providers=[_NAMES[one] for one in self._providers],
                provider_options=options,
                enable_fallback=0,  # it would go on with the CPU
            )
        except Exception as error:  # as above; it does not tell which provider failed
            self._refuse(self._providers[:1], first_line(error), error)
        there = session.get_providers()
        missing = [one for one in self._providers if _NAMES[one] not in there]
        if missing:
            self._refuse(missing, "its libraries cannot be loaded.")
        return session

    def _refuse(
        self, refusing: Sequence[str], reason: str, error: Exception | None = None
    ) -> NoReturn:
        """Raise what it means that providers do not take the file."""
        self._refused.append(f"{' and '.join(refusing)}: {reason}")
        left = [one for one in self._providers if one not in refusing]
        if not left:
            raise BackendError(
                f"ONNX Runtime cannot run {self._path}. {' '.join(self._refused)}"
                f" {_CURES[self._place[0]]}"
            ) from error
        raise AccelerationError(
            f"ONNX Runtime runs {self._path.name} with {left[0]}, which is slower, because of"
            f" {self._refused[-1]}",
            lambda: setattr(self, "_providers", left),
        ) from error

    def _provider_options(self, provider: str, height: int, width: int) -> dict[str, str]:
        if self._stream is None:
            return {}
        options = {
            "device_id": str(self._place[1]),
            "user_compute_stream": str(self._stream.cuda_stream),
        }
        if provider == "cuda":
            return options
        gpu = torch.cuda.get_device_properties(self._place[1])
        versions = (self._runtime.__version__, torch.version.cuda, gpu.name, gpu.major, gpu.minor)
        folder = engine_folder(self._path, (*versions, self._half, height, width))
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {
            f"trt_profile_{name}_shapes": f"images:{batch}x3x{height}x{width}"
            for name, batch in (("min", 1), ("opt", 1), ("max", _MOST_CAMERAS))
        }
        cache = {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        }
        return options | shapes | cache | {"trt_fp16_enable": str(self._half)}


def usable_providers(providers: str, device: str, available: Sequence[str]) -> list[str]:
    """The providers to try, by preference.

    Args:
        providers: "auto", or names of `PROVIDERS`, separated by commas.
        device: "cpu" or "cuda".
        available: what onnxruntime.get_available_providers() gives.

    Raises:
        BackendError: none is left, or one was asked for by name that this ONNX Runtime lacks.
    """
    asked = PROVIDERS if providers == "auto" else tuple(dict.fromkeys(providers.split(",")))
    fitting = [one for one in asked if one in _FITTING[device]]
    there = [one for one in fitting if _NAMES[one] in available]
    known = [name.removesuffix("ExecutionProvider") for name in available]
    if not fitting:
        raise BackendError(
            f"onnxruntime.providers is {providers}, but device is {device}, which takes"
            f" {' or '.join(_FITTING[device])}; set onnxruntime.providers to auto."
        )
    if not there or (providers != "auto" and there != fitting):
        lacking = ", ".join(one for one in fitting if one not in there)
        raise BackendError(
            f"The installed ONNX Runtime has no provider {lacking}, only {', '.join(known)}."
            f" {_CURES[device]}"
        )
    return there


def engine_folder(path: Path, key: Sequence[object]) -> Path:
    """The folder of TensorRT's engines of a file; another one for another file or ``key``."""
    digest = hashlib.sha256(repr(tuple(key)).encode())
    for file in (path, path.with_name(path.name + ".data")):
        if file.exists():
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
    return cache_folder() / "tensorrt" / f"{path.stem}-{digest.hexdigest()[:16]}"
