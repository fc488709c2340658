# SPDX-License-Identifier: Apache-2.0
"""The only floor that imports rclpy: messages, parameters, nodes."""
