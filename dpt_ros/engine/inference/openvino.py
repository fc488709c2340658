# SPDX-License-Identifier: Apache-2.0
"""A network run by OpenVINO. Nothing is written to disk."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from dpt_ros.engine.faults import first_line
from dpt_ros.engine.inference.backend import Backend, BackendError, Maps
from dpt_ros.engine.inference.fold import NAMES, Outputs, fold
from dpt_ros.model.dpt import DPT

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoModel(Backend):
    """A DPT compiled by OpenVINO, once per input shape; see `Backend`.

    GPU and NPU were never run.

    Args:
        model: float32, in eval mode, on the CPU, not packed; it is kept and folded.
        precision: of the products: "fp32"; "bf16" where a CPU has it; "fp16" on other devices.
            Depth is scaled and inverted in float32 whatever it is.
        threads: how many threads of a CPU compute; 0 lets OpenVINO choose.
        device: see `find_device`. Images and results are in the host's memory on each of them.

    Raises:
        ImportError, BackendError: see `find_device`; or the device lacks the precision.
        ValueError: a model that cannot be converted, or a negative number of threads.
    """

    def __init__(self, model: DPT, precision: str, threads: int, device: str = "CPU") -> None:
        self._device = find_device(device)
        formats = _core().get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        able = [name for name in PRECISIONS if name.upper() in formats]
        if precision not in able:
            raise BackendError(
                f"precision is {precision}, but OpenVINO on this {self._device} computes"
                f" {' or '.join(able)}; set precision to auto."
            )
        if threads < 0:
            raise ValueError(f"threads is {threads}, but must be 0 or more.")
        wrong = [p for p in model.parameters() if p.dtype != torch.float32 or p.is_cuda]
        if model.training or wrong:
            raise ValueError("The network for OpenVINO must be float32, on the CPU, in eval mode.")
        fold(model)
        self.spec = model.spec
        self._outputs = Outputs(model, raw=True)
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._config = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self._device == "CPU":
            self._config["NUM_STREAMS"] = "1"
            # OpenVINO's generated group norm crashes the process in float32 at maps such as
            # 15x20 (observed in 2026.4); without its generated kernels it takes 0 to 3 % longer.
            self._config["SNIPPETS_MODE"] = "DISABLE"
            if threads:
                self._config["INFERENCE_NUM_THREADS"] = str(threads)

    def __call__(self, images: Tensor, depth: bool = True, labels: bool = True) -> Maps:
        """See `Backend`; the first call of a shape compiles it, which takes seconds. All outputs
        are computed."""
        shape = tuple(images.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(images)
        # OpenVINO reuses its output buffers: each result is copied before the next call.
        results = self._compiled[shape](images.contiguous().numpy(), share_inputs=True)
        outputs = {
            NAMES[task]: torch.from_numpy(value)
            for task, value in zip(self.spec.tasks, results.values(), strict=True)
        }
        if "inverse_depth" in outputs:
            # In float32, whatever OpenVINO's precision is.
            outputs["inverse_depth"] = self.spec.scale * outputs["inverse_depth"] + self.spec.shift
        return outputs

    def _compile(self, images: Tensor) -> Any:
        from openvino import convert_model

        with torch.inference_mode(), warnings.catch_warnings():
            # Tracing warns of sizes that become constants, which one graph per shape is for.
            warnings.simplefilter("ignore")
            converted = convert_model(
                self._outputs, example_input=torch.zeros_like(images), input=tuple(images.shape)
            )
        try:
            return _core().compile_model(converted, self._device, self._config)
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO cannot compile {self.spec.name} for {self._device} at"
                f" {images.shape[3]}x{images.shape[2]} pixels: {first_line(error)} Set"
                " openvino.device to CPU, or backend to torch."
            ) from error


def find_device(name: str) -> str:
    """The device that ``openvino.device`` stands for.

    Args:
        name: "CPU", "GPU", "NPU", or "AUTO": the GPU if OpenVINO finds one, else the CPU. The
            choice is not left to OpenVINO's own AUTO, which does not pass on the setting without
            which its CPU crashes in float32.

    Raises:
        ImportError: OpenVINO is not installed.
        BackendError: OpenVINO does not find the device.
    """
    available = _core().available_devices
    kinds = [one.partition(".")[0] for one in available]  # GPU.0, GPU.1
    if name == "AUTO":
        return "GPU" if "GPU" in kinds else "CPU"
    if name not in kinds:
        raise BackendError(
            f"openvino.device is {name}, but OpenVINO finds {', '.join(available)} only: install"
            f" the driver of the {name} that OpenVINO needs, or set openvino.device to AUTO."
        )
    return name


@functools.cache
def _core() -> Any:
    """The core of this process, never released.

    A core's CPU plugin installs a signal stack and restores the previous one on release. Cores
    released in the order of creation restore a stack that is freed already, and the next signal
    ends the process (observed in 2026.4).
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(
            "OpenVINO is not installed: install it with pip install openvino, or choose "
            "another backend."
        ) from error
    return openvino.Core()
