# SPDX-License-Identifier: Apache-2.0
"""Frames in, predictions out. Knows images, time and the device; nothing of ROS."""

from dpt_ros.engine.predict import predict_image

__all__ = ["predict_image"]
