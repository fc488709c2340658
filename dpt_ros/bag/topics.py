# SPDX-License-Identifier: Apache-2.0
"""Assigns the topics of a bag to the node's: images, calibration, odometry, anchors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dpt_ros.bag.reader import BagError
from dpt_ros.bag.salvage import Channel
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import ANCHOR_TYPES
from dpt_ros.ros.messages.types import COMPRESSED, IMAGE, TRANSPORTS, VIDEOS, base_topic, type_name
from dpt_ros.ros.video.decoder import check_decoders

CAMERA_INFO, ODOMETRY = "sensor_msgs/msg/CameraInfo", "nav_msgs/msg/Odometry"
_ANCHORS = {type_name(kind): topic for topic, kind in ANCHOR_TYPES.items()}
# Image messages under names with these words are not from a camera.
_NO_PICTURE = re.compile("depth|label|semantic|segment|mask|disparity|truth|confidence", re.I)


@dataclass(frozen=True)
class Camera:
    """One camera of a bag: its name and its topics."""

    name: str  # prefix of its output topics and the source of its frames, "" for none
    image: str
    kind: str  # type of the images
    info: str = ""  # topic of its CameraInfo
    odom: str = ""  # topic of nav_msgs/Odometry
    anchors: Mapping[str, str] = field(default_factory=dict)  # by the node's names

    @property
    def compressed(self) -> bool:
        """Whether its images are files, each of its own."""
        return self.kind == COMPRESSED

    @property
    def prefix(self) -> str:
        """Of its output topics, relative."""
        return f"{self.name}/" if self.name else ""

    @property
    def topics(self) -> list[str]:
        """All topics that are read for it."""
        topics = (self.image, self.info, self.odom, *self.anchors.values())
        return [topic for topic in topics if topic]


@dataclass(frozen=True)
class ChosenTopics:
    """Topics set by the user; the empty ones are searched for."""

    images: tuple[str, ...] = ()
    infos: tuple[str, ...] = ()
    odom: str = ""
    anchors: tuple[str, ...] = ()


def choose_cameras(
    channels: Mapping[str, Channel], chosen: ChosenTopics, settings: Settings
) -> tuple[list[Camera], list[str]]:
    """The cameras of a bag, and warnings on what is missing for them.

    Raises:
        BagError: a topic is missing or of the wrong type, or there are several and none is set;
            the text has the choices.
    """
    images = chosen.images or _find_images(channels, settings)
    for topic in images:
        _check(channels, topic, "--image", tuple(TRANSPORTS))
        if channels[topic].msgtype in VIDEOS:
            try:
                check_decoders()
            except ImportError as error:
                raise BagError(f"{topic} is a video. {error}") from error
    if len(set(images)) < len(images):
        raise BagError("--image is given twice with the same topic.")
    names = _names(images, settings.cameras)
    if chosen.infos and len(chosen.infos) != len(images):
        raise BagError(
            f"There are {len(images)} topics of images, but {len(chosen.infos)} --camera-info;"
            " give one for each, in the same order."
        )
    cameras, warnings = [], []
    for k, (topic, name) in enumerate(zip(images, names, strict=True)):
        info = chosen.infos[k] if chosen.infos else _info_beside(channels, topic, len(images))
        if info:
            _check(channels, info, "--camera-info", (CAMERA_INFO,))
        else:
            warnings.append(
                f"No camera_info found for {topic}: no points, and no metres from anchors or the"
                " floor. Set it with --camera-info TOPIC."
            )
        odom = _odometry(channels, name, chosen.odom, settings, warnings)
        anchors = _anchors(channels, name, chosen.anchors, settings)
        cameras.append(Camera(name, topic, channels[topic].msgtype, info, odom, anchors))
    return cameras, warnings


def _check(channels: Mapping[str, Channel], topic: str, option: str, types: Sequence[str]) -> None:
    of_type = [c.topic for c in channels.values() if c.msgtype in types]
    if topic not in channels:
        raise BagError(
            f"{option} {topic}: the bag has no such topic; available: {_listed(of_type)}."
        )
    if topic not in of_type:
        raise BagError(
            f"{option} {topic} is of type {channels[topic].msgtype}, but must be"
            f" {' or '.join(types)}; available: {_listed(of_type)}."
        )


def _listed(topics: Collection[str]) -> str:
    return ", ".join(sorted(topics)) or "none"


def _find_images(channels: Mapping[str, Channel], settings: Settings) -> tuple[str, ...]:
    """The topics with the node's names, else the only one that can be of a camera."""
    wanted = {"raw": (IMAGE,), "compressed": (COMPRESSED,)}.get(settings.image_transport)
    preferred = wanted or tuple(VIDEOS)
    for end in (TRANSPORTS[kind] for kind in preferred):
        own = [f"/{name}/image{end}" for name in settings.cameras] or [f"/image{end}"]
        if all(name in channels for name in own):
            return tuple(own)
    known = {c.topic: c.msgtype for c in channels.values() if c.msgtype in TRANSPORTS}
    known = {name: kind for name, kind in known.items() if not name.endswith("/compressedDepth")}
    camera = {name: kind for name, kind in known.items() if not _NO_PICTURE.search(name)} or known
    # Of the same images in several transports, one is taken.
    order = [*preferred, *TRANSPORTS]
    best: dict[str, str] = {}
    for name in sorted(camera, key=lambda name: order.index(camera[name])):
        best.setdefault(base_topic(name), name)
    found = set(best.values())
    if not found:
        raise BagError(f"The bag has no topic of images; its topics are {_listed(channels)}.")
    if len(found) > 1:
        raise BagError(
            f"The bag has several topics of images; choose with --image: {_listed(found)}."
        )
    return tuple(found)


