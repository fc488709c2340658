# SPDX-License-Identifier: Apache-2.0
"""The networks: torch and timm, nothing of cameras or ROS."""

from typing import TYPE_CHECKING

from dpt_ros.lazy import lazy_names

if TYPE_CHECKING:
    from dpt_ros.model.checkpoint import CheckpointError, save_checkpoint
    from dpt_ros.model.download import DownloadError
    from dpt_ros.model.dpt import DPT
    from dpt_ros.model.factory import cached_checkpoint, create_model, model_spec
    from dpt_ros.model.zoo import ModelSpec, list_models
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "checkpoint": "CheckpointError save_checkpoint",
            "download": "DownloadError",
            "dpt": "DPT",
            "factory": "cached_checkpoint create_model model_spec",
            "zoo": "ModelSpec list_models",
        },
    )

__all__ = [
    "DPT",
    "CheckpointError",
    "DownloadError",
    "ModelSpec",
    "cached_checkpoint",
    "create_model",
    "list_models",
    "model_spec",
    "save_checkpoint",
]
