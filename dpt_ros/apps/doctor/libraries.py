# SPDX-License-Identifier: Apache-2.0
"""Checks of the Python packages that networks and images need, and of the GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import Any

from dpt_ros.apps.doctor.finding import Finding, Machine, absent, brief, error, versions, warning

_OPENCVS = tuple(
    f"opencv-{kind}python{end}" for kind in ("", "contrib-") for end in ("", "-headless")
)
# Module, its distributions, what pip shall install; for optional ones also what they are for, and
# what they offer.
_PLAIN = (
    ("numpy", ("numpy",), "'numpy>=1.26,<3' (with ROS from apt: 'numpy>=1.26,<2')"),
    ("PIL", ("pillow",), "pillow"),
    ("safetensors", ("safetensors",), "safetensors"),
    ("tqdm", ("tqdm",), "tqdm"),
    ("cv2", _OPENCVS, "opencv-python (with ROS from apt: apt install python3-opencv)"),
)
_OPTIONAL: tuple[tuple[str, tuple[str, ...], str, str, Callable[[Any], list[str]]], ...] = (
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "onnxruntime", "backend: onnxruntime",
        lambda module: module.get_available_providers()),
    ("openvino", ("openvino",), "openvino", "backend: openvino",
        lambda openvino: openvino.Core().available_devices),
    ("av", ("av",), "av", "image_transport: video",
        lambda av: [x for x in ("h264", "hevc", "av1", "vp9") if x in av.codecs_available]),
)  # fmt: skip


def _checked(
    module: str,
    distributions: tuple[str, ...],
    package: str,
    use: str = "",
    offers: Callable[[Any], list[str]] = lambda _: [],
) -> Iterator[Finding | str]:
    """A module's version; without ``use`` it is needed."""
    yield module
    try:
        found = import_module(module)
        text = f"; {', '.join(offers(found))}" if use else ""
        yield Finding(module, f"{found.__version__}{text}")
    except Exception as why:
        if use and absent(module, why):
            yield Finding(module, f"not installed; only needed for {use}")
        else:
            yield _broken(module, distributions, why, package)


def check_packages(machine: Machine) -> Iterator[Finding | str]:
    """NumPy, Pillow, safetensors, tqdm, OpenCV: whether they can be imported."""
    for row in _PLAIN:
        yield from _checked(*row)
    if len(several := versions(*_OPENCVS)) > 1:
        names = " and ".join(f"{name} {number}" for name, number in several.items())
        message = f"{names} are installed: they overwrite one another's files."
        cure = f"pip uninstall {' '.join(several)}, then pip install opencv-python."
        yield warning("OpenCV", message, cure)


def _broken(module: str, distributions: tuple[str, ...], why: Exception, package: str) -> Finding:
    """A module that is missing, or installed but not importable."""
    if absent(module, why):
        message = f"It is not installed for {sys.executable}."
        return error(module, message, f"pip install {package}.")
    there = ", ".join(f"{name} {number}" for name, number in versions(*distributions).items())
    message = f"{there or 'It'} cannot be imported: {brief(why)}."
    return error(module, message, f"pip install --force-reinstall {package}.")


def check_torch(machine: Machine) -> Iterator[Finding | str]:
    """torch, torchvision and timm, which must fit together; and the GPU as torch sees it."""
    yield "torch"
    try:
        torch = import_module("torch")
    except Exception as why:
        package = "torch torchvision timm (on a Jetson the vendor's)"
        yield _broken("torch", ("torch",), why, package)
        return
    cuda = torch.version.cuda
    yield Finding("torch", f"{torch.__version__}, for {f'CUDA {cuda}' if cuda else 'CPUs'}")
    for module in ("torchvision", "timm"):
        yield module
        try:
            yield Finding(module, import_module(module).__version__)
        except Exception as why:
            if "torchvision::nms" in str(why) and module == "timm":
                yield error(module, "It needs torchvision.", "See torchvision.")
            elif "torchvision::nms" in str(why):
                yield _misfit(torch, why)
            else:
                yield _broken(module, (module,), why, module)
    yield "GPU"
    yield from _gpus(torch)


def _misfit(torch: Any, why: Exception) -> Finding:
    """torch and torchvision of different releases or builds."""
    number = versions("torchvision").get("torchvision", "of an unknown version")
    try:
        asked = [x for x in metadata.requires("torchvision") or [] if re.match(r"torch\b", x)]
    except metadata.PackageNotFoundError:
        asked = []
    index = "" if torch.version.cuda else " --index-url https://download.pytorch.org/whl/cpu"
    return error(
        "torchvision",
        f"It cannot be imported: {brief(why)}. torch {torch.__version__} and torchvision {number}"
        f"{f' (which asks for {asked[0]})' if asked else ''} do not fit together: of different"
        " releases, or one for CPUs and one for CUDA.",
        "Install both from one source: pip install --force-reinstall"
        f" torch=={torch.__version__.partition('+')[0]} torchvision{index} (on a Jetson both from"
        " the vendor).",
    )


def _gpus(torch: Any) -> Iterator[Finding]:
    from dpt_ros.apps.report import gpus

    seen, on_cpu = gpus(), "the networks run on the CPU"
    driver = seen[0]["driver"] if seen else "unknown"
    if not torch.cuda.is_available() and not seen:
        yield Finding("GPU", f"none found: {on_cpu}")
        return
    if not torch.cuda.is_available():
        message = f"{seen[0]['name']}, driver {driver}, but torch {torch.__version__} cannot use"
        cure = "Install a torch for this driver: https://pytorch.org/get-started/locally."
        yield warning("GPU", f"{message} it: {on_cpu}.", cure)
        return
    for number in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(number)
        text = (
            f"{one.name}, capability {one.major}.{one.minor}, {one.total_memory >> 20} MiB,"
            f" driver {driver}, CUDA {torch.version.cuda}"
        )
        try:
            torch.ones(8, device=f"cuda:{number}").sum().item()
            yield Finding("GPU", text)
        except Exception as why:
            built = ", ".join(torch.cuda.get_arch_list())
            cure = f"device: cpu, or a torch for this GPU (this one has {built})."
            yield error("GPU", f"{text}; it cannot compute: {brief(why)}", cure)
    from dpt_ros.engine.inference.kernels import probe

    if slower := probe(torch.device("cuda")):
        yield warning("triton", slower, "pip install triton; apt install gcc python3-dev.")
    else:
        yield Finding("triton", ", ".join(versions("triton").values()))


def check_optional(machine: Machine) -> Iterator[Finding | str]:
    """ONNX Runtime and its providers, OpenVINO and its devices, PyAV and its decoders."""
    for row in _OPTIONAL:
        yield from _checked(*row)
