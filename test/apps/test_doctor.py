# SPDX-License-Identifier: Apache-2.0
"""dpt_doctor as a command on broken machines: each fault is named, with its cure."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from helpers.places import ROOT
from helpers.ros_processes import RELIABLE, Domain, ros_domain
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image

from dpt_ros.apps.doctor import finding as findings
from dpt_ros.apps.doctor import middleware, system
from dpt_ros.apps.doctor.finding import Finding, Machine, isolated
from dpt_ros.ros.share import profile_variables

CLEARED = (
    "CC",
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "FASTDDS_BUILTIN_TRANSPORTS",
    "RMW_IMPLEMENTATION",
    "ROS_DISTRO",
)
Report = dict[str, dict[str, str]]


def run(*words: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """dpt_doctor with a changed environment; what PYTHONPATH names comes before the checkout."""
    given = {name: value for name, value in os.environ.items() if name not in CLEARED} | env
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(ROOT)]))
    command = [*prefix, sys.executable, "-m", "dpt_ros.apps.doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, env=given, timeout=300)


def report(*words: str, code: int, **options: str) -> Report:
    """Its findings by name; of several with one name the worst."""
    done = run(*words, "--json", **options)
    assert done.returncode == code, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["level"] == findings.LEVELS[code]
    rows = sorted(content["findings"], key=lambda row: findings.LEVELS.index(row["level"]))
    return {row["name"]: row for row in rows}


def module(folder: Path, name: str, text: str) -> None:
    """A module that is found before the real one."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)


def without(folder: Path, *names: str) -> str:
    """A PYTHONPATH on which some packages are not installed."""
    code = """import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Missing())
"""
    module(folder, "sitecustomize", code.replace("NAMES", repr(names)))
    return str(folder)


# The five broken machines.


