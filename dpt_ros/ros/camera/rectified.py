# SPDX-License-Identifier: Apache-2.0
"""Whether an image is the rectified one that depth, points and metres need."""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo

# sensor_msgs/distortion_models calls it equidistant, some drivers fisheye. Such a lens is no
# pinhole even where D is zero.
_FISHEYE = ("equidistant", "fisheye")


def unrectified(info: CameraInfo, topic: str) -> str:
    """A sentence about an image that is not rectified, "" about one that is.

    A camera_info tells of a lens, not whether its distortion was taken out of the image: image_raw
    and image_rect share one. So where there is distortion, the image's name decides.

    Args:
        info: of the image.
        topic: of the image, "" if it is not known.
    """
    fisheye = info.distortion_model in _FISHEYE
    if not (fisheye or any(info.d)) or _is_rectified(topic):
        return ""
    what = "a fisheye lens" if fisheye else "lens distortion"
    d = "not zero" if any(info.d) else "zero"
    camera = [*info.p[:3], *info.p[4:7]]
    no_p = ", and P is no rectified camera" if camera in ([*info.k[:6]], [0.0] * 6) else ""
    return (
        f"camera_info has {what} ('{info.distortion_model}', D {d}{no_p}), and by its name"
        f" {topic or 'the image'} is not rectified: depth goes out, but its metres and points are"
        " wrong, most of all towards the edges. Run rectify_node of image_proc and take what it"
        f" publishes: -r image:={_rectified(topic)}"
    )


def _is_rectified(topic: str) -> bool:
    """Whether a topic has the name that image_proc gives to rectified images."""
    return any(part.startswith("image_rect") for part in topic.split("/"))


def _rectified(topic: str) -> str:
    """The topic on which image_proc publishes what comes in on ``topic``, rectified."""
    *folder, name = topic.removesuffix("/compressed").split("/")
    return "/".join([*folder, "image_rect_color" if name.endswith("_color") else "image_rect"])
