# SPDX-License-Identifier: Apache-2.0
"""The message types of video, which are not on PyPI, built from their definitions.

The generators of rosidl are there with rclpy; what they write is compiled here as ament would do
it, in a few seconds. On a ROS install the packages themselves are used.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

DEFINITIONS = {
    "ffmpeg_image_transport_msgs/FFMPEGPacket": (
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\n"
        "uint8 flags\nbool is_bigendian\nuint8[] data\n"
    ),
    "foxglove_msgs/CompressedVideo": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
    ),
}
_SUPPORTS = ["rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"]


@cache
def video_types() -> str:
    """A folder for ``PYTHONPATH`` with both packages; "" where they are installed.

    It is added to this process's ``sys.path``.
    """
    names = [definition.partition("/")[0] for definition in DEFINITIONS]
    if all(importlib.util.find_spec(name) for name in names):
        return ""
    folder = tempfile.TemporaryDirectory(prefix="video_types_")
    _KEPT.append(folder)  # until the process ends
    for full_name, text in DEFINITIONS.items():
        package, name = full_name.split("/")
        _build(Path(folder.name), package, name, text)
    sys.path.insert(0, folder.name)
    return folder.name


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _build(root: Path, package: str, name: str, text: str) -> None:
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    out = root / package
    (out / "msg").mkdir(parents=True)
    (out / "msg" / f"{name}.msg").write_text(text)
    convert_msg_to_idl(out, package, Path("msg", f"{name}.msg"), out / "msg")
    supports = ["rosidl_typesupport_c", *_SUPPORTS]
    for generator in (
        GenerateC("c"),
        GeneratePython("py", typesupport_implementations=supports),
        GenerateCTypesupport("c", typesupport_implementations=_SUPPORTS),
        GenerateFastRTPSCTypesupport("fastrtps_c"),
        GenerateIntrospectionCTypesupport("introspection_c"),
    ):
        share = str(Path(sys.prefix, "share"))
        generator.generate(package, [f"{out}:msg/{name}.idl"], [share], out)
    (out / "__init__.py").touch()
    _compile(root, package)


def _compile(root: Path, package: str) -> None:
    """The library of each type support, found by name once loaded, and the Python module."""
    out, detail = root / package, root / package / "msg" / "detail"
    ends = {
        "rosidl_typesupport_fastrtps_c": "__type_support_c.cpp",
        "rosidl_typesupport_introspection_c": "__type_support.c",
    }
    generated = "__functions.c", "__description.c"
    sources = {f"lib{package}__rosidl_generator_c.so": [f"msg/detail/*{end}" for end in generated]}
    sources |= {f"lib{package}__{name}.so": [f"msg/detail/*{end}"] for name, end in ends.items()}
    module = f"{package}_s__rosidl_typesupport_c{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources[module] = ["msg/*.cpp", "msg/*_s.c", "_*.ep.rosidl_typesupport_c.c"]
    # Both generators write a file of this name; the one of the introspection came last.
    assert "introspection" in next(detail.glob("*__type_support.c")).read_text()
    headers = [Path(sys.prefix, "include"), *Path(sys.prefix, "include").iterdir()]
    headers += [Path(sysconfig.get_paths()["include"]), Path(np.get_include())]
    flags = ["-O0", "-w", "-fPIC", f"-I{root}", *(f"-isystem{header}" for header in headers)]
    libraries = [
        *(f"{p}__{k}" for p in ("std_msgs", "builtin_interfaces") for k in _OF_PACKAGE),
        *("rosidl_runtime_c", "rosidl_typesupport_c", "rosidl_typesupport_fastrtps_c"),
        *("rosidl_typesupport_introspection_c", "rosidl_typesupport_fastrtps_cpp"),
        *("fastcdr", "rcutils"),
    ]
    places = [f"-L{sys.prefix}/lib", f"-Wl,-rpath,{sys.prefix}/lib", f"-L{out}"]
    made: list[str] = []
    for library, patterns in sources.items():
        files = [str(file) for pattern in patterns for file in sorted(out.glob(pattern))]
        objects = [f"{file}.o" for file in files]
        for file, compiled in zip(files, objects, strict=True):
            compiler = ["g++", "-std=c++17"] if file.endswith(".cpp") else ["gcc"]
            subprocess.run([*compiler, *flags, "-c", file, "-o", compiled], check=True)
        link = ["g++", "-shared", "-Wl,--no-as-needed", f"-Wl,-soname,{library}", *objects]
        link += [*places, "-Wl,-rpath,$ORIGIN", *made, *(f"-l{name}" for name in libraries)]
        subprocess.run([*link, "-o", str(out / library)], check=True)
        made.append(f"-l:{library}")


_OF_PACKAGE = (
    "rosidl_generator_c",
    "rosidl_generator_py",
    "rosidl_typesupport_c",
    *_SUPPORTS,
)
