# SPDX-License-Identifier: Apache-2.0
"""dpt_bag, on small bags that are written here: what comes out, and what interrupts it."""

import multiprocessing
import random
import shutil
import signal
import threading
from dataclasses import replace
from itertools import islice
from time import monotonic, sleep

import numpy as np
import pytest
import torch
from helpers import bags
from helpers.bags import Interrupted, expected, goes_on_to_the_same, interrupt, job
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import String

from dpt_ros.bag import ALL_OUTPUTS
from dpt_ros.bag import run as bag_run
from dpt_ros.bag.job import Job, made_from
from dpt_ros.bag.reader import BagError, BagReader
from dpt_ros.bag.run import convert
from dpt_ros.bag.topics import ChosenTopics
from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.pipeline import make_runner
from dpt_ros.engine.provenance import networks_for
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.ros.messages.image import image_pixels

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3


@pytest.mark.parametrize("plugin", [MCAP, SQLITE])
def test_every_frame_comes_out_in_order_with_its_stamp_and_time(tmp_path, plugin) -> None:
    source = bags.write(tmp_path / "in", bags.records(9), plugin)
    storage = "mcap" if plugin == MCAP else "sqlite3"
    result = convert(job(source, tmp_path / "out", storage=storage, file_frames=4))
    assert (result.frames, result.computed, result.outcome) == (9, 9, "done")
    for topic in ("depth/image", "depth/confidence", "semantic/labels", "semantic/confidence"):
        assert bags.stamps(tmp_path / "out", f"/{topic}", Image) == expected(9)
    infos = bags.messages(tmp_path / "out", "/depth/camera_info", CameraInfo)
    assert [time for time, _ in infos] == [s + bags.STEP // 2 for s in expected(9)]
    assert {(i.width, i.height, i.k[0], i.header.frame_id) for _, i in infos} == {
        (bags.WIDTH, bags.HEIGHT, 55.0, "camera")
    }
    assert len(bags.messages(tmp_path / "out", "/semantic/label_info", String)) == 1
    assert len(list((tmp_path / "out").iterdir())) == 4  # three files and the metadata


def test_a_frame_comes_out_as_the_runner_gives_it(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(3))
    made = job(source, tmp_path / "out", "smoothing.strength:=0.0", outputs=ALL_OUTPUTS)
    convert(made)
    networks = networks_for(made.settings)
    runner = make_runner(networks, made.settings, print)
    beside = bags.messages(source, "/image", Image)
    depths = bags.messages(tmp_path / "out", "/depth/image", Image)
    for (_, image), (_, depth) in zip(beside, depths, strict=True):
        frame = Frame(image_pixels(image), "rgb8", 0, camera=bags.CAMERA)
        (prediction,) = runner.start([frame], OutputRequest(), made.settings).wait()
        np.testing.assert_array_equal(image_pixels(depth), prediction.depth)
    clouds = bags.messages(tmp_path / "out", "/depth/points", PointCloud2)
    assert [(c.width, c.height) for _, c in clouds] == [(bags.WIDTH, bags.HEIGHT)] * 3


def test_the_same_bag_gives_the_same_bytes_as_raw_images_or_packed(tmp_path) -> None:
    found = []
    for name, packed in (
        ("plain", None),
        ("messages", CompressionMode.MESSAGE),
        ("files", CompressionMode.FILE),
        ("chunks", CompressionMode.STORAGE),
    ):
        source = bags.write(tmp_path / name, bags.records(4), packed=packed)
        convert(job(source, tmp_path / f"of_{name}" / "out"))
        files = bags.contents(tmp_path / f"of_{name}" / "out")
        found.append({n: c for n, c in files.items() if n != "metadata.yaml"})
    assert found[0]
    assert found.count(found[0]) == 4


def test_compressed_images_are_taken(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(4, jpeg=True), SQLITE)
    convert(job(source, tmp_path / "out"))
    assert bags.stamps(tmp_path / "out", "/depth/image", Image) == expected(4)


def test_two_cameras_come_out_under_their_names(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(3, ("front", "rear")))
    both = ChosenTopics(images=("/front/image", "/rear/image"))
    convert(job(source, tmp_path / "out", chosen=both))
    for name in ("front", "rear"):
        assert bags.stamps(tmp_path / "out", f"/{name}/depth/image", Image) == expected(3)
    # Each from its own images: the other camera alone gives the same.
    rear = ChosenTopics(images=("/rear/image",))
    convert(job(source, tmp_path / "alone", "cameras:=[rear]", chosen=rear))
    pairs = zip(
        bags.messages(tmp_path / "out", "/rear/depth/image", Image),
        bags.messages(tmp_path / "alone", "/rear/depth/image", Image),
        strict=True,
    )
    for (_, together), (_, by_itself) in pairs:
        np.testing.assert_array_equal(image_pixels(together), image_pixels(by_itself))


def test_the_input_is_copied_when_asked_for(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(3, scans=True))
    convert(job(source, tmp_path / "out", with_input=True))
    for topic in ("image", "camera_info", "odom", "anchors/scan"):
        kind = bags.KINDS[topic]
        before = bags.messages(source, f"/{topic}", kind)
        assert bags.messages(tmp_path / "out", f"/{topic}", kind) == before
        assert len(before) == 3


@pytest.mark.parametrize(
    ("at", "storage"), [(1, "mcap"), (5, "sqlite3"), (6, "mcap"), (9, "mcap")]
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, at, storage) -> None:
    """With a past in everything that has one: filter, flow, odometry, anchors."""
    source = bags.write(tmp_path / "in", bags.records(10, ("front", "rear"), scans=True))
    chosen = ChosenTopics(images=("/front/image", "/rear/image"), anchors=("/anchors/scan",))
    made = job(
        source,
        tmp_path / "a" / "out",
        chosen=chosen,
        file_frames=4,
        with_input=True,
        storage=storage,
    )
    convert(made)
    again = goes_on_to_the_same(made, tmp_path / "b" / "out", 2 * at)
    assert again.computed == 20 - (2 * at - 1) // 4 * 4
    assert "finished" in (made.out / "metadata.yaml").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("strength", [0.5, 0.0])
def test_on_a_gpu_too_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, strength) -> None:
    source = bags.write(tmp_path / "in", bags.records(20, ("front", "rear")))
    given = ("device:=cuda", f"smoothing.strength:={strength}", "scale.source:=none")
    chosen = ChosenTopics(images=("/front/image", "/rear/image"))
    made = job(source, tmp_path / "a" / "out", *given, chosen=chosen, file_frames=8)
    convert(made)
    goes_on_to_the_same(made, tmp_path / "b" / "out", 22)


