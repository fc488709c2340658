# SPDX-License-Identifier: Apache-2.0
"""Every parameter of dpt_ros: name, default, range and meaning, defined once.

``config/dpt.yaml``, the parameter table of docs/topics.md and the parameter descriptors are
generated from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

# Their parameters are named with a dot: the attribute smoothing_strength holds smoothing.strength.
_GROUPS = ("openvino", "onnxruntime", "smoothing", "scale", "points", "compressed_depth")
PROVIDERS = ("tensorrt", "cuda", "cpu")
"""Of ONNX Runtime, in the order in which ``auto`` prefers them."""


def setting(
    default: Any,
    text: str,
    when: str,
    *,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    live: bool = False,
    per_camera: bool = False,
) -> Any:
    """A dataclass field with the metadata of a parameter.

    Args:
        default: defined here only.
        text: what it is or does, one sentence, with its unit.
        when: when to change it.
        choices: the valid values of an enumeration.
        low, high: the range of a number, inclusive.
        live: whether a change takes effect while the node runs.
        per_camera: whether a named camera can have its own value, ``front.camera_in_base``.
    """
    metadata = {
        "text": text,
        "when": when,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "live": live,
        "per_camera": per_camera,
    }
    return field(default=default, metadata=metadata)


def parameter_name(spec: Field[Any]) -> str:
    """The name of the parameter that a field of Settings holds: ``smoothing.strength``."""
    group = next((one for one in _GROUPS if spec.name.startswith(f"{one}_")), "")
    return f"{group}.{spec.name.removeprefix(f'{group}_')}" if group else spec.name


@dataclass(frozen=True)
class Settings:
    """All parameters, typed. ``Settings.parse`` builds a checked one from plain values."""

    cameras: tuple[str, ...] = setting(
        (),
        "Names of the cameras; each is the prefix of that camera's topics.",
        "One node serves several cameras. Empty: one camera, no prefix.",
    )
    image_transport: str = setting(
        "raw",
        "Transport of the image subscription: image (raw) or image/compressed (compressed).",
        "The camera publishes JPEG only, or the connection to it is slow.",
        choices=("raw", "compressed"),
    )
    image_reliability: str = setting(
        "auto",
        "QoS reliability of the image subscription; auto: reliable if all publishers offer it.",
        "Discovery selects wrongly; best_effort loses large images on default Fast DDS.",
        choices=("auto", "reliable", "best_effort"),
    )
    image_bits: int = setting(
        0,
        "Significant bits of 16-bit images (mono16, bayer_rggb16, ...); 0 for all 16.",
        "The camera puts 10, 12 or 14 bits into 16; unscaled, its images are nearly black.",
        low=0,
        high=16,
        live=True,
    )
    depth_network: str = setting(
        "auto",
        "Depth network: a model name, none, or auto (a downloaded one, else the embedded).",
        "You need a specific published checkpoint, or labels only.",
    )
    label_network: str = setting(
        "auto",
        "Label network: a model name, none, or auto (a downloaded one, else the embedded).",
        "You need a specific published checkpoint, or depth only.",
    )
    depth_weights: str = setting(
        "",
        "Weights of the depth network: a file (an .onnx file with backend onnxruntime), download,"
        " random, or empty for the default.",
        "You have a checkpoint file, or permit a download at configure.",
    )
    label_weights: str = setting(
        "",
        "Weights of the label network: a file (an .onnx file with backend onnxruntime), download,"
        " random, or empty for the default.",
        "You have a checkpoint file, or permit a download at configure.",
    )
    weight_std: str = setting(
        "timm",
        "Weight standardisation: timm (as in current timm) or timm045 (as in timm 0.4.5).",
        "You compare with results of isl-org/DPT and its pinned timm 0.4.5.",
        choices=("timm", "timm045"),
    )
    input_width: int = setting(
        0,
        "Target width of the network input, pixels; 0 for the network's own.",
        "You trade accuracy for speed; rounded to the network's multiple, aspect ratio kept.",
        low=0,
        high=4096,
    )
    input_height: int = setting(
        0,
        "Target height of the network input, pixels; 0 for the network's own.",
        "You trade accuracy for speed; rounded to the network's multiple, aspect ratio kept.",
        low=0,
        high=4096,
    )
    device: str = setting(
        "auto",
        "Device of the networks: auto (a GPU if there is one), cpu, cuda or cuda:N.",
        "There are several GPUs, or the GPU must stay free.",
    )
    precision: str = setting(
        "auto",
        "Number format of the networks: auto (fp16 on a GPU, fp32 on a CPU), fp32, fp16 or bf16.",
        "You need reference results (fp32), or the CPU is fast in bf16.",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    backend: str = setting(
        "torch",
        "Inference backend: torch, openvino (pip install openvino) or onnxruntime (pip install"
        " onnx onnxruntime; needed for weights in an .onnx file).",
        "There is no GPU and latency matters (openvino), or you have an .onnx file.",
        choices=("torch", "openvino", "onnxruntime"),
    )
    openvino_device: str = setting(
        "CPU",
        "Device of backend openvino: CPU, GPU (Intel), NPU, or AUTO (a GPU if there is one).",
        "The computer has an Intel GPU or NPU; device stays cpu. Tested on a CPU only.",
        choices=("CPU", "GPU", "NPU", "AUTO"),
    )
    onnxruntime_providers: str = setting(
        "auto",
        "Execution providers of backend onnxruntime by preference, separated by commas: tensorrt,"
        " cuda, cpu; auto: those that are installed and fit device, in this order.",
        "TensorRT takes too long to build its engines (cuda). Tested on a CPU only.",
    )
    cuda_graphs: bool = setting(
        True,
        "Capture a frame's work on the GPU in CUDA graphs, once per image size, and replay them.",
        "You debug the GPU path; without graphs every kernel is launched from Python.",
    )
    compile: bool = setting(
        False,
        "Compile the networks with torch.compile on a GPU; the first frame of a size waits.",
        "The node runs for hours and dpt_bench engine shows a gain on your device.",
    )
    threads: int = setting(
        0,
        "CPU threads of the networks; 0 for torch's default.",
        "Other processes need the cores.",
        low=0,
        high=1024,
    )
    output_size: str = setting(
        "input",
        "Size of all output images: that of the input image, or of the network's output.",
        "network reduces bandwidth and latency for large images.",
        choices=("input", "network"),
    )
    depth_encoding: str = setting(
        "32FC1",
        "Encoding of depth/image: 32FC1 (metres) or 16UC1 (millimetres, 0 unknown; REP 118).",
        "A subscriber accepts millimetres only, or bandwidth matters.",
        choices=("32FC1", "16UC1"),
        live=True,
    )
    compressed_depth_format: str = setting(
        "png",
        "Format of depth/image/compressedDepth: png or rvl.",
        "A PNG takes too long (rvl).",
        choices=("png", "rvl"),
        live=True,
    )
    compressed_depth_depth_max: float = setting(
        10.0,
        "Largest depth in depth/image/compressedDepth, metres; farther depth is unknown there.",
        "Your scene is larger.",
        low=1.0,
        high=100.0,
        live=True,
    )
    compressed_depth_depth_quantization: float = setting(
        100.0,
        "Depth at which one step of depth/image/compressedDepth is 1 m; for 32FC1.",
        "Near depth needs finer steps (increase), or what is nearer than its square / 65535 is"
        " lost (decrease).",
        low=1.0,
        high=150.0,
        live=True,
    )
    compressed_depth_png_level: int = setting(
        3,
        "PNG compression of depth/image/compressedDepth, 0 (fast) to 9 (small).",
        "The link is slow and the CPU idle (increase).",
        low=0,
        high=9,
        live=True,
    )
    publish_inverse: bool = setting(
        False,
        "Publish depth/inverse also for metric depth.",
        "You need inverse depth beside metres. Relative depth is always published there.",
    )
    max_range: float = setting(
        0.0,
        "Depth beyond this is published as +Inf, metres; 0 for the network's own limit.",
        "Distant depth is of no use to you, or harms a costmap.",
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
        "Age at which a waiting frame is dropped, seconds; 0 drops none.",
        "Late depth is worse than none. Keep 0 for bags replayed without a simulated clock.",
        low=0.0,
        live=True,
    )
    smoothing_strength: float = setting(
        0.5,
        "Strength of the temporal filter of depth and labels; 0 turns it off.",
        "Depth still flickers (increase), or each frame must be independent (0).",
        low=0.0,
        high=1.0,
        live=True,
    )
    smoothing_max_gap: float = setting(
        0.5,
        "Time between two frames beyond which the temporal filter is reset, seconds.",
        "The camera is slower than 2 Hz.",
        low=0.01,
        high=60.0,
        live=True,
    )
    scale_source: str = setting(
        "auto",
        "Source of the metric scale: network, anchors (anchors/scan, anchors/points,"
        " anchors/depth), ground (floor and scale.camera_height), none, or auto (the best).",
        "You trust one source only, or want relative depth (none).",
        choices=("auto", "network", "anchors", "ground", "none"),
    )
    scale_factor: float = setting(
        1.0,
        "Factor on the depth of a metric network, applied before everything else.",
        "Depth is off by a constant factor and no other sensor can correct it.",
        low=0.01,
        high=100.0,
    )
    scale_camera_height: float = setting(
        0.0,
        "Height of the camera above the floor, metres; 0 if unknown.",
        "No sensor provides the scale, and the floor is flat.",
        low=0.0,
        high=100.0,
    )
    sensor_in_camera: tuple[float, ...] = setting(
        (),
        "Pose of the anchor sensor in the camera's optical frame: x y z qx qy qz qw, as printed"
        " by tf2_echo. Empty: from tf.",
        "There are anchors and no tf.",
        per_camera=True,
    )
    label_groups: tuple[str, ...] = setting(
        (),
        "Groups of classes, each 'group: class, class, ...'; or navigation, about ten groups of"
        " ADE20K's classes. Empty: the network's own classes.",
        "A costmap needs few classes.",
    )
    points_stride: int = setting(
        1,
        "Pixel stride of depth/points, semantic/labels and semantic/confidence.",
        "The points need too much bandwidth.",
        low=1,
        high=64,
    )
    points_far: float = setting(
        0.0,
        "Distance of the points of pixels beyond range (sky too) in depth/points, metres; 0:"
        " none.",
        "A costmap must clear obstacles in front of the sky. Use more than its"
        " obstacle_max_range, or these points are obstacles, and at most max_range.",
        low=0.0,
        high=1000.0,
    )
    points_max_incidence: float = setting(
        87.0,
        "Largest angle between ray and surface normal, degrees; steeper depth is a flying pixel"
        " between foreground and background, NaN in depth/points. 90 keeps all.",
        "Points float behind edges (decrease), or walls at grazing angles are missing (increase).",
        low=1.0,
        high=90.0,
    )
    points_max_sigma: float = setting(
        0.0,
        "Largest relative standard deviation of the depth of points; more uncertain ones are NaN"
        " in depth/points and counted on /diagnostics. 0 keeps all.",
        "False obstacles cost more than missed ones. Needs smoothing or a scale source, which"
        " estimate it; a frame by itself has 0.06, and what was seen for a second less.",
        low=0.0,
        high=10.0,
    )
    points_min_confidence: float = setting(
        0.0,
        "Least probability of the label of points; less certain ones are NaN in depth/points and"
        " counted on /diagnostics. 0 keeps all.",
        "The costmap acts on the labels, and wrong ones cost more than missing points.",
        low=0.0,
        high=1.0,
    )
    pose_source: str = setting(
        "odom",
        "Source of the camera's motion: odom (nav_msgs/Odometry on the topic odom), tf, or none"
        " (optical flow only).",
        "The robot has tf but no odometry message, or its odometry is worse than none.",
        choices=("odom", "tf", "none"),
    )
    odom_frame: str = setting(
        "odom",
        "Frame in which the camera's motion is continuous; only for pose_source tf.",
        "Yours has another name. Do not use map: it jumps.",
    )
    camera_in_base: tuple[float, ...] = setting(
        (),
        "Pose of the camera's optical frame in the odometry's child frame: x y z qx qy qz qw, as"
        " printed by tf2_echo. Empty: the odometry is that of the optical frame.",
        "pose_source is odom and the odometry is the robot's.",
        per_camera=True,
    )
    diagnostics_period: float = setting(
        1.0,
        "Period of /diagnostics, seconds.",
        "Your monitor expects another rate.",
        low=0.1,
        high=60.0,
    )
    autostart: bool = setting(
        True,
        "Configure and activate at start-up.",
        "A lifecycle manager (Nav2) controls the node.",
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from parameter names and plain values.

        Raises:
            ValueError: per invalid value a sentence: what it is, and what was expected.
        """
        problems, checked = list[str](), dict[str, Any]()
        for name, value in values.items():
            if name not in FIELDS:
                known = ", ".join(sorted(FIELDS))
                problems.append(f"{name!r} is not a parameter; known are {known}.")
                continue
            try:
                checked[FIELDS[name].name] = check(name, value)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(" ".join(problems))
        return cls(**checked)


