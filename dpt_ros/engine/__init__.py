# SPDX-License-Identifier: Apache-2.0
"""Frames in, predictions out: images, time and the device, independent of ROS."""

from typing import TYPE_CHECKING

from dpt_ros.lazy import lazy_names

if TYPE_CHECKING:
    from dpt_ros.engine.inference.predict import predict_image
    from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "inference.predict": "predict_image",
            "smoothing.filter": "TemporalFilter TemporalSettings",
        },
    )

__all__ = ["TemporalFilter", "TemporalSettings", "predict_image"]
