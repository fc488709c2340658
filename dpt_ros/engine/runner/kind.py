# SPDX-License-Identifier: Apache-2.0
"""What frames have in common that are processed in the same way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpt_ros.engine.frame import CameraModel, Frame, Lens, OutputRequest


@dataclass(frozen=True)
class Kind:
    """The properties shared by frames that one chain processes, and that can form a batch.

    Args:
        encoding: of the pixels.
        shape: of ``Frame.pixels``.
        dtype: of ``Frame.pixels``: "uint8", "uint16" or "float32".
        outputs: the outputs to compute.
        camera: intrinsics, if they are needed: for points, fused depth, pixels to be rectified.
        lens: of pixels that are to be rectified.
    """

    encoding: str
    shape: tuple[int, ...]
    dtype: str
    outputs: OutputRequest
    camera: CameraModel | None = None
    lens: Lens | None = None

    @classmethod
    def of(cls, frame: Frame, outputs: OutputRequest) -> Kind:
        """The kind of a decoded frame."""
        if outputs.points and frame.camera is None:
            outputs = replace(outputs, points=False)
        camera = frame.camera if outputs.points or outputs.fused or frame.lens else None
        pixels = frame.pixels
        return cls(frame.encoding, pixels.shape, pixels.dtype.name, outputs, camera, frame.lens)
