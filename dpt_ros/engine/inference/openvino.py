# SPDX-License-Identifier: Apache-2.0
"""A network run by OpenVINO instead of PyTorch, on the CPU. Nothing is written to disk."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.outputs import NAMES, Outputs
from dpt_ros.model.dpt import DPT

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoModel:
    """A DPT compiled by OpenVINO, once per input shape.

    Args:
        model: float32, in eval mode, on the CPU, not packed; it is kept and folded.
        precision: "fp32", or "bf16" for products in bfloat16 where the CPU has them. Depth is
            scaled and inverted in float32 either way.
        threads: how many threads compute; 0 lets OpenVINO choose.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: another precision, or a model that cannot be converted.
    """

    def __init__(self, model: DPT, precision: str, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                "OpenVINO is not installed: install it with pip install openvino, or choose "
                "another backend."
            ) from error
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision is {precision!r}, but OpenVINO here computes fp32 or bf16."
            )
        if threads < 0:
            raise ValueError(f"threads is {threads}, but must be 0 or more.")
        wrong = [p for p in model.parameters() if p.dtype != torch.float32 or p.is_cuda]
        if model.training or wrong:
            raise ValueError("The network for OpenVINO must be float32, on the CPU, in eval mode.")
        fold(model)
        self.spec = model.spec
        self.precision = precision
        self._openvino = openvino
        self._outputs = Outputs(model, raw=True)
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._config = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            # OpenVINO's generated group norm crashes the process in float32 at maps such as
            # 15x20 (observed in 2026.4); without its generated kernels it takes 0 to 3 % longer.
            "SNIPPETS_MODE": "DISABLE",
        }
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = str(threads)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network; the first call of a shape compiles it, which takes seconds.

        Args:
            images: (B, 3, H, W) float32 on the CPU, normalised.

        Returns:
            "inverse_depth" (B, H, W) float32, 1/m from a metric network, else relative; "logits"
            (B, C, H / 2, W / 2) float32, before the last upsampling; by the network's tasks.
        """
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
        with torch.inference_mode(), warnings.catch_warnings():
            # Tracing warns of sizes that become constants, which one graph per shape is for.
            warnings.simplefilter("ignore")
            converted = self._openvino.convert_model(
                self._outputs, example_input=torch.zeros_like(images), input=tuple(images.shape)
            )
        return _core().compile_model(converted, "CPU", self._config)


@functools.cache
def _core() -> Any:
    """The core of this process, never released.

    A core's CPU plugin installs a signal stack and restores the previous one on release. Cores
    released in the order of creation restore a stack that is freed already, and the next signal
    ends the process (observed in 2026.4).
    """
    import openvino

    return openvino.Core()
