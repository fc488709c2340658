# SPDX-License-Identifier: Apache-2.0
"""Every parameter of dpt_ros: name, default, range and meaning, written once.

``config/dpt.yaml``, the parameter table in the docs and ``ros2 param describe`` are made from, or
tested against, this class.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints


def setting(
    default: Any,
    text: str,
    when: str,
    *,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    live: bool = False,
    group: str = "",
    per_camera: bool = False,
) -> Any:
    """A dataclass field with what a reader and a validator need to know of it.

    Args:
        default: the only place where the default is written.
        text: what it does, one sentence.
        when: when to change it.
        choices: the allowed words, if they are few.
        low: the smallest allowed number.
        high: the largest allowed number.
        live: whether a change takes effect while the node runs.
        group: first part of the attribute's name that the parameter's name sets off with a dot.
        per_camera: whether a named camera can have its own value, ``front.camera_in_base``.
    """
    metadata = {
        "text": text,
        "when": when,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "live": live,
        "group": group,
        "per_camera": per_camera,
    }
    return field(default=default, metadata=metadata)


def parameter_name(spec: Field[Any]) -> str:
    """The name of the parameter that a field of Settings holds: ``smoothing.strength``."""
    group = spec.metadata["group"]
    return spec.name.replace(f"{group}_", f"{group}.", 1) if group else spec.name


@dataclass(frozen=True)
class Settings:
    """All parameters, typed. ``Settings.parse`` builds a checked one from plain values."""

    cameras: tuple[str, ...] = setting(
        (),
        "Names of the cameras; each becomes a prefix of that camera's topics.",
        "Several cameras on one node. Empty: one camera, no prefix.",
    )
    image_transport: str = setting(
        "raw",
        "Subscribe to image (raw) or to image/compressed (compressed).",
        "The camera driver offers JPEG or the network between it and the node is slow.",
        choices=("raw", "compressed"),
    )
    image_reliability: str = setting(
        "auto",
        "QoS reliability of the image subscription; auto asks for reliable when every publisher"
        " offers it, else best effort.",
        "You know better than discovery does; best_effort loses large images on default Fast DDS.",
        choices=("auto", "reliable", "best_effort"),
    )
    image_bits: int = setting(
        0,
        "Bits in use of each value of a 16-bit image (mono16, bayer_rggb16, ...); 0 for all 16.",
        "The camera puts 10, 12 or 14 bits into 16; unscaled, its images are nearly black.",
        low=0,
        high=16,
        live=True,
    )
    depth_network: str = setting(
        "auto",
        "Depth network: a name of the zoo, none, or auto (a downloaded one, else the embedded).",
        "You want a certain published checkpoint, or labels only.",
    )
    label_network: str = setting(
        "auto",
        "Label network: a name of the zoo, none, or auto (a downloaded one, else the embedded).",
        "You want a certain published checkpoint, or depth only.",
    )
    depth_weights: str = setting(
        "",
        "Weights of the depth network: a file, download, random, or empty (cache, else shipped).",
        "You have a checkpoint file, or allow the node to download one at configure.",
    )
    label_weights: str = setting(
        "",
        "Weights of the label network: a file, download, random, or empty (cache, else shipped).",
        "You have a checkpoint file, or allow the node to download one at configure.",
    )
    weight_std: str = setting(
        "timm",
        "Weight standardisation: timm (today's arithmetic) or timm045 (as the authors ran it).",
        "You compare with numbers made by isl-org/DPT with its pinned timm 0.4.5.",
        choices=("timm", "timm045"),
    )
    input_width: int = setting(
        0,
        "Width that the network input aims at, pixels; 0 takes the network's own.",
        "Trade accuracy for speed; rounded to the network's multiple, aspect kept.",
        low=0,
        high=4096,
    )
    input_height: int = setting(
        0,
        "Height that the network input aims at, pixels; 0 takes the network's own.",
        "Trade accuracy for speed; rounded to the network's multiple, aspect kept.",
        low=0,
        high=4096,
    )
    device: str = setting(
        "auto",
        "Where the networks run: auto (the GPU if there is one), cpu, cuda or cuda:N.",
        "Several GPUs, or a GPU that must stay free.",
    )
    precision: str = setting(
        "auto",
        "Number format of the networks: auto (fp16 on a GPU, fp32 on a CPU), fp32, fp16 or bf16.",
        "You need the reference numbers (fp32) or a CPU that is fast in bf16.",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    backend: str = setting(
        "torch",
        "What computes the networks: torch, or openvino on a CPU (pip install openvino).",
        "There is no GPU and every millisecond counts.",
        choices=("torch", "openvino"),
    )
    cuda_graphs: bool = setting(
        True,
        "Replay a frame's whole work on the GPU as one CUDA graph, captured once per image size.",
        "You look for a fault on the GPU; without graphs every kernel is launched from Python.",
    )
    compile: bool = setting(
        False,
        "Let torch.compile rewrite the networks on a GPU; the first frame of a size waits for it.",
        "The node runs for hours and dpt_bench engine shows that it pays on your device.",
    )
    threads: int = setting(
        0,
        "CPU threads for the networks; 0 leaves the choice to torch.",
        "The robot's other processes need the cores.",
        low=0,
        high=1024,
    )
    output_size: str = setting(
        "input",
        "Size of every output image: that of the input image, or of the network's own output.",
        "network saves bandwidth and time on large images.",
        choices=("input", "network"),
    )
    depth_encoding: str = setting(
        "32FC1",
        "Encoding of depth/image: 32FC1 (metres) or 16UC1 (millimetres, 0 unknown; REP 118).",
        "A consumer reads millimetres only, or bandwidth counts.",
        choices=("32FC1", "16UC1"),
        live=True,
    )
    publish_inverse: bool = setting(
        False,
        "Publish depth/inverse also when the depth is metric.",
        "You want inverse depth beside metres. A relative network always publishes it.",
    )
    max_range: float = setting(
        0.0,
        "Depth beyond this is published as +Inf, metres; 0 takes the network's own limit.",
        "Far depth is of no use to you, or misleads a costmap.",
        low=0.0,
        live=True,
    )
    color_range: float = setting(
        10.0,
        "Depth at the far end of the colour map of depth/color, metres.",
        "Your scenes are much smaller or larger.",
        low=0.1,
        live=True,
    )
    max_age: float = setting(
        0.0,
        "A frame older than this when its turn comes is dropped, seconds; 0 never drops.",
        "Old depth is worse than none. Leave 0 for bags replayed without a simulated clock.",
        low=0.0,
        live=True,
    )
    smoothing_strength: float = setting(
        0.5,
        "How much of the flicker of depth and labels is taken out over time; 0 does nothing.",
        "Depth still flickers (more), or something new must be seen with no memory at all (0).",
        low=0.0,
        high=1.0,
        live=True,
        group="smoothing",
    )
    smoothing_max_gap: float = setting(
        0.5,
        "Seconds between two frames after which the past is forgotten.",
        "The camera is slower than 2 Hz.",
        low=0.01,
        high=60.0,
        live=True,
        group="smoothing",
    )
    scale_source: str = setting(
        "auto",
        "Where metres come from: network, anchors (anchors/scan, anchors/points, anchors/depth),"
        " ground (floor and scale.camera_height), none, or auto: the best that is there.",
        "You trust one source only, or want relative depth (none).",
        choices=("auto", "network", "anchors", "ground", "none"),
        group="scale",
    )
    scale_factor: float = setting(
        1.0,
        "What a metric network's metres are multiplied by before anything else.",
        "Depth is off by a constant factor and no other sensor can tell.",
        low=0.01,
        high=100.0,
        group="scale",
    )
    scale_camera_height: float = setting(
        0.0,
        "Height of the camera above the floor, metres; 0 if it is not known.",
        "There is no sensor to take the scale from, and the floor is flat.",
        low=0.0,
        high=100.0,
        group="scale",
    )
    sensor_in_camera: tuple[float, ...] = setting(
        (),
        "Pose of the anchors' sensor in the camera's optical frame: x y z qx qy qz qw, as tf2_echo"
        " prints them. Empty: tf tells.",
        "There are anchors and no tf.",
        per_camera=True,
    )
    label_groups: tuple[str, ...] = setting(
        (),
        "Groups of classes, each 'group: class, class, ...'; or navigation, about ten groups of"
        " ADE20K's classes. Empty: the network's own classes.",
        "A costmap wants few classes.",
    )
    points_stride: int = setting(
        1,
        "Every how many pixels depth/points, semantic/labels and semantic/confidence have one.",
        "The points cost too much bandwidth.",
        low=1,
        high=64,
        group="points",
    )
    points_far: float = setting(
        0.0,
        "Where depth is beyond range (sky too), depth/points has a point so many metres from the"
        " camera; 0 has none.",
        "A costmap must clear what stood in front of the sky. Set it to more than its"
        " obstacle_max_range, or these points are obstacles, and to at most max_range.",
        low=0.0,
        high=1000.0,
        group="points",
    )
    points_max_incidence: float = setting(
        87.0,
        "Steeper depth than that of a surface seen at so many degrees from its normal is the smear"
        " between near and far, and NaN in depth/points; 90 keeps all.",
        "Points hang in the air behind edges (less), or grazing walls and thin things go missing"
        " (more).",
        low=1.0,
        high=90.0,
        group="points",
    )
    pose_source: str = setting(
        "odom",
        "Where the camera's motion comes from: odom (nav_msgs/Odometry on the topic odom), tf, or"
        " none (optical flow only).",
        "The robot has tf but no odometry message, or its odometry is worse than none.",
        choices=("odom", "tf", "none"),
    )
    odom_frame: str = setting(
        "odom",
        "Frame in which the camera's motion is smooth; only for pose_source tf.",
        "Yours has another name. Never take map: it jumps.",
    )
    camera_in_base: tuple[float, ...] = setting(
        (),
        "Pose of the camera's optical frame in the odometry's child frame: x y z qx qy qz qw, as"
        " tf2_echo prints them. Empty: odometry is the optical frame's own.",
        "pose_source is odom and the odometry is the robot's.",
        per_camera=True,
    )
    diagnostics_period: float = setting(
        1.0,
        "Seconds between messages on /diagnostics.",
        "Your monitor wants another rate.",
        low=0.1,
        high=60.0,
    )
    autostart: bool = setting(
        True,
        "Configure and activate without being asked.",
        "A lifecycle manager (Nav2) brings the node up.",
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Settings:
        """A checked Settings from names of parameters and plain values.

        Raises:
            ValueError: one sentence per wrong value: what it is, what was expected.
        """
        known = set(FIELDS)
        problems = [
            f"{name!r} is not a parameter; known are {', '.join(sorted(known))}."
            for name in values
            if name not in known
        ]
        checked = {}
        for name in known & values.keys():
            try:
                checked[FIELDS[name].name] = check(name, values[name])
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(" ".join(problems))
        return cls(**checked)


def common_name(name: str) -> str:
    """The parameter whose value a camera's own one replaces: camera_in_base for
    front.camera_in_base. Any other name as it is."""
    rest = name.partition(".")[2]
    return rest if rest in PER_CAMERA and name not in FIELDS else name


def check(name: str, value: Any) -> Any:
    """``value`` as the type of parameter ``name``, which may be a camera's own.

    Raises:
        ValueError: a sentence with the value and what was expected.
    """
    called, name = name, common_name(name)
    expected = TYPES[name]
    meta = FIELDS[name].metadata
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if name == "label_groups":
        return _words(name, value)
    if expected == tuple[str, ...]:
        return _camera_names(value)
    if expected == tuple[float, ...]:
        return _pose(called, value)
    if type(value) is not expected:
        raise ValueError(f"{name} is {value!r}, but must be of type {expected.__name__}.")
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(meta['choices'])}.")
    is_number = expected in (int, float)
    if is_number and not (math.isfinite(value) and meta["low"] <= value <= meta["high"]):
        raise ValueError(f"{name} is {value}, but must be {_range_words(meta)}.")
    if name == "device":
        _check_device_name(value)
    return value


def _check_device_name(value: str) -> None:
    if re.fullmatch("auto|cpu|cuda(:(0|[1-9][0-9]?))?", value):
        return
    raise ValueError(f"device is {value!r}, but must be auto, cpu, cuda or cuda:N.")


def _pose(name: str, value: Any) -> tuple[float, ...]:
    # A ROS parameter file knows no empty list; one empty word stands for it.
    if isinstance(value, list | tuple) and list(value) in ([], [""]):
        return ()
    numbers = isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 7 or not all(math.isfinite(v) for v in value):
        raise ValueError(
            f"{name} is {value!r}, but must be 7 numbers, x y z qx qy qz qw, or an empty list."
        )
    if abs(math.hypot(*value[3:]) - 1.0) > 1e-2:
        raise ValueError(f"{name} is {value!r}, but its last 4 numbers must be a unit quaternion.")
    return tuple(float(v) for v in value)


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is {value!r}, but must be a list of strings.")
    return tuple(item for item in value if item)


def _camera_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"cameras is {value!r}, but must be a list of names.")
    names = tuple(item for item in value if item)
    for item in names:
        if not item.replace("_", "a").isalnum() or not item.isascii() or item[0].isdigit():
            raise ValueError(
                f"cameras holds {item!r}, but a name may have letters, digits and underscores"
                " only and must not begin with a digit."
            )
    if len(set(names)) != len(names):
        raise ValueError(f"cameras is {list(names)!r}, but each name may stand only once.")
    return names


def _range_words(meta: types.MappingProxyType[Any, Any]) -> str:
    low, high = meta["low"], meta["high"]
    return f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"


_HINTS = get_type_hints(Settings)
FIELDS = {parameter_name(f): f for f in fields(Settings)}
TYPES = {name: _HINTS[f.name] for name, f in FIELDS.items()}
PER_CAMERA = tuple(name for name, f in FIELDS.items() if f.metadata["per_camera"])
