# SPDX-License-Identifier: Apache-2.0
"""Datasets as their authors publish them, and the synthetic world: pictures with truth. No ROS."""

from dpt_ros.datasets.registry import list_datasets, open_dataset
from dpt_ros.datasets.sample import Dataset, DatasetError, Sample, Subset

__all__ = ["Dataset", "DatasetError", "Sample", "Subset", "list_datasets", "open_dataset"]
