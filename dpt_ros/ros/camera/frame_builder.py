# SPDX-License-Identifier: Apache-2.0
"""From the messages of one camera and of the sensors around it to frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from dpt_ros.engine.frame import Frame
from dpt_ros.engine.scale.ground import down_direction
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import AnchorProjector
from dpt_ros.ros.camera.calibration import Calibration
from dpt_ros.ros.camera.geometry import pose_matrix
from dpt_ros.ros.camera.poses import OdometryPoses, TfPoses
from dpt_ros.ros.messages.cdr import read_compressed_image, read_image
from dpt_ros.ros.messages.image import CompressedFile, compressed_file, image_pixels
from dpt_ros.ros.messages.image_bits import ImageBits
from dpt_ros.ros.messages.prediction import Arrival
from dpt_ros.ros.messages.types import nanoseconds
from dpt_ros.ros.video.decoder import Picture


class FrameBuilder:
    """Makes the frames of one camera: image, latest camera_info, pose and anchors.

    It subscribes to nothing: the messages of camera_info, odometry and anchors are given to the
    parts below as they come, by a node or from a bag.

    Args:
        source: name of the camera, "" for the only one.
        settings: gives the settings in force; those of the camera's mounting are read once.
        compressed: whether images are CompressedImage, else Image.
        warn: takes a message about the images, each time.
        on_encoding: called with the encoding of each image whose pixels could be read.
        live: whether what a depth camera measured may be received after the image.
    """

    def __init__(
        self,
        source: str,
        settings: Callable[[], Settings],
        compressed: bool,
        calibration: Calibration,
        poses: OdometryPoses | TfPoses | None,
        anchors: AnchorProjector | None,
        warn: Callable[[str], None],
        on_encoding: Callable[[str], None] = lambda encoding: None,
        live: bool = False,
    ) -> None:
        self.calibration = calibration
        self.poses = poses
        self.anchors = anchors
        self._source = source
        self._settings = settings
        self._compressed = compressed
        self._warn = warn
        self._on_encoding = on_encoding
        self._live = live
        self._bits = ImageBits(lambda: settings().image_bits, warn)
        base_from_camera = pose_matrix(settings().camera_in_base)
        self._down = None if base_from_camera is None else down_direction(base_from_camera)

    def build(self, image: bytes | Picture, received_ns: int) -> Frame:
        """The frame of an image.

        Args:
            image: the Image or CompressedImage, serialised, of which the pixels stay a view; or a
                decoded picture of a video.
            received_ns: see `Arrival`.

        Raises:
            MessageError: the image cannot be used.
        """
        decode = None
        if isinstance(image, Picture):
            header, pixels, encoding = image.packet.header, image.pixels, image.encoding
            size = (pixels.shape[1], pixels.shape[0])
            self._on_encoding(encoding)
        elif self._compressed:
            # Decoded later, on another thread: here it would delay all callbacks.
            message = read_compressed_image(image)
            file = compressed_file(message)
            if file.oddity:
                self._warn(file.oddity)
            header, pixels, encoding = message.header, file.data, file.kind
            size, decode = (file.width, file.height), partial(self._decode, file)
        else:
            raw = read_image(image)
            header, pixels, encoding = raw.header, self._bits(image_pixels(raw)), raw.encoding
            size = (raw.width, raw.height)
            self._on_encoding(encoding)
        stamp_ns = nanoseconds(header.stamp)
        camera, info = self.calibration.of(*size)
        anchors, topic, sense = None, "", None
        if self.anchors is not None:
            anchors = self.anchors.anchors(camera, header.frame_id)
            topic = self.anchors.newest if anchors is not None and len(anchors) else ""
            sense = self.anchors.sense(header.frame_id, stamp_ns, self._live)
        return Frame(
            pixels,
            encoding,
            stamp_ns,
            header.frame_id,
            self._source,
            camera,
            anchors=anchors,
            down=self._down,
            context=Arrival(header, info, received_ns, size, topic),
            decode=decode,
            locate=self._locator(header.frame_id, stamp_ns),
            lens=None if camera is None else self.calibration.lens,
            sense=sense,
        )

    def _decode(self, file: CompressedFile) -> tuple[np.ndarray, str]:
        pixels, encoding = file.decode()
        self._on_encoding(encoding)
        return self._bits(pixels), encoding

    def _locator(self, frame_id: str, stamp_ns: int) -> Callable[[], np.ndarray | None] | None:
        """Looks up the camera's pose later, when more poses may have arrived."""
        if self.poses is None:
            return None
        if not self._settings().smoothing_strength:
            self.poses.record.idle("smoothing.strength is 0")
            return None
        return partial(self.poses.pose, frame_id, stamp_ns)
