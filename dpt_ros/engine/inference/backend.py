# SPDX-License-Identifier: Apache-2.0
"""What runs a network: the interface of PyTorch, OpenVINO and ONNX Runtime; and PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dpt_ros.engine.faults import AccelerationError, first_line, is_out_of_memory
from dpt_ros.engine.inference.cpu_modules import pack, unavailable
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.model.dpt import DPT

Maps = dict[str, Tensor]
"""What networks and the steps behind them give, by name, (B, ...) each."""


class Backend(ABC):
    """One network, ready to run.

    Attributes:
        input_dtype: of the images that it takes.
        capturable: whether its work can be captured in a CUDA graph; not where it allocates and
            waits as it likes.
        warnings: of what is slower than it could be, or not used although it was asked for.
    """

    input_dtype = torch.float32
    capturable = False
    warnings: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, images: Tensor, depth: bool = True, labels: bool = True) -> Maps:
        """Run the network.

        Args:
            images: (B, 3, H, W) of ``input_dtype``, normalised, on the network's device.
            depth, labels: whether they are needed; what is not may be computed nevertheless.

        Returns:
            "inverse_depth" (B, H, W) float32, 1/m from a metric network, else relative; "logits"
            (B, C, H / 2, W / 2), before the last upsampling. Later calls do not overwrite them,
            except in a graph.

        Raises:
            AccelerationError: an acceleration fails at this shape; without it the work can be
                repeated.
            BackendError: this shape cannot be computed.
        """


class BackendError(RuntimeError):
    """A backend cannot run a network here; the message gives the reason and what to do."""


class TorchModel(Backend):
    """See `Backend`.

    Args:
        model: what ``create_model`` gave; it is rewritten and must not be used otherwise.
        device: where it runs.
        dtype: of weights and activations; a metric head computes its inverse depth in float32.
        compiled: rewrite it with torch.compile, which happens at the first call of each shape.
    """

    capturable = True

    def __init__(
        self, model: DPT, device: torch.device, dtype: torch.dtype, compiled: bool = False
    ) -> None:
        self.input_dtype = dtype
        self._name = model.spec.name
        if model.depth_head is not None:
            model.depth_head.invert = False  # metres are made at the end, after scale and filter
        if device.type == "cpu":
            self._prepare_for_cpu(model)
        else:
            self._prepare_for_gpu(model, device)
        self._predict: Callable[..., Maps] = partial(_predict, model)
        self._plain, self._compiled = self._predict, compiled
        if compiled:
            self._predict = torch.compile(
                self._plain, mode="max-autotune-no-cudagraphs", dynamic=False
            )

    def _prepare_for_cpu(self, model: DPT) -> None:
        problem = unavailable(self.input_dtype)
        if problem is None:
            pack(model, self.input_dtype)
            return
        fold(model)
        model.to(self.input_dtype).to(memory_format=torch.channels_last)
        self.warnings = (
            f"The networks run on the CPU without oneDNN, which is slower: {problem}",
        )

    def _prepare_for_gpu(self, model: DPT, device: torch.device) -> None:
        fuse(model)
        model.to(device, self.input_dtype).to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor, depth: bool = True, labels: bool = True) -> Maps:
        """See `Backend`."""
        try:
            return self._predict(images, depth, labels)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # any, from dynamo, inductor, Triton or a C compiler
            if not self._compiled or is_out_of_memory(error):
                raise
            raise AccelerationError(
                f"torch.compile fails for {self._name}, so it runs without, which is slower:"
                f" {first_line(error)}",
                self._stop_compiling,
            ) from error

    def _stop_compiling(self) -> None:
        self._compiled, self._predict = False, self._plain


def _predict(model: DPT, images: Tensor, depth: bool, labels: bool) -> Maps:
    features = model.features(images)
    outputs: Maps = {}
    if depth and model.depth_head is not None:
        outputs["inverse_depth"] = model.depth_head(features)
    if labels and model.label_head is not None:
        outputs["logits"] = model.label_head(features)
    return outputs
