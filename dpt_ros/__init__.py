# SPDX-License-Identifier: Apache-2.0
"""Depth and semantics from one RGB camera, in real time, over ROS 2."""

__version__ = "0.1.0"