def _names(images: Sequence[str], given: Sequence[str]) -> list[str]:
    """Names of the cameras, valid for the parameter ``cameras``."""
    if given:
        if len(given) != len(images):
            raise BagError(
                f"cameras has {len(given)} names, but there are {len(images)} topics of images;"
                " give --image once for each name, in the same order."
            )
        return list(given)
    if len(images) == 1:
        return [""]
    names: list[str] = []
    for topic in images:
        parts = base_topic(topic).strip("/").split("/")
        name = re.sub(r"\W", "_", "_".join(parts[:-1] or parts), flags=re.ASCII)
        name = f"camera_{name}" if name[:1].isdigit() else name
        while name in names:
            name += "_"
        names.append(name)
    return names


def _info_beside(channels: Mapping[str, Channel], image: str, images: int) -> str:
    """camera_info in the image's namespace; for a single camera, the only one of the bag."""
    beside = base_topic(image).rpartition("/")[0] + "/camera_info"
    infos = [c.topic for c in channels.values() if c.msgtype == CAMERA_INFO]
    if beside in infos:
        return beside
    return infos[0] if len(infos) == images == 1 else ""


def _odometry(
    channels: Mapping[str, Channel],
    name: str,
    chosen: str,
    settings: Settings,
    warnings: list[str],
) -> str:
    """The topic of odometry, if the temporal filter uses it."""
    if chosen:
        _check(channels, chosen, "--odom", (ODOMETRY,))
    if not settings.smoothing_strength or settings.pose_source == "none":
        return ""
    if settings.pose_source == "tf":
        warnings.append(
            "pose_source is tf, which dpt_bag does not read: motion is estimated by optical flow."
            " To use odometry of the bag, set pose_source to odom, and camera_in_base."
        )
        return ""
    known = [c.topic for c in channels.values() if c.msgtype == ODOMETRY]
    for topic in (chosen, f"/{name}/odom", "/odom"):
        if topic in known:
            return topic
    if len(known) > 1:
        warnings.append(
            f"The bag has several topics of odometry ({_listed(known)}); none is used. Choose one"
            " with --odom."
        )
    return known[0] if len(known) == 1 else ""


def _anchors(
    channels: Mapping[str, Channel], name: str, chosen: Sequence[str], settings: Settings
) -> dict[str, str]:
    """Topics of anchors, by the names of the node's topics."""
    prefix = f"/{name}/" if name else "/"
    if settings.scale_source not in ("auto", "anchors"):
        return {}
    found = {
        own: prefix + own
        for kind, own in _ANCHORS.items()
        if prefix + own in channels and channels[prefix + own].msgtype == kind
    }
    for topic in chosen:
        _check(channels, topic, "--anchors", tuple(_ANCHORS))
        found[_ANCHORS[channels[topic].msgtype]] = topic
    if "anchors/depth" in found:
        info = _info_beside(channels, found["anchors/depth"], 0)
        if info:
            found["anchors/camera_info"] = info
    return found
