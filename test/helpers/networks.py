# SPDX-License-Identifier: Apache-2.0
"""The embedded network, loaded as a runner takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpt_ros.engine.export.frame import export_networks
from dpt_ros.engine.inference.backend import TorchModel
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.loading import label_fields
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model

CPU = torch.device("cpu")


def embedded_networks(
    kind: type[TorchModel] = TorchModel,
    shared: bool = True,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    **changes: Any,
) -> Networks:
    """The embedded network with its own weights; one for both tasks, or one for each."""

    def make() -> Network:
        model = create_model("dpt_hybrid_embedded")
        return Network(model.spec, device, kind(model, device, dtype, compiled))

    precision = "fp32" if dtype == torch.float32 else "fp16"
    return pair(make, shared, **{"device": device, "precision": precision, **changes})


def pair(make: Callable[[], Network], shared: bool, **changes: Any) -> Networks:
    """Networks of depth and labels; ``changes`` are fields of `Networks`."""
    both = make()
    parts: dict[str, Any] = {
        "depth": both,
        "labels": both if shared else make(),
        "class_names": ("thing",) * 10,
        "palette": np.zeros((256, 3), np.uint8),
        "random": False,
        "warnings": (),
    }
    return Networks(**(parts | changes))


def export_embedded(settings: Settings, precision: str = "fp32", **changes: Any) -> Networks:
    """The embedded network as it is exported; ``changes`` are overrides of ``create_model``."""
    model = create_model("dpt_hybrid_embedded", **changes)
    return export_networks(model, model, precision, **label_fields(model.spec, settings, CPU))
