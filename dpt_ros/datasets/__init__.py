# SPDX-License-Identifier: Apache-2.0
"""Published datasets and the synthetic world: images with ground truth. No ROS."""

from typing import TYPE_CHECKING

from dpt_ros.datasets.registry import list_datasets, open_dataset, unknown_dataset
from dpt_ros.lazy import lazy_names

if TYPE_CHECKING:
    from dpt_ros.datasets.sample import Dataset, DatasetError, Sample, Subset
else:
    __getattr__ = lazy_names(__name__, {"sample": "Dataset DatasetError Sample Subset"})

__all__ = [
    "Dataset",
    "DatasetError",
    "Sample",
    "Subset",
    "list_datasets",
    "open_dataset",
    "unknown_dataset",
]
