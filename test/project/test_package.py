# SPDX-License-Identifier: Apache-2.0
"""The package as its users meet it: installed by pip, built by colcon, read as a checkout."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from email import message_from_string
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
from helpers.places import ROOT

PROGRAMS = (
    "dpt_bag",
    "dpt_bag_player",
    "dpt_bench",
    "dpt_camera_sim",
    "dpt_demo",
    "dpt_doctor",
    "dpt_evaluate",
    "dpt_export",
    "dpt_node",
    "dpt_ros",
    "dpt_run",
    "dpt_status",
    "dpt_train",
    "dpt_view",
)
SHARED_FILES = (
    "share/ament_index/resource_index/packages/dpt_ros",
    "share/dpt_ros/package.xml",
    "share/dpt_ros/launch/dpt.launch.py",
    "share/dpt_ros/config/dpt.yaml",
    "share/dpt_ros/config/dpt.rviz",
    "share/dpt_ros/config/fastdds.xml",
    "share/dpt_ros/config/fastdds_network.xml",
    "share/dpt_ros/config/foxglove.json",
    "share/dpt_ros/config/labels_ade20k.yaml",
)


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing behind in it."""
    copy = tmp_path_factory.mktemp("ws") / "src" / "dpt_ros"
    unwanted = shutil.ignore_patterns(
        ".git",
        ".venv",
        "build",
        "install",
        "log",
        "demo_out",
        "*.egg-info",
        ".*_cache",
        "test",
        # Other runs of pytest write into them meanwhile.
        ".hypothesis",
        "__pycache__",
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    return copy


PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build_wheel(source: Path, folder: Path) -> Path:
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("dpt_ros-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_has_every_file_of_the_checkout(tmp_path):
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path, cwd=ROOT)
    packed = (tmp_path / "dpt_ros.egg-info" / "SOURCES.txt").read_text().split("\n")
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    assert len(tracked) > 500
    assert set(tracked) - set(packed) == set()


def test_a_wheel_from_the_source_distribution_has_the_same_files(source, wheel, tmp_path):
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=source)
    (archive,) = tmp_path.glob("dpt_ros-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    again = build_wheel(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)
    assert sorted(ZipFile(again).namelist()) == sorted(ZipFile(wheel).namelist())


def test_the_wheel_carries_its_licence_and_what_an_index_shows(wheel):
    archive = ZipFile(wheel)
    names = archive.namelist()
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    about = message_from_string(archive.read(metadata).decode())
    assert about["License"] == "Apache-2.0"
    assert about["License-File"] == "LICENSE"
    (licence,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
    assert archive.read(licence).decode() == (ROOT / "LICENSE").read_text()
    assert about.get_payload().startswith("# dpt_ros")
    assert about["Project-URL"].startswith("Website, https://")
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)}
    assert pythons <= set(about.get_all("Classifier"))


def test_pip_installs_programs_where_the_shell_and_ros2_run_look(wheel, tmp_path):
    assert wheel.stat().st_size < 10e6
    prefix = tmp_path / "prefix"
    run(*PIP, "install", "--no-deps", "--ignore-installed", "--prefix", prefix, wheel)
    for name in SHARED_FILES:
        assert (prefix / name).is_file(), name
    packages = next(prefix.glob("lib/python*/site-packages"))
    environment = os.environ | {"PYTHONPATH": str(packages)}
    for program in PROGRAMS:
        assert (prefix / "bin" / program).is_file(), program
        wrapper = prefix / "lib" / "dpt_ros" / program
        assert wrapper.stat().st_mode & stat.S_IXUSR, program
    said = run(prefix / "lib/dpt_ros/dpt_node", "--help", env=environment, cwd=tmp_path)
    assert "dpt_node --ros-args" in said
    # A shell in which no ROS install was sourced.
    environment.pop("AMENT_PREFIX_PATH", None)
    where = "from dpt_ros.ros.share import share_path; print(share_path('config/fastdds.xml'))"
    profile = run(sys.executable, "-c", where, env=environment, cwd=tmp_path).strip()
    assert Path(profile).samefile(prefix / "share/dpt_ros/config/fastdds.xml")
    where = "import dpt_ros.data; print(dpt_ros.data.FOLDER)"
    folder = Path(run(sys.executable, "-c", where, env=environment, cwd=tmp_path).strip())
    assert folder.is_relative_to(prefix)
    assert (folder / "dpt_hybrid_embedded.safetensors").stat().st_size < 8e6


def test_colcon_builds_a_workspace_that_finds_the_node(source):
    workspace = source.parents[1]
    colcon = Path(sys.executable).parent / "colcon"
    run(colcon, "build", cwd=workspace)
    shown = run(
        "bash",
        "-c",
        ". install/setup.bash && echo $AMENT_PREFIX_PATH && "
        "$AMENT_PREFIX_PATH/lib/dpt_ros/dpt_node --help",
        cwd=workspace,
        env={key: value for key, value in os.environ.items() if key != "AMENT_PREFIX_PATH"},
    )
    prefix = workspace / "install" / "dpt_ros"
    assert shown.splitlines()[0] == str(prefix)
    assert "dpt_node --ros-args" in shown
    for name in SHARED_FILES:
        assert (prefix / name).is_file(), name
    for program in PROGRAMS:
        assert (prefix / "lib" / "dpt_ros" / program).is_file(), program


def test_the_lower_floors_import_without_ros():
    code = (
        "import sys\n"
        "for name in ('rclpy', 'sensor_msgs', 'std_msgs', 'rosbags', 'launch'):\n"
        "    sys.modules[name] = None\n"
        "import dpt_ros.engine.pipeline, dpt_ros.engine.inference.network\n"
        "import dpt_ros.model, dpt_ros.world, dpt_ros.metrics.depth\n"
        "from dpt_ros.engine import predict_image\n"
        "print(dpt_ros.model.list_models()[0])\n"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "dpt_hybrid_embedded"


def test_every_program_of_setup_py_is_tested_here():
    text = (ROOT / "setup.py").read_text()
    assert all(f'"{program}":' in text for program in PROGRAMS)
    assert text.count('": "dpt_ros.') == len(PROGRAMS)


def test_the_manifest_is_one_that_colcon_and_ros_accept():
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    assert root.get("format") == "3"
    assert root.findtext("export/build_type") == "ament_python"
    assert "@" in root.find("maintainer").get("email")