def common_name(name: str) -> str:
    """The parameter that a camera's own one replaces: camera_in_base for front.camera_in_base;
    any other name unchanged."""
    rest = name.partition(".")[2]
    return rest if rest in PER_CAMERA and name not in FIELDS else name


def check(name: str, value: Any) -> Any:
    """``value`` in the type of the parameter ``name``, which may be a camera's own.

    Raises:
        ValueError: a sentence with the value and what was expected.
    """
    parameter = common_name(name)
    expected, meta = TYPES[parameter], FIELDS[parameter].metadata
    if expected is float and type(value) is int:
        value = float(value)
    if expected == tuple[float, ...]:
        return _pose(name, value)
    if expected == tuple[str, ...]:
        return _names(name, value)
    if type(value) is not expected:
        raise ValueError(f"{name} is {value!r}, but must be of type {expected.__name__}.")
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(meta['choices'])}.")
    if name == "device" and not re.fullmatch("auto|cpu|cuda(:(0|[1-9][0-9]?))?", value):
        raise ValueError(f"device is {value!r}, but must be auto, cpu, cuda or cuda:N.")
    if name == "onnxruntime.providers" and not {*value.split(",")} <= {*PROVIDERS, "auto"}:
        known = ", ".join(PROVIDERS)
        raise ValueError(f"{name} is {value!r}, but must be auto, or of {known}, with commas.")
    low, high = meta["low"], meta["high"]
    if expected in (int, float) and not (math.isfinite(value) and low <= value <= high):
        limits = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value}, but must be {limits}.")
    return value


def _pose(name: str, value: Any) -> tuple[float, ...]:
    # A ROS parameter file has no empty list; a list of one empty string stands for it.
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


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is {value!r}, but must be a list of strings.")
    names = tuple(item for item in value if item)
    if name != "cameras":
        return names
    for item in names:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", item):
            raise ValueError(
                f"cameras contains {item!r}, but a name consists of letters, digits and"
                " underscores and does not begin with a digit."
            )
    if len(set(names)) != len(names):
        raise ValueError(f"cameras is {list(names)!r}, but each name must be unique.")
    return names


# The field and the type of each parameter, by its name.
FIELDS = {parameter_name(spec): spec for spec in fields(Settings)}
TYPES = dict(zip(FIELDS, get_type_hints(Settings).values(), strict=True))
PER_CAMERA = tuple(name for name, spec in FIELDS.items() if spec.metadata["per_camera"])
