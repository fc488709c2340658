# SPDX-License-Identifier: Apache-2.0
"""The zoo: one row per network that can be created by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ResNetGeometry:
    """The convolutional stem of a ViT-hybrid; ``widths`` are those of the stages' outputs."""

    layers: tuple[int, ...] = (3, 4, 9)
    widths: tuple[int, ...] = (256, 512, 1024)
    stem: int = 64
    bottle_ratio: float = 0.25
    norm_groups: int = 32


@dataclass(frozen=True)
class Geometry:
    """Sizes of a DPT; the defaults are those of DPT-Hybrid.

    Args:
        width, depth, heads: of the vision transformer.
        grid: rows and columns of the position embedding.
        resnet: the convolutional stem, None for plain 16x16 patches.
        stage_taps: tapped stages of the stem, counted from 0.
        block_taps: tapped blocks of the transformer, counted from 0; four taps in all.
        reassemble_channels: channels of the four tapped maps before the decoder.
        features: channels of the decoder.
        depth_head: channels of the depth head's two hidden convolutions.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: tuple[int, int] = (24, 24)
    resnet: ResNetGeometry | None = ResNetGeometry()
    stage_taps: tuple[int, ...] = (0, 1)
    block_taps: tuple[int, ...] = (8, 11)
    reassemble_channels: tuple[int, int, int, int] = (256, 512, 768, 768)
    features: int = 256
    depth_head: tuple[int, int] = (128, 32)


@dataclass(frozen=True)
class ModelSpec:
    """One row of the zoo.

    Args:
        name: what :func:`create_model` takes.
        tasks: "depth", "labels" or both.
        geometry: sizes of the network.
        description: one line for users.
        url: where the published file is, "" if nowhere.
        sha256: of that file, all 64 hex digits or the first 8 as in its name; "" if unknown.
        net_width, net_height: the size the network was trained at, pixels.
        focal: of the camera that a metric network was trained with, in pixels of a picture that
            is ``net_width`` wide; 0 for one that does not depend on it. A network cannot see the
            focal length: ``engine.scale.focal_factor`` corrects its metres.
        multiple_of: what height and width of the input must be a multiple of.
        mean, std: normalisation of RGB in 0..1.
        scale, shift, invert: of the depth head; inverted means metres.
        num_classes: of the label head, 0 without one.
        batch_norm: whether the decoder has it.
        readout: "ignore", "add" or "project".
        weight_std: arithmetic of weight standardisation, "timm" or "timm045".
        auxiliary: whether the label network keeps its auxiliary head, for training.
        class_names: file of the class names in dpt_ros/data, "" without labels.
    """

    name: str
    tasks: tuple[str, ...]
    geometry: Geometry
    description: str
    url: str = ""
    sha256: str = ""
    net_width: int = 384
    net_height: int = 384
    focal: float = 0.0
    multiple_of: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    scale: float = 1.0
    shift: float = 0.0
    invert: bool = False
    num_classes: int = 0
    batch_norm: bool = False
    readout: str = "project"
    weight_std: str = "timm"
    auxiliary: bool = False
    class_names: str = ""


HYBRID = Geometry()
LARGE = Geometry(
    width=1024,
    depth=24,
    heads=16,
    resnet=None,
    stage_taps=(),
    block_taps=(5, 11, 17, 23),
    reassemble_channels=(256, 512, 1024, 1024),
)
BASE = Geometry(
    resnet=None, stage_taps=(), block_taps=(2, 5, 8, 11), reassemble_channels=(96, 192, 384, 768)
)
EMBEDDED = Geometry(
    width=160,
    depth=6,
    heads=5,
    grid=(15, 20),
    resnet=ResNetGeometry(
        layers=(2, 2, 2), widths=(64, 128, 256), stem=32, bottle_ratio=0.5, norm_groups=8
    ),
    block_taps=(2, 5),
    reassemble_channels=(64, 128, 160, 160),
    features=48,
    depth_head=(24, 16),
)

# The embedded network's transformer on plain patches, tapped as evenly as DPT-Base.
SMALL = replace(EMBEDDED, resnet=None, stage_taps=(), block_taps=(1, 2, 4, 5))

GEOMETRIES = {
    "hybrid": HYBRID,
    "base": BASE,
    "large": LARGE,
    "small-hybrid": EMBEDDED,
    "small": SMALL,
}
"""Backbones with their decoders, for networks that are trained from random weights."""

EMBEDDED_NAME = "dpt_hybrid_embedded"

_DPT = "https://github.com/isl-org/DPT/releases/download/1_0"
_MIDAS = "https://github.com/isl-org/MiDaS/releases/download/v3"
_HUGGING_FACE = "https://huggingface.co/Intel"


def _depth(name: str, geometry: Geometry, description: str, **fields: Any) -> ModelSpec:
    return ModelSpec(name, ("depth",), geometry, description, **fields)


def _ade20k(name: str, geometry: Geometry, description: str, **fields: Any) -> ModelSpec:
    return ModelSpec(
        name,
        ("labels",),
        geometry,
        description,
        net_width=480,
        net_height=480,
        num_classes=150,
        batch_norm=True,
        class_names="labels_ade20k.json",
        **fields,
    )


ROWS = (
    ModelSpec(
        EMBEDDED_NAME,
        ("depth", "labels"),
        EMBEDDED,
        "a small DPT-Hybrid that comes with the package, trained on the synthetic world",
        net_width=320,
        net_height=240,
        # 60 degrees over 320 pixels (dpt_ros/world). It too needs the correction: on worlds seen
        # with 45, 70 and 80 degrees its depth is 0.82, 1.17 and 1.34 times the true one.
        focal=277.13,
        multiple_of=16,
        shift=1 / 50,
        invert=True,
        num_classes=10,
        batch_norm=True,
        class_names="labels_world.json",
    ),
    _depth(
        "dpt_hybrid_midas",
        HYBRID,
        "DPT-Hybrid, relative inverse depth, trained on MIX 6",
        url=f"{_DPT}/dpt_hybrid-midas-501f0c75.pt",
        sha256="501f0c75b3bca7daec6b3682c5054c09b366765aef6fa3a09d03a5cb4b230853",
    ),
    _depth(
        "dpt_large_midas",
        LARGE,
        "DPT-Large, relative inverse depth, trained on MIX 6",
        url=f"{_DPT}/dpt_large-midas-2f21e586.pt",
        sha256="2f21e586477d90cb9624c7eef5df7891edca49a1c4795ee2cb631fd4daa6ca69",
    ),
    _depth(
        "dpt_hybrid_nyu",
        HYBRID,
        "DPT-Hybrid, metres, indoors (NYUv2), at most 7.3 m",
        url=f"{_DPT}/dpt_hybrid_nyu-2ce69ec7.pt",
        sha256="2ce69ec7",
        net_width=640,
        net_height=480,
        focal=518.86,  # fx_rgb of the NYUv2 toolbox's camera_params.m
        scale=0.000305,
        shift=0.1378,
        invert=True,
    ),
    _depth(
        "dpt_hybrid_kitti",
        HYBRID,
        "DPT-Hybrid, metres, on the road (KITTI), at most 173 m",
        url=f"{_DPT}/dpt_hybrid_kitti-cb926ef4.pt",
        sha256="cb926ef4",
        net_width=1216,
        net_height=352,
        # P_rect_02 of calib_cam_to_cam.txt, 2011_09_26, which cropping to 1216 leaves as it is.
        focal=721.54,
        scale=0.00006016,
        shift=0.00579,
        invert=True,
    ),
    _ade20k(
        "dpt_hybrid_ade20k",
        HYBRID,
        "DPT-Hybrid, the 150 classes of ADE20K",
        url=f"{_DPT}/dpt_hybrid-ade20k-53898607.pt",
        sha256="53898607bfff539504639b34eb1cd3d13fdb97f16c044462f017ed79942c8b94",
    ),
    _ade20k(
        "dpt_large_ade20k",
        LARGE,
        "DPT-Large, the 150 classes of ADE20K",
        url=f"{_DPT}/dpt_large-ade20k-b12dca68.pt",
        sha256="b12dca68",
    ),
    _depth(
        "dpt_hybrid_384",
        HYBRID,
        "MiDaS v3's name for dpt_hybrid_midas",
        url=f"{_MIDAS}/dpt_hybrid_384.pt",
    ),
    _depth(
        "dpt_large_384",
        LARGE,
        "MiDaS v3's name for dpt_large_midas",
        url=f"{_MIDAS}/dpt_large_384.pt",
        sha256="2f21e586477d90cb9624c7eef5df7891edca49a1c4795ee2cb631fd4daa6ca69",
    ),
    _depth(
        "Intel/dpt-hybrid-midas",
        HYBRID,
        "dpt_hybrid_midas as converted for Hugging Face",
        url=f"{_HUGGING_FACE}/dpt-hybrid-midas/resolve/17fb43d4437eb62c260a593400db13c22b04511a"
        "/model.safetensors",
        sha256="9599793d3ce64d7ebc85657360831596c1df9abc61f6820fe623fe7efb2e29c5",
    ),
    _depth(
        "Intel/dpt-large",
        LARGE,
        "dpt_large_midas as converted for Hugging Face",
        url=f"{_HUGGING_FACE}/dpt-large/resolve/cc27b92e869fc79f52a0241addbbcd1579b66b11"
        "/pytorch_model.bin",
        sha256="71150941604c39c1c770a72a7b2f56487669f0e3a4d99c8759e233fb1be24080",
    ),
    _ade20k(
        "Intel/dpt-large-ade",
        LARGE,
        "dpt_large_ade20k as converted for Hugging Face",
        url=f"{_HUGGING_FACE}/dpt-large-ade/resolve/5ca59e2439c8340340eafccba2377816903f444a"
        "/pytorch_model.bin",
    ),
    _depth("dpt_base_midas", BASE, "DPT-Base, relative inverse depth; no weights are published"),
    _ade20k("dpt_base_ade20k", BASE, "DPT-Base, ADE20K; no weights are published"),
)

ZOO = {row.name: row for row in ROWS}


def list_models() -> list[str]:
    """The names that ``create_model`` accepts."""
    return list(ZOO)


def unknown_model(name: str) -> str:
    """The message for a name that is not in the zoo."""
    return f"Unknown network {name!r}{did_you_mean(name, ZOO)}. Available: {', '.join(ZOO)}."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" with the known names that are close, "" if there are none."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