def test_a_machine_without_a_compiler_is_told_what_triton_misses(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    row = report("machine", code=1, PATH=str(tmp_path))["C compiler"]
    assert "no gcc or clang on PATH: Triton cannot compile its launcher" in row["message"]
    assert "plain torch, which is slower" in row["message"]
    assert row["cure"].startswith("apt install gcc python3-dev")
    program = tmp_path / "gcc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert system._compiler(Machine({"PATH": str(tmp_path)})).message == str(program)


def namespace_with_small_shared_memory() -> tuple[str, ...]:
    """A command that starts another one with a /dev/shm of 16 MB; skips where that is refused."""
    mount = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
    for options in ("-m", "-rm"):
        command = ("unshare", options, "sh", "-c", mount, "sh")
        if shutil.which("unshare") and not subprocess.run([*command, "true"]).returncode:
            return command
    pytest.skip("mount namespaces are not permitted here")


def test_a_small_shared_memory_is_an_error_with_the_options_of_docker() -> None:
    row = report("machine", code=2, prefix=namespace_with_small_shared_memory())["/dev/shm"]
    assert row["level"] == "error"
    assert "16.8 MB of 16.8 MB free: too little for the 67.1 MB segment" in row["message"]
    assert "images above 0.5 MB get lost" in row["message"]
    assert "--shm-size=256m or --ipc=host" in row["cure"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a machine with a torchvision that does not fit, two OpenCVs, a PyAV that crashes."""
    folder = tmp_path_factory.mktemp("packages")
    module(folder, "torchvision", 'raise RuntimeError("operator torchvision::nms does not exist")')
    module(folder, "av", "import os\nprint('Illegal instruction', flush=True)\nos.abort()")
    for name in ("opencv_python", "opencv_python_headless"):
        info = folder / f"{name}-4.9.0.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 4.9.0\n"
        (info / "METADATA").write_text(text)
    return report("packages", "networks", code=2, PYTHONPATH=str(folder))


def test_a_torchvision_that_does_not_fit_is_named_with_both_versions(packages: Report) -> None:
    import torch

    row = packages["torchvision"]
    assert row["level"] == "error"
    assert "operator torchvision::nms does not exist" in row["message"]
    assert f"torch {torch.__version__} and torchvision" in row["message"]
    assert "do not fit together" in row["message"]
    pair = (
        f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]} torchvision"
    )
    assert "Install both from one source" in row["cure"]
    assert pair in row["cure"]
    assert packages["torch"]["level"] == "OK"
    assert packages["timm"]["message"] == "It needs torchvision."


@pytest.mark.parametrize(("sourced", "installer"), [("", "pip"), ("jazzy", "apt")])
def test_missing_messages_are_named_with_their_packages(
    tmp_path: Path, sourced: str, installer: str
) -> None:
    pythonpath = without(tmp_path, "nav_msgs", "std_srvs", "tf2_ros")
    done = report("ros", code=2, PYTHONPATH=pythonpath, ROS_DISTRO=sourced)
    row = done["messages"]
    assert row["level"] == "error"
    assert row["message"] == "nav_msgs, std_srvs missing: dpt_node does not start."
    assert re.fullmatch(
        rf"{installer} install ros-[a-z]+-nav-msgs ros-[a-z]+-std-srvs\.", row["cure"]
    )
    assert done["optional"]["level"] == "OK"
    assert "tf2_ros (pose_source: tf" in done["optional"]["message"]


def test_without_a_camera_it_says_what_to_start() -> None:
    with ros_domain() as domain:
        rows = report("running", code=1, **domain.env)
    row = rows["camera"]
    assert row["level"] == "warning"
    assert f"No image topic is published (ROS_DOMAIN_ID {domain.id}" in row["message"]
    assert "Start the camera's driver, or dpt_camera_sim" in row["cure"]
    assert rows["dpt_node"]["message"] == "none reports on /diagnostics"


# More faults.


def test_a_package_that_ends_the_process_is_named_and_the_checks_go_on(packages: Report) -> None:
    row = packages["av"]
    assert row["level"] == "error"
    assert row["message"] == "It ends the process with SIGABRT. Illegal instruction"
    assert "dpt_hybrid_embedded" in packages


def test_two_opencvs_are_a_warning(packages: Report) -> None:
    row = packages["OpenCV"]
    assert row["level"] == "warning"
    assert "opencv-python 4.9.0 and opencv-python-headless 4.9.0 are installed" in row["message"]
    assert row["cure"].startswith("pip uninstall opencv-python opencv-python-headless")


def test_a_check_that_does_not_return_is_ended() -> None:
    def blocked(machine: Machine) -> Iterator[Finding | str]:
        yield Finding("first", "done")
        yield "driver"
        time.sleep(60)

    begin = time.monotonic()
    first, second = isolated(blocked, Machine({}), seconds=0.5)
    assert first == Finding("first", "done")
    assert (second.name, second.level) == ("driver", findings.ERROR)
    assert "does not answer within 0.5 s" in second.message
    assert time.monotonic() - begin < 20


def test_without_torch_the_rest_is_checked(tmp_path: Path) -> None:
    done = report("packages", code=2, PYTHONPATH=without(tmp_path, "torch", "numpy", "av"))
    for name in ("torch", "numpy"):
        assert done[name]["level"] == "error"
        assert "It is not installed for" in done[name]["message"]
        assert f"pip install {'torch' if name == 'torch' else ''}" in done[name]["cure"]
    assert done["safetensors"]["level"] == "OK"
    assert done["av"]["message"] == "not installed; only needed for image_transport: video"


def test_without_ros_it_says_what_works_and_how_to_install_it(tmp_path: Path) -> None:
    pythonpath = without(tmp_path, "rclpy")
    row = report("ros", code=1, PYTHONPATH=pythonpath)["rclpy"]
    assert "dpt_node, dpt_bag and dpt_status do not work; networks, dpt_run" in row["message"]
    assert "pip install '.[ros]'" in row["cure"]
    row = report("ros", code=2, PYTHONPATH=pythonpath, ROS_DISTRO="jazzy")["rclpy"]
    assert "ROS_DISTRO is jazzy, but this Python has no rclpy" in row["message"]
    assert "--system-site-packages" in row["cure"]


def test_two_distributions_in_one_terminal_are_an_error() -> None:
    row = report("ros", code=2, ROS_DISTRO="foxy")["rclpy"]
    assert "ROS_DISTRO is foxy: two distributions in one process do not work" in row["message"]


def test_a_middleware_and_a_domain_that_do_not_exist_are_errors() -> None:
    done = report("ros", code=2, RMW_IMPLEMENTATION="rmw_none_cpp", ROS_DOMAIN_ID="robot")
    row = done["middleware"]
    assert "RMW_IMPLEMENTATION is rmw_none_cpp, which cannot be loaded" in row["message"]
    assert "apt install ros-$ROS_DISTRO-rmw-none-cpp" in row["cure"]
    assert "ROS_DOMAIN_ID is 'robot': no node can start" in done["domain"]["message"]


PROFILE = (ROOT / "config" / "fastdds.xml").read_text()


@pytest.mark.parametrize(
    ("content", "level", "message"),
    [
        (None, "error", "which cannot be read (No such file or directory)"),
        ("<dds><profiles>", "error", "which is no XML (no element found"),
        ("<dds/>", "error", "which holds no profiles"),
        (PROFILE.replace("67108864", "262144"), "warning", "segments of 256 KiB: large images"),
        (PROFILE, "OK", "profile.xml"),
    ],
)
def test_a_profile_that_does_not_help_is_named(
    tmp_path: Path, content: str | None, level: str, message: str
) -> None:
    path = tmp_path / "profile.xml"
    if content is not None:
        path.write_text(content)
    variable = profile_variables()[0]
    code = findings.LEVELS.index(level)
    row = report("ros", code=code, **{variable: str(path), "ROS_DISTRO": ""})["profile"]
    assert row["level"] == level
    assert message in row["message"]
    assert bool(row["cure"]) == (level != "OK")


def test_a_profile_in_the_variable_of_another_distribution_is_a_warning(tmp_path: Path) -> None:
    read, other = profile_variables()
    row = report("ros", code=1, **{other: str(ROOT / "config" / "fastdds.xml")})["profile"]
    assert f"{other} is set, which this distribution does not read" in row["message"]
    assert row["cure"].startswith(f"export {read}=")


def test_segments_without_an_owner_are_counted(tmp_path: Path) -> None:
    for name in ("fastdds_dead", "fastdds_alive", "fastrtps_dead"):
        (tmp_path / name).write_bytes(bytes(3_000_000))
        (tmp_path / f"{name}_el").touch()
    with (tmp_path / "fastdds_alive_el").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert system._left_over(tmp_path) == (2, 6_000_000)
        assert "2 segments left over by Fast DDS take 6.0 MB" in system._shared_memory(
            Machine({}, shm=tmp_path)
        ).message  # fmt: skip


def test_a_clock_before_the_installation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system._clock().level == findings.OK
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert system._clock().level == findings.ERROR


def test_a_downloaded_network_with_another_hash_is_found(tmp_path: Path) -> None:
    for name in ("dpt_hybrid_nyu-2ce69ec7.pt", "dpt_hybrid_kitti-cb926ef4.pt.part"):
        path = tmp_path / name.partition("-")[0] / name
        path.parent.mkdir()
        path.write_bytes(b"weights")
    quick = report("networks", code=1, DPT_ROS_CACHE=str(tmp_path))
    assert "sha256 not compared (--hash does)" in quick["dpt_hybrid_nyu"]["message"]
    assert "of an unfinished download" in quick["dpt_hybrid_kitti"]["message"]
    row = report("networks", "--hash", code=2, DPT_ROS_CACHE=str(tmp_path))["dpt_hybrid_nyu"]
    assert "but 2ce69ec7 is published" in row["message"]
    assert row["cure"].startswith(f"rm {tmp_path}")


# Running nodes.


@pytest.fixture
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        yield domain


def statuses(domain: Domain, level: bytes, message: str) -> Iterator[None]:
    """The report of a dpt_ros node that is the test's own."""
    values = [KeyValue(key="state", value="active")]
    status = DiagnosticStatus(name="tester: networks", level=level, message=message, values=values)
    publisher = domain.node.create_publisher(DiagnosticArray, "/diagnostics", 1)
    while True:
        publisher.publish(DiagnosticArray(status=[status]))
        yield


def test_a_camera_and_a_node_that_run_are_shown_as_they_are(domain: Domain) -> None:
    used = system._left_over(Path("/dev/shm"))[0]
    size = ("-p", "width:=160", "-p", "height:=120", "-p", "rate:=5.0")
    domain.start("-m", "dpt_ros.ros.command_line", "dpt_camera_sim", "--ros-args", *size)
    images = domain.listen(Image, "/image")
    domain.spin_until(lambda: images)
    process = domain.start("-m", "dpt_ros.apps.doctor", "running")
    reports = statuses(domain, b"\x01", "Weights are random.")
    domain.spin_until(lambda: next(reports) or not process.running)
    text = " ".join(process.output.split())
    assert process.wait() == 1, text
    camera = "/image: sensor_msgs/msg/Image rgb8 160x120, /camera_info 160x120"
    assert f"OK camera {camera}" in text
    assert "OK camera /truth/labels: sensor_msgs/msg/Image mono8 160x120; no /truth" in text
    assert "warning dpt_node /tester: networks: Weights are random. cure: dpt_status" in text
    assert system._left_over(Path("/dev/shm"))[0] <= used  # theirs have an owner


def test_a_node_that_waits_for_a_clock_is_an_error(domain: Domain) -> None:
    domain.node.set_parameters([Parameter("use_sim_time", value=True)])
    process = domain.start("-m", "dpt_ros.apps.doctor", "running")
    reports = statuses(domain, b"\x00", "Running.")
    domain.spin_until(lambda: next(reports) or not process.running)
    text = " ".join(process.output.split())
    assert process.wait() == 2, text
    assert "/tester has use_sim_time, but /clock has no publisher" in text
    assert "ros2 bag play --clock" in text


def test_cameras_that_the_node_cannot_use_are_named_with_the_reason(domain: Domain) -> None:
    node = domain.node
    pixel = {"height": 1, "width": 1, "step": 3, "data": [0, 0, 0]}
    messages = {
        "/odd/image": Image(encoding="yuv999", **pixel),
        "/bare/image": Image(encoding="rgb8", **pixel),
    }
    info = {"/bare/camera_info": CameraInfo(height=1, width=1)}
    made = {name: node.create_publisher(type(m), name, RELIABLE) for name, m in messages.items()}
    node.create_publisher(Image, "/silent/image", RELIABLE)

    def looked_at() -> str:
        process = domain.start("-m", "dpt_ros.apps.doctor", "running")
        domain.spin_until(
            lambda: [made[name].publish(messages[name]) for name in made] and not process.running
        )
        assert process.wait() == 2
        return " ".join(process.output.split())

    text = looked_at()
    assert "/odd/image: sensor_msgs/msg/Image yuv999 1x1: dpt_node does not know this" in text
    assert "/bare/image: sensor_msgs/msg/Image rgb8 1x1; no /bare/camera_info: no points" in text
    assert "/silent/image has a publisher, but no sensor_msgs/msg/Image came within 3 s" in text
    messages |= info
    made |= {name: node.create_publisher(CameraInfo, name, RELIABLE) for name in info}
    assert "/bare/camera_info is not calibrated: K is 0" in looked_at()


# The report.


def test_the_text_has_a_line_per_finding_and_a_result(tmp_path: Path) -> None:
    done = run("networks", DPT_ROS_CACHE=str(tmp_path), COLUMNS="70")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"dpt_doctor \d+\.\d+\.\d+, 20\d\d-.*", lines[0])
    assert lines[1:3] == ["", "networks"]
    assert lines[3].startswith("OK       dpt_hybrid_embedded  comes with dpt_ros")
    assert lines[-1] == "result: all OK"
    path = tmp_path / "a" / "b"
    assert str(path) in run("networks", DPT_ROS_CACHE=str(path)).stdout  # needs not exist


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("machines",), "unknown GROUP machines; known are machine, packages, ros"),
        (("--prove", "dpt_hybird_nyu"), "did you mean dpt_hybrid_nyu"),
        (("--picture", "x.jpg"), "--picture needs --prove NETWORK"),
        (("--prove", "dpt_hybrid_nyu", "--backend", "tensorrt"), "invalid choice"),
    ],
)
def test_wrong_arguments_do_not_look_like_a_finding(words: tuple[str, ...], message: str) -> None:
    done = run(*words)
    assert done.returncode == 3
    assert message in done.stderr


def test_every_package_of_messages_that_is_imported_is_known_to_it() -> None:
    imported = set()
    for path in (ROOT / "dpt_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    ros = {name for name in imported if name.endswith(("_msgs", "_srvs", "_interfaces"))}
    ros |= imported & {"tf2_ros"}
    assert len(ros) > 8
    assert ros <= {*middleware.MESSAGES, *middleware.OPTIONAL}
