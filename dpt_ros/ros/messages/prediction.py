# SPDX-License-Identifier: Apache-2.0
"""Predictions -> the messages of a camera's output topics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String

from dpt_ros.engine.frame import OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.color import (
    depth_to_color,
    inverse_to_color,
    labels_to_color,
    with_words,
)
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.camera_info import scaled_camera_info
from dpt_ros.ros.messages.compressed_depth import compressed_depth_message
from dpt_ros.ros.messages.image import image_message, millimetres
from dpt_ros.ros.messages.point_cloud import cloud_message

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not on PyPI; the class map is then a JSON string
    LabelInfo = None

LABEL_INFO = "semantic/label_info"  # latched
COMPRESSED_DEPTH = "depth/image/compressedDepth"
FUSED = ("depth/fused", "depth/fused_origin", "depth/fused_sigma")


def _unchanged(pixels: np.ndarray) -> np.ndarray:
    return pixels


@dataclass(frozen=True)
class Arrival:
    """What is remembered of an image until its prediction is there: ``Frame.context``."""

    header: Header  # of the image, copied to every output
    info: CameraInfo | None  # the camera_info in use, if it fits the image
    received_ns: int  # when the image was received, or recorded in a bag; nanoseconds
    size: tuple[int, int] = (0, 0)  # width and height of the image, pixels
    anchors: str = ""  # the topic that its anchors came from, "" without any


class PredictionMessages:
    """Converts the predictions of one camera.

    Args:
        networks: decide which outputs exist.
        settings: gives the settings in force.

    Attributes:
        topics: the outputs that exist, relative names, with the classes of their messages.
        depth_note: why depth/image does not exist although there is a depth network, else "".
        label_note: why the class map is not a LabelInfo, else "".
        inverse_near: relative inverse depth of the brightest colour of depth/color; the first
            frame sets it for all, because relative depth has no unit to fix a range in.
    """

    def __init__(self, networks: Networks, settings: Callable[[], Settings]) -> None:
        self._networks = networks
        self._settings = settings
        self._scaled: tuple[CameraInfo | None, CameraInfo] = (None, CameraInfo())
        self.inverse_near = 0.0
        self.topics: dict[str, type] = {}
        self.depth_note = self.label_note = ""
        source = settings().scale_source
        self._metric = source not in ("none", "network") or (
            networks.metric and source == "network"
        )
        if networks.depth_name:
            self._add_depth_topics()
        if networks.label_name:
            self.topics |= dict.fromkeys(
                ("semantic/labels", "semantic/confidence", "semantic/color"), Image
            )
            self.topics[LABEL_INFO] = LabelInfo or String
            if LabelInfo is None:
                self.label_note = (
                    f"vision_msgs is not installed: {LABEL_INFO} is a std_msgs/String with the"
                    " class map as JSON."
                )

    def _add_depth_topics(self) -> None:
        metric = self._networks.metric
        if not metric or not self._metric:
            what = "metres" if metric else "relative inverse depth, which has no unit"
            why = "until anchors or the floor give metres" if self._metric else "by scale.source"
            self.depth_note = (
                f"{self._networks.depth_name} predicts {what}: depth/inverse is published and"
                f" depth/image is not, {why}."
            )
        if self._metric:
            self.topics = {
                "depth/image": Image,
                COMPRESSED_DEPTH: CompressedImage,
                "depth/camera_info": CameraInfo,
                "depth/confidence": Image,
                "depth/points": PointCloud2,
                **dict.fromkeys(FUSED, Image),
            }
        if not metric or not self._metric or self._settings().publish_inverse:
            self.topics["depth/inverse"] = Image
        self.topics["depth/color"] = Image

    def request(self, wanted: Callable[[str], bool], calibrated: bool) -> OutputRequest:
        """What has to be computed.

        Args:
            wanted: whether a topic is wanted; outputs that do not exist are not.
            calibrated: whether there is a camera_info, without which there are no points.
        """
        color = wanted("depth/color")
        depth = color or any(
            wanted(topic) for topic in ("depth/image", COMPRESSED_DEPTH, "depth/camera_info")
        )
        points = calibrated and wanted("depth/points")
        fused = any(map(wanted, FUSED)) or (points and self._settings().points_source == "fused")
        relative_color = color and not (self._metric and self._networks.metric)
        return OutputRequest(
            depth=self._metric and depth,
            inverse=wanted("depth/inverse") or relative_color,
            labels=wanted("semantic/labels") or wanted("semantic/color"),
            confidence=wanted("semantic/confidence"),
            deviation=wanted("depth/confidence"),
            points=points,
            fused=self._metric and fused,
        )

    def messages(
        self, prediction: Prediction, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Any]]:
        """The wanted topics and their messages, each converted when the iterator reaches it.

        The messages hold the prediction's arrays, uncopied, and the camera_info is one object
        for all frames: send them at once.
        """
        settings, arrival = self._settings(), prediction.frame.context
        header, info = arrival.header, arrival.info
        depth, inverse, labels = prediction.depth, prediction.inverse, prediction.labels
        encoding = settings.depth_encoding
        depth_pixels = millimetres if encoding == "16UC1" else _unchanged
        color = partial(depth_to_color, far=settings.color_range)
        label_color = partial(labels_to_color, palette=self._networks.palette)
        compressed_depth = partial(compressed_depth_message, header=header, settings=settings)
        # First, so that a node that needs both has it when the image comes.
        if depth is not None and info is not None and wanted("depth/camera_info"):
            yield "depth/camera_info", self._camera_info(depth, header, info)
        # Topic, what its message is made of, how, and the encoding where that gives an image.
        outputs: tuple[tuple[str, np.ndarray | None, Callable[..., Any], str], ...] = (
            ("depth/image", depth, depth_pixels, encoding),
            ("depth/color", depth, lambda depth: self._marked(color(depth)), "rgb8"),
            ("depth/confidence", prediction.deviation, _unchanged, "32FC1"),
            (FUSED[0], prediction.fused, _unchanged, "32FC1"),
            (FUSED[1], prediction.fused_origin, _unchanged, "mono8"),
            (FUSED[2], prediction.fused_sigma, _unchanged, "32FC1"),
            ("depth/inverse", inverse, _unchanged, "32FC1"),
            ("depth/color", inverse if depth is None else None, self._relative_color, "rgb8"),
            ("semantic/labels", labels, _unchanged, "mono8"),
            ("semantic/color", labels, lambda ids: self._marked(label_color(ids)), "rgb8"),
            ("semantic/confidence", prediction.confidence, _unchanged, "mono8"),
            (COMPRESSED_DEPTH, depth, compressed_depth, ""),
            ("depth/points", prediction.points, lambda cloud: cloud_message(cloud, header), ""),
        )
        for topic, source, make, encoding in outputs:
            if source is not None and wanted(topic):
                made = make(source)
                yield topic, image_message(made, encoding, header) if encoding else made

    def _relative_color(self, inverse: np.ndarray) -> np.ndarray:
        self.inverse_near = self.inverse_near or float(np.percentile(inverse, 99)) or 1.0
        return self._marked(inverse_to_color(inverse, self.inverse_near))

    def _camera_info(self, depth: np.ndarray, header: Header, info: CameraInfo) -> CameraInfo:
        """The camera_info of a depth image, scaled again only when it or the size changed."""
        height, width = depth.shape
        source, scaled = self._scaled
        if source is not info or (scaled.width, scaled.height) != (width, height):
            scaled = scaled_camera_info(info, width, height, header)
            self._scaled = info, scaled
        scaled.header = header
        return scaled

    def _marked(self, picture: np.ndarray) -> np.ndarray:
        if self._networks.random:
            with_words(picture, "RANDOM WEIGHTS: this means nothing")
        return picture

    def label_info(self) -> Any:
        """The class map, for ``LABEL_INFO``."""
        names = dict(enumerate(self._networks.class_names, start=1))
        if LabelInfo is not None:
            classes = [VisionClass(class_id=k, class_name=name) for k, name in names.items()]
            return LabelInfo(class_map=classes)
        rows = [{"class_id": k, "class_name": name} for k, name in names.items()]
        return String(data=json.dumps({"class_map": rows}))