def test_a_relative_network_keeps_its_colours_over_an_interruption(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(6))
    given = ("scale.source:=none", "smoothing.strength:=0.0")
    made = job(source, tmp_path / "a" / "out", *given, outputs=("depth/color",), file_frames=2)
    convert(made)
    goes_on_to_the_same(made, tmp_path / "b" / "out", 4)
    assert bags.stamps(made.out, "/depth/color", Image) == expected(6)


@pytest.fixture(scope="module")
def processes():
    """Processes that have imported everything when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dpt_ros.bag.run"])
    return context


def in_one_thread(made: Job) -> None:
    torch.set_num_threads(1)
    convert(made)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, processes):
    source = bags.write(tmp_path / "in", bags.records(30))
    made = job(source, tmp_path / "a" / "out", file_frames=3)
    whole = processes.Process(target=in_one_thread, args=(made,))
    whole.start()
    again = replace(made, out=tmp_path / "b" / "out")
    chance = random.Random(3)
    kills = 0
    for files in (0, 3, 6):
        run = processes.Process(target=in_one_thread, args=(again,))
        run.start()
        deadline = monotonic() + 60
        while run.is_alive() and len(list(again.out.glob("*.mcap"))) < files:
            assert monotonic() < deadline
            sleep(0.01)
        sleep(chance.uniform(0, 0.3))
        run.kill()
        run.join()
        kills += run.exitcode == -signal.SIGKILL
    whole.join()
    assert kills == 3
    last = processes.Process(target=in_one_thread, args=(again,))
    last.start()
    last.join()
    assert (whole.exitcode, last.exitcode) == (0, 0)
    assert bags.contents(again.out) == bags.contents(made.out)
    assert bags.stamps(again.out, "/depth/image", Image) == expected(30)


def test_what_is_finished_is_a_bag_before_all_is(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(8))
    with pytest.raises(Interrupted):
        convert(job(source, tmp_path / "out", file_frames=3), progress=interrupt(7))
    assert bags.stamps(tmp_path / "out", "/depth/image", Image) == expected(6)


def test_a_finished_bag_is_left_alone(tmp_path) -> None:
    made = job(bags.write(tmp_path / "in", bags.records(3)), tmp_path / "out")
    convert(made)
    before = {file: file.stat().st_mtime_ns for file in made.out.iterdir()}
    result = convert(made)
    assert (result.outcome, result.frames, result.computed) == ("done before", 3, 0)
    assert {file: file.stat().st_mtime_ns for file in made.out.iterdir()} == before
    assert convert(replace(made, overwrite=True)).computed == 3


@pytest.mark.parametrize("finished", [True, False])
def test_a_bag_made_with_other_settings_is_refused(tmp_path, finished) -> None:
    source = bags.write(tmp_path / "in", bags.records(6))
    made = job(source, tmp_path / "out", file_frames=2)
    if finished:
        convert(made)
    else:
        with pytest.raises(Interrupted):
            convert(made, progress=interrupt(3))
    other = job(source, tmp_path / "out", "smoothing.strength:=0.2", file_frames=2)
    with pytest.raises(BagError, match=r"\(smoothing\.strength: 0\.5, now 0\.2\).*--overwrite"):
        convert(other)
    assert convert(replace(other, overwrite=True)).computed == 6


def test_another_input_under_the_same_name_is_refused(tmp_path) -> None:
    made = job(bags.write(tmp_path / "in", bags.records(3)), tmp_path / "out")
    convert(made)
    shutil.rmtree(made.source)
    bags.write(made.source, bags.records(4))
    with pytest.raises(BagError, match="input"):
        convert(made)


def test_weights_in_a_folder_are_part_of_what_a_bag_is_made_from(tmp_path) -> None:
    made = job(bags.write(tmp_path / "in", bags.records(1)), tmp_path / "out")
    networks = networks_for(made.settings)
    weights = tmp_path / "weights"
    weights.mkdir()
    other = replace(made, settings=replace(made.settings, depth_weights=str(weights)))
    found = []
    for content in (b"one", b"two"):
        (weights / "model.safetensors").write_bytes(content)
        found.append(made_from(other, BagReader(made.source), [], networks)["weights"])
    assert [name for name, *_ in found[0]] == ["model.safetensors"]
    assert found[0] != found[1]
    assert made_from(made, BagReader(made.source), [], networks)["weights"] == []


def test_a_run_begun_on_another_machine_is_begun_anew(tmp_path, monkeypatch) -> None:
    made = job(bags.write(tmp_path / "in", bags.records(6)), tmp_path / "out", file_frames=2)
    monkeypatch.setattr(bag_run, "machine", lambda networks: {"torch": "1.0"})
    with pytest.raises(Interrupted):
        convert(made, progress=interrupt(3))
    monkeypatch.undo()
    said: list[str] = []
    assert convert(made, said.append).computed == 6
    assert any("another machine (torch: '1.0'" in sentence for sentence in said)


def test_what_dpt_bag_did_not_make_is_never_overwritten(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(2))
    mine = bags.write(tmp_path / "mine", bags.records(1))
    before = bags.contents(mine)
    for out in (mine, source):
        with pytest.raises(BagError, match="choose another name"):
            convert(job(source, out, overwrite=True))
    assert bags.contents(mine) == before


def test_two_runs_do_not_write_the_same_bag(tmp_path) -> None:
    made = job(bags.write(tmp_path / "in", bags.records(6)), tmp_path / "out")
    begun, go_on = threading.Event(), threading.Event()

    def wait(done: int, total: int | None) -> None:
        begun.set()
        go_on.wait(30)

    first = threading.Thread(target=convert, args=(made,), kwargs={"progress": wait})
    first.start()
    begun.wait(30)
    with pytest.raises(BagError, match="another dpt_bag"):
        convert(made)
    go_on.set()
    first.join()
    assert bags.stamps(made.out, "/depth/image", Image) == expected(6)


# Frames together


class Together(StreamRunner):
    """The GPU's runner on the CPU, which notes what went together."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.batches: list[list[str]] = []

    def start(self, frames, outputs, settings):
        self.batches.append([frame.source for frame in frames])
        return super().start(frames, outputs, settings)


