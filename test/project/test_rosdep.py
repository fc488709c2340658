# SPDX-License-Identifier: Apache-2.0
"""package.xml names what the code imports, by keys that docs/rosdep.md has looked up."""

import ast
import re
import sys
from xml.etree import ElementTree

import pytest
from helpers.places import ROOT

MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
PAGE = (ROOT / "docs" / "rosdep.md").read_text("utf-8")
SETUP = (ROOT / "setup.py").read_text("utf-8")
# Elements of package format 3 (REP 149) in their usual order, with how often each may stand there.
ELEMENTS = {"name": (1, 1), "version": (1, 1), "description": (1, 1), "maintainer": (1, 99),
            "license": (1, 99), "url": (0, 99), "author": (0, 99), "exec_depend": (0, 99),
            "test_depend": (0, 99), "export": (0, 1)}  # fmt: skip
# The key of an imported module, where its name is another one.
KEYS = {"PIL": "python3-pil", "cv2": "python3-opencv", "rosbags": "python3-rosbags-pip",
        "tf2_ros": "tf2_ros_py", "timm": "python3-timm-pip", "torch": "python3-pytorch-pip",
        "torchvision": "python3-pytorch-pip", **{name: f"python3-{name}" for name in
        ("numpy", "tqdm", "yaml")}}  # fmt: skip
# Come with torch, timm and rosbags, or are the standard library's from Python 3.14 on.
BROUGHT = {"triton", "safetensors", "lz4", "backports", "compression"}
OPTIONAL = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "av", "ray", "rerun",
            "tensorboard", "h5py", "scipy", "transformers", "importlib_metadata"}  # fmt: skip


def depends(kind: str) -> dict[str, str | None]:
    """The keys of package.xml with their conditions."""
    return {key.text: key.get("condition") for key in MANIFEST.findall(kind)}


def rows() -> dict[str, list[str]]:
    """The table of keys on the page: for what, range, Ubuntu 22.04, Ubuntu 24.04."""
    table = PAGE.partition("| key | for |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {row[0].strip("`"): row[1:] for row in cells if row and row[0].startswith("`")}


def imported() -> set[str]:
    """Modules that the package and its launch files import and that have to be there."""
    found = set()
    for path in [*(ROOT / "dpt_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found - sys.stdlib_module_names - BROUGHT - OPTIONAL - {"dpt_ros"}


def test_package_xml_follows_format_3():
    assert {child.tag for child in MANIFEST} <= ELEMENTS.keys()
    for tag, (least, most) in ELEMENTS.items():
        assert least <= len(MANIFEST.findall(tag)) <= most, tag
    assert re.fullmatch(r"\d+\.\d+\.\d+", MANIFEST.findtext("version"))
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.\w+", MANIFEST.find("maintainer").get("email"))
    assert (ROOT / MANIFEST.find("license").get("file")).is_file()
    exec_depends = [key.text for key in MANIFEST.findall("exec_depend")]
    assert len(exec_depends) == len(set(exec_depends))
    assert not depends("exec_depend").keys() & depends("test_depend").keys()


def test_every_key_of_package_xml_has_been_looked_up():
    ros = PAGE.partition("Keys of ROS packages")[2].partition("\n\n")[0]
    known = rows().keys() | set(re.findall(r"`(\w+)`", ros))
    keys = depends("exec_depend").keys() | depends("test_depend").keys()
    assert keys == known


def test_keys_that_rosdep_gets_from_pip_are_off_unless_asked_for():
    for key, condition in depends("exec_depend").items():
        assert (condition == "$DPT_ROS_PIP == yes") == key.endswith("-pip"), key
        assert ("pip: newest" in rows().get(key, [])) == key.endswith("-pip"), key


@pytest.mark.parametrize("module", sorted(imported()))
def test_every_imported_module_has_a_key(module):
    assert KEYS.get(module, module) in depends("exec_depend")


def test_every_requirement_of_setup_py_is_on_the_page_with_its_range():
    required = SETUP.partition("REQUIRES = [")[2].partition("]")[0]
    for requirement in re.findall(r'"([^"]+)"', required):
        assert f"`{requirement}`" in PAGE, requirement
    for ranges in (row[1] for row in rows().values()):
        for requirement in re.findall(r"`([^`]+)`", ranges):
            assert f'"{requirement}"' in SETUP, requirement
