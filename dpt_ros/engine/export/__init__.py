# SPDX-License-Identifier: Apache-2.0
"""Networks and frames as ONNX files: writing, and comparing them with PyTorch."""
