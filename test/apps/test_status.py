# SPDX-License-Identifier: Apache-2.0
"""dpt_status: real nodes seen by it as by a user, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from helpers.ros_processes import Domain, Process, ros_domain

from dpt_ros.apps.status.table import Status, in_namespace, of_dpt, table

PROGRAM = ("-m", "dpt_ros.apps.status")


@pytest.fixture(scope="module")
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        yield domain


def status(domain: Domain, *words: str) -> tuple[int, str]:
    process = domain.start(*PROGRAM, *words)
    return process.wait(), process.output


@pytest.fixture(scope="module")
def node(domain: Domain) -> Process:
    return domain.start_dpt("-r", "__ns:=/robot", cameras="[front, rear]")


def test_a_running_node_is_shown_with_its_warning(domain: Domain, node: Process) -> None:
    code, said = status(domain, "--once", "--timeout", "60")
    assert code == 1, said  # random weights are a warning
    first = said.splitlines()[0]
    assert first.startswith("WARN   robot/dpt: networks  Weights are random")
    assert "\x1b" not in said  # colours are for terminals
    rows = {line.rstrip() for line in said.splitlines()}
    assert "depth network  dpt_hybrid_embedded" in rows
    (columns,) = (line.split() for line in rows if line.split()[:1] == ["front"])
    assert columns == ["front", "rear"]


def test_json_carries_the_same_as_plain_values(domain: Domain, node: Process) -> None:
    code, said = status(domain, "--once", "--json", "--namespace", "/robot")
    assert code == 1, said
    report = json.loads(said)
    assert report["level"] == "WARN"
    names = [one["name"] for one in report["status"]]
    assert names == ["robot/dpt: networks", "robot/dpt: front", "robot/dpt: rear"]
    assert report["status"][1]["values"]["topic"] == "/robot/front/image"


def test_a_namespace_without_a_node_is_answered_with_what_is_there(
    domain: Domain, node: Process
) -> None:
    code, said = status(domain, "--once", "--namespace", "/other", "--timeout", "8")
    assert code == 3
    assert "No dpt_ros node in or below /other reported on /diagnostics within 8 s" in said
    assert f"ROS_DOMAIN_ID {domain.id}" in said
    assert "robot/dpt: networks" in said


def test_a_live_table_ends_on_ctrl_c(domain: Domain, node: Process) -> None:
    process = domain.start(*PROGRAM)
    process.wait_for("input rate (Hz)")
    code, seconds = process.end()
    assert (code, "Traceback" in process.output) == (0, False)
    assert seconds < 5


def test_the_exit_code_tells_an_error(domain: Domain) -> None:
    with ros_domain() as other:
        dpt = other.start_dpt(depth_weights="nowhere.pt")
        code, said = status(other, "--once", "--timeout", "60")
        deadline = 20
        while code == 0 and deadline:  # still unconfigured
            code, said = status(other, "--once", "--timeout", "60")
            deadline -= 1
        assert code == 2, said + dpt.output
        assert said.startswith("ERROR  dpt: networks")
        assert "nowhere.pt" in said


def test_without_any_node_it_says_so_and_what_to_do() -> None:
    with ros_domain() as empty:
        empty.node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        code, said = status(empty, "--once", "--timeout", "2")
    assert code == 3
    assert "No dpt_ros node reported on /diagnostics within 2 s" in said
    assert "Start one with dpt_node" in said


def test_other_programs_are_shown_on_demand_only() -> None:
    with ros_domain() as other:
        message = DiagnosticArray(
            status=[
                DiagnosticStatus(
                    level=b"\x02",
                    name="motor: left",
                    message="hot",
                    values=[KeyValue(key="temperature", value="90")],
                )
            ]
        )
        publisher = other.node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        other.node.create_timer(0.2, lambda: publisher.publish(message))
        for words, code, text in (
            (("--timeout", "8"), 3, "--all shows them"),
            (("--timeout", "60", "--all"), 2, "ERROR  motor"),  # ends with the first message
        ):
            process = other.start(*PROGRAM, "--once", *words)
            other.spin_until(lambda process=process: not process.running)
            assert process.wait() == code, process.output
            assert text in process.output


def test_wrong_arguments_do_not_look_like_an_error_of_the_node(domain: Domain) -> None:
    assert status(domain, "--timeout", "0")[0] == 3
    assert status(domain, "--onec")[0] == 3
    assert status(domain, "--once", "--ros-args", "-r", "nonsense")[0] == 3


def _of(name: str, level: int = 0, **values: str) -> Status:
    return Status(name, level, "Running.", values)


def test_the_table_puts_cameras_side_by_side_and_below_each_other_where_the_width_ends() -> None:
    statuses = [_of("dpt: networks", state="active"), _of("dpt: a", 1, rate="10.0", drops="3")]
    statuses.append(_of("dpt: b", 2, rate="9.5"))
    wide = table(statuses, color=False, width=80)
    assert wide.splitlines()[-3:] == ["       a     b", "rate   10.0  9.5", "drops  3     -"]
    narrow = table(statuses, color=False, width=14)
    assert narrow.splitlines()[-3:] == ["       b", "rate   9.5", "drops  -"]
    colored = table(statuses, color=True, width=80).splitlines()
    assert colored[0].startswith("\x1b[1;32mOK")
    assert colored[1].startswith("\x1b[1;33mWARN")
    assert colored[2].startswith("\x1b[1;31mERROR")


def test_a_node_of_ours_is_told_by_its_networks() -> None:
    assert of_dpt([_of("ns/dpt: networks", state="active"), _of("ns/dpt: image")])
    assert not of_dpt([_of("motor: networks"), _of("networks", state="x")])
    assert in_namespace(_of("robot/dpt: image"), "/robot/")
    assert not in_namespace(_of("robot2/dpt: image"), "/robot")
    assert in_namespace(_of("dpt: image"), "")