@pytest.mark.parametrize(("strength", "together"), [(0.5, 2), (0.0, 4)])
def test_frames_go_together_over_cameras_and_without_a_past_over_time(
    tmp_path, monkeypatch, strength, together
) -> None:
    source = bags.write(tmp_path / "in", bags.records(6, ("front", "rear")))
    runners: list[Together] = []

    def make(networks, settings, say):
        runners.append(Together(networks, settings, Streams(), say))
        return runners[-1]

    monkeypatch.setattr(bag_run, "make_runner", make)
    given = (f"smoothing.strength:={strength}", "scale.source:=none")
    chosen = ChosenTopics(images=("/front/image", "/rear/image"))
    made = job(
        source, tmp_path / "a" / "out", *given, chosen=chosen, file_frames=6, outputs=ALL_OUTPUTS
    )
    convert(made)
    assert max(map(len, runners[0].batches)) == together
    if strength:
        assert all(len(set(batch)) == len(batch) for batch in runners[0].batches)
    assert bags.stamps(made.out, "/front/depth/inverse", Image) == expected(6)
    assert bags.stamps(made.out, "/rear/depth/inverse", Image) == expected(6)
    goes_on_to_the_same(made, tmp_path / "b" / "out", 8)


def test_memory_does_not_grow_with_the_bag(tmp_path) -> None:
    """What a run keeps of its past: bounded queues, so that reading waits for computing."""
    read = 0

    def counted(self, topics, messages=BagReader.messages):
        nonlocal read
        for message in messages(self, topics):
            read += 1
            yield message

    source = bags.write(tmp_path / "in", bags.records(60))
    ahead: list[int] = []

    def progress(done: int, total: int | None) -> None:
        ahead.append(read - 3 * done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BagReader, "messages", counted)
        convert(job(source, tmp_path / "out"), progress=progress)
    # Half a second of three topics at 10 Hz, what is decoded, what is on its way.
    assert max(ahead) <= 3 * (6 + 8 + 2 + 2)
    assert len(list(islice(BagReader(source).messages(["/image"]), 100))) == 60
