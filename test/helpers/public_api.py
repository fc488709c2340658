# SPDX-License-Identifier: Apache-2.0
"""The public API as it is: what test/quality/api/ holds frozen. ``scripts/freeze`` writes it.

What is public is said in QUALITY_DECLARATION.md; everything else may change at any time.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from helpers.api_rules import Api, from_text, numbers, problems, to_text
from helpers.places import ROOT

FROZEN = ROOT / "test" / "quality" / "api"
CHANGELOG = ROOT / "CHANGELOG.rst"
# Public modules and their public names; None: those of __all__.
MODULES: dict[str, tuple[str, ...] | None] = {
    "dpt_ros": ("__version__",),
    "dpt_ros.model": None,
    "dpt_ros.engine": None,
    "dpt_ros.run": None,
    "dpt_ros.world": None,
    "dpt_ros.datasets": None,
    "dpt_ros.metrics.depth": (
        "depth_metrics",
        "crop_mask",
        "fit_scale_and_shift",
        "aligned_depth",
        "zero_shot_metrics",
        "ordinal_misses",
        "Confusion",
    ),
    "dpt_ros.metrics.temporal": None,
    "dpt_ros.data": ("class_names", "palette"),
    "dpt_ros.engine.settings": ("Settings",),
    "dpt_ros.engine.loading": ("NetworkError", "load_networks"),
    "dpt_ros.engine.frame": ("CameraModel", "Frame", "Lens", "OutputRequest", "Prediction"),
    "dpt_ros.engine.output.color": ("depth_to_color", "inverse_to_color", "labels_to_color"),
    "dpt_ros.engine.smoothing.state": ("FilteredFrame",),
    "dpt_ros.engine.scale.anchors": ("Anchors", "project_scan", "project_points", "project_depth"),
    "dpt_ros.engine.export.session": ("StepSession",),
}
SPECIAL = ("__call__", "__len__", "__getitem__", "__iter__")


# Python


def public_objects() -> Iterator[tuple[str, Any]]:
    """Full names and objects: the public ones of MODULES, with the public parts of classes."""
    for module_name, names in MODULES.items():
        module = importlib.import_module(module_name)
        for name in module.__all__ if names is None else names:
            found = getattr(module, name)
            yield f"{module_name}.{name}", found
            if inspect.isclass(found):
                for part in _parts(found):
                    yield f"{module_name}.{name}.{part}", inspect.getattr_static(found, part)


def _parts(found: type) -> list[str]:
    """Public methods and properties, of our own base classes too."""
    ours = [base for base in found.__mro__ if base.__module__.startswith("dpt_ros")]
    names = dict.fromkeys(name for base in ours for name in vars(base))
    made = (property, staticmethod, classmethod)
    return [
        name
        for name in names
        if (name in SPECIAL or not name.startswith("_"))
        and (
            isinstance(inspect.getattr_static(found, name), made)
            or inspect.isfunction(inspect.getattr_static(found, name))
        )
    ]


def python() -> Api:
    """Names of Python, with the signatures of what can be called, an argument per entry."""
    api: Api = {}
    for name, found in public_objects():
        found = getattr(found, "__func__", found)  # of a class method
        if isinstance(found, property):
            api[name] = f"property -> {inspect.signature(found.fget).return_annotation}"
        elif not callable(found):
            # The version is package.xml's business.
            api[name] = "str" if name.endswith("__version__") else repr(found)
        else:
            plain = (
                inspect.isclass(found)
                and issubclass(found, Exception)
                and "__init__" not in vars(found)
            )
            signature = inspect.Signature() if plain else inspect.signature(found)
            bases = [base.__name__ for base in getattr(found, "__bases__", ())]
            api[name] = (
                f"class({', '.join(bases)})" if bases else f"-> {signature.return_annotation}"
            )
            if name.endswith(".Settings"):
                continue  # its arguments are the parameters of the node
            for number, one in enumerate(signature.parameters.values()):
                if one.name not in ("self", "cls", "args", "kwargs"):
                    api[f"{name}({one.name})"] = _argument(number, one)
    return api


def _argument(number: int, one: inspect.Parameter) -> str:
    if one.kind is one.VAR_KEYWORD:
        return f"any name: {one.annotation}"
    place = "by name:" if one.kind is one.KEYWORD_ONLY else f"{number}."
    default = f" = {one.default!r}" if one.default is not one.empty else ", required"
    if len(default) > 60:
        default = f" = {type(one.default).__name__}(...)"
    return f"{place} {one.annotation}{default}".replace("typing.", "")


def networks() -> Api:
    """Names of networks, with what users compute with."""
    from dpt_ros.model import list_models, model_spec

    api: Api = {}
    for name in list_models():
        spec = model_spec(name)
        numbers_of = (
            f"{spec.net_width}x{spec.net_height}, scale {spec.scale:g}, shift {spec.shift:g}"
        )
        metres = "metres" if spec.invert else "relative inverse depth"
        depth = f", {metres}, {numbers_of}" if "depth" in spec.tasks else ""
        labels = f", {spec.num_classes} classes" if "labels" in spec.tasks else ""
        api[f"network {name}"] = f"{' and '.join(spec.tasks)}{depth}{labels}"
    return api


# ROS

ROS_TYPES = {
    "bool": "bool",
    "int": "integer",
    "float": "double",
    "str": "string",
    "tuple[str, ...]": "string array",
    "tuple[float, ...]": "double array",
}


def parameters() -> Api:
    """Parameters of the nodes: type, default, range, when a change takes effect; choices."""
    from dpt_ros.engine.settings import FIELDS
    from dpt_ros.ros.command_line import CAMERA_PARAMETERS

    api: Api = {}
    for name, spec in FIELDS.items():
        meta = spec.metadata
        limits = f", {meta['low']:g} to {meta['high']:g}" if meta["low"] > float("-inf") else ""
        default = json.dumps(spec.default)
        when = "live" if meta["live"] else "at configure"
        per_camera = ", also per camera" if meta["per_camera"] else ""
        api[name] = f"{ROS_TYPES[str(spec.type)]} {default}{limits}, {when}{per_camera}"
        api |= {f"{name} = {choice}": "" for choice in meta["choices"]}
    for name, (default, _) in CAMERA_PARAMETERS.items():
        api[f"dpt_camera_sim {name}"] = (
            f"{ROS_TYPES[type(default).__name__]} {json.dumps(default)}"
        )
    return api


def topics() -> Api:
    """Topics and services of both nodes, with types and QoS, and what idle diagnostics name."""
    import rclpy
    from rclpy.parameter import Parameter

    from dpt_ros.ros.camera_sim import CameraSim
    from dpt_ros.ros.dpt_node import DptNode
    from dpt_ros.ros.messages.types import VIDEOS
    from helpers.ros_processes import RANDOM_NETWORKS

    rclpy.init(domain_id=101)  # of none of the other tests
    sent: list[Any] = []
    api: Api = {}
    for transport in ("raw", "compressed"):
        given = {**RANDOM_NETWORKS, "autostart": False, "publish_inverse": True}
        given |= {"image_transport": transport}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        node = DptNode(parameter_overrides=overrides)
        node.trigger_configure()
        node.trigger_activate()
        api |= _endpoints(node, "")
        diagnostics, node._diagnostics = node._diagnostics, SimpleNamespace(publish=sent.append)
        node._publish_diagnostics()
        node._diagnostics = diagnostics
        node.trigger_deactivate()
        node.destroy_node()
    for name, suffix in VIDEOS.items():  # with image_transport: video
        api[f"image{suffix}"] = f"subscribed {name}, reliability auto, volatile, keep last 64"
    for status in sent[0].status:
        for pair in status.values:
            api[f"/diagnostics {status.name}: {pair.key}"] = ""
    camera = CameraSim()
    api |= _endpoints(camera, "dpt_camera_sim ")
    camera.destroy_node()
    rclpy.shutdown()
    return dict(sorted(api.items()))


# Of every node of rclpy, or where a package is installed that is not on PyPI.
_OF_RCLPY = ("/parameter_events", "/rosout", "/tf", "/clock")


def _endpoints(node: Any, prefix: str) -> Api:
    api: Api = {}
    for word, endpoints in (("published", node.publishers), ("subscribed", node.subscriptions)):
        for endpoint in endpoints:
            name = (
                endpoint.topic_name
                if endpoint.topic_name == "/diagnostics"
                else endpoint.topic_name[1:]
            )
            if endpoint.topic_name.startswith(_OF_RCLPY) or name in (
                "image/ffmpeg",
                "image/foxglove",
            ):
                continue
            kind, qos = _type(endpoint.msg_type), endpoint.qos_profile
            if name.endswith("label_info"):
                kind = "vision_msgs/msg/LabelInfo, or std_msgs/msg/String"
            reliability = qos.reliability.name.lower()
            if word == "subscribed" and name.startswith("image"):
                reliability = "reliability auto"
            qualities = f"{reliability}, {qos.durability.name.lower()}, keep last {qos.depth}"
            api[f"{prefix}{name}"] = f"{word} {kind}, {qualities}"
    for service in node.services:
        if service.srv_name.startswith("~"):  # not those of every (lifecycle) node
            api[f"{prefix}{service.srv_name}"] = f"service {_type(service.srv_type)}"
    return api


def _type(kind: type) -> str:
    package, which, _ = kind.__module__.split(".")
    return f"{package}/{which}/{kind.__name__}"


def launch() -> Api:
    """Arguments of the launch file."""
    for node in ast.parse((ROOT / "launch" / "dpt.launch.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARGUMENTS":
            return {
                f"dpt.launch.py {name}": f"default '{default}'"
                for name, default, _ in ast.literal_eval(node.value)
            }
    raise AssertionError("launch/dpt.launch.py has no ARGUMENTS")


# Commands and files


def commands() -> Api:
    """Commands: options with defaults and choices, and the exit codes that help tells."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    done = subprocess.run(
        [sys.executable, "-m", "helpers.command_options"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def files() -> Api:
    """Files that other programs read: results of dpt_run by a run of it, ids of labels, and what
    is installed beside the package."""
    api: Api = {}
    for folder in ("config", "config/sros2", "launch"):
        for path in sorted((ROOT / folder).glob("*.*")):
            api[f"share/dpt_ros/{folder}/{path.name}"] = ""
    api |= _results_of_dpt_run()
    for path in sorted((ROOT / "config").glob("labels_*.yaml")):
        for number, name in yaml.safe_load(path.read_text()).items():
            api[f"{path.stem} {number}"] = name
    return api


def _results_of_dpt_run() -> Api:
    import cv2
    import numpy as np

    from dpt_ros.apps.run import main
    from dpt_ros.run import OUTPUTS

    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        source.mkdir()
        cv2.imwrite(str(source / "PICTURE.png"), np.zeros((64, 64, 3), np.uint8))
        video = cv2.VideoWriter(
            str(source / "VIDEO.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 64)
        )
        video.write(np.zeros((64, 64, 3), np.uint8))
        video.release()
        words = [str(source), str(out), "--outputs", ",".join(OUTPUTS), "-p", "device:=cpu"]
        assert main([*words, "--network", "dpt_hybrid_embedded", "--weights", "random"]) == 0
        found = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
        api = {f"dpt_run OUT/{path}": "" for path in found}
        record = json.loads((out / "dpt_run.json").read_text())
        stamps = next(out.rglob("stamps.csv")).read_text().splitlines()[0]
        api |= {f"dpt_run dpt_run.json {key}": "" for key in record}
        return {**api, "dpt_run stamps.csv": stamps}


# Frozen

KINDS = {
    "python": python,
    "networks": networks,
    "parameters": parameters,
    "topics": topics,
    "launch": launch,
    "commands": commands,
    "files": files,
}


def frozen(kind: str) -> Api:
    """The frozen entries of a kind."""
    return from_text((FROZEN / f"{kind}.txt").read_text(encoding="utf-8"))


def frozen_versions() -> dict[str, str]:
    """Versions at which the API was frozen, each with the digest of the files."""
    return from_text((FROZEN / "versions.txt").read_text(encoding="utf-8"))


def digest() -> str:
    """Of the frozen files, so that one changed by hand is found."""
    import hashlib

    texts = [(FROZEN / f"{kind}.txt").read_bytes() for kind in KINDS]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def package_version() -> str:
    """The version in package.xml."""
    from xml.etree import ElementTree

    return ElementTree.parse(ROOT / "package.xml").getroot().findtext("version") or ""


def main() -> None:
    """Freeze the API at the version of package.xml, if CHANGELOG.rst tells what changed."""
    version, versions = package_version(), {}
    if (FROZEN / "versions.txt").exists():
        versions = frozen_versions()
        last = max(versions, key=numbers)
        if version == last:
            sys.exit(
                f"The API is frozen at {last}, the version in package.xml. Until the next release"
                " name what you change in CHANGELOG.rst, Forthcoming."
            )
        changelog = CHANGELOG.read_text()
        for kind, collect in KINDS.items():
            if found := problems(last, frozen(kind), version, collect(), changelog):
                sys.exit("\n".join(found))
    texts = {kind: to_text(collect()) for kind, collect in KINDS.items()}
    for kind, text in texts.items():
        head = f"# {kind}, frozen at {version} by scripts/freeze: not to be edited by hand\n"
        (FROZEN / f"{kind}.txt").write_text(head + text, encoding="utf-8")
    head = "# Versions at which the API was frozen, with the SHA-256 of the other files here\n"
    (FROZEN / "versions.txt").write_text(head + to_text({**versions, version: digest()}))
    print(f"The API is frozen at {version}.")


if __name__ == "__main__":
    main()
