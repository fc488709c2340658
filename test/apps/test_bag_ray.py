# SPDX-License-Identifier: Apache-2.0
"""dpt_bag --ray: bags on the processes of a local cluster, one of which is killed."""

import os
import signal
import threading
from pathlib import Path
from time import monotonic, sleep

import pytest
from helpers import bags
from sensor_msgs.msg import Image

from dpt_ros.apps.bag import main
from dpt_ros.bag.job import Job
from dpt_ros.bag.run import convert
from dpt_ros.engine.parameter_file import read_settings

ray = pytest.importorskip("ray")

GIVEN = ("input_width:=32", "input_height:=32")
ARGUMENTS = ["--file-frames", "4", *(part for one in GIVEN for part in ("-p", one))]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_process_costs_no_bag_and_a_bad_bag_no_other(tmp_path: Path, capfd) -> None:
    frames = {"short": 2, "long": 24}
    for name, count in frames.items():
        bags.write(tmp_path / "in" / name, bags.records(count))
    (tmp_path / "in" / "bad").mkdir()
    (tmp_path / "in" / "bad" / "bad.mcap").write_bytes(b"no bag at all")
    out = tmp_path / "out" / "long"
    killed: list[int] = []

    def kill() -> None:
        """The process that writes the long bag, in the midst of it."""
        deadline = monotonic() + 60
        while len(list(out.glob("*.mcap"))) < 2 and monotonic() < deadline:
            sleep(0.01)
        killed.append(int((out / ".dpt_bag" / "lock").read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    args = [str(tmp_path / "in"), "--out-dir", str(tmp_path / "out"), "--ray", "--cpus", "1"]
    assert main([*args, *ARGUMENTS]) == 1
    killer.join()
    assert killed
    assert killed[0] != os.getpid()
    output = capfd.readouterr()
    rows = {row.split()[0]: row.split() for row in output.out.splitlines() if row}
    assert rows["bad"][-1] == "failed"
    assert "Nothing of" in output.err
    for name, count in frames.items():
        stamps = bags.stamps(tmp_path / "out" / name, "/depth/image", Image)
        assert stamps == [bags.FIRST + k * bags.STEP for k in range(count)]
        assert rows[name][1] == str(count)
        assert rows[name][-1] == "done"
    settings, own = read_settings(None, GIVEN)
    alone = tmp_path / "alone" / "long"
    convert(Job(tmp_path / "in" / "long", alone, settings, own, file_frames=4))
    assert bags.contents(alone) == bags.contents(out)


def test_a_cluster_that_is_too_small_is_named(tmp_path: Path, capfd) -> None:
    bags.write(tmp_path / "in", bags.records(1))
    args = [str(tmp_path / "in"), "--out-dir", str(tmp_path / "out"), "--ray", "--cpus", "64"]
    assert main([*args, *ARGUMENTS]) == 2
    assert "needs 64 CPU, but the Ray cluster has 2" in capfd.readouterr().err
