# SPDX-License-Identifier: Apache-2.0
"""Pictures, videos and webcams without ROS: ``from dpt_ros.run import run``."""

from typing import TYPE_CHECKING

from dpt_ros.lazy import lazy_names

if TYPE_CHECKING:
    from dpt_ros.run.results import Result, run
else:
    __getattr__ = lazy_names(__name__, {"results": "Result run"})

__all__ = ["Result", "run"]

# What dpt_run can write, with a few words for --help, and what it writes by default.
OUTPUTS = {
    "png": "depth as 16-bit PNG, as isl-org/DPT writes it",
    "pfm": "depth as PFM, as isl-org/DPT writes it",
    "npy": "depth in metres, or relative inverse depth, float32",
    "color": "depth in colours",
    "labels": "class ids, 8-bit PNG",
    "overlay": "labels over the picture, as isl-org/DPT writes it",
    "video": "of a video or webcam: image, depth and labels side by side",
}
PICTURE_OUTPUTS = ("png", "pfm", "color", "labels", "overlay")
VIDEO_OUTPUTS = ("video",)
