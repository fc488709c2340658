# SPDX-License-Identifier: Apache-2.0
"""The step as an ONNX file, in ONNX Runtime, against the GPU's runner on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.docs_code import run_example
from helpers.networks import export_embedded

from dpt_ros.engine.export.compare import compare_step, difference
from dpt_ros.engine.export.file import FIELDS, SPEC, ExportError, read_metadata
from dpt_ros.engine.export.frame import all_outputs
from dpt_ros.engine.export.session import StepSession
from dpt_ros.engine.export.step import StepModule
from dpt_ros.engine.frame import Frame, Kind, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.postprocess import torch_only
from dpt_ros.engine.runner.cameras import Cameras
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.step import NUMBERS, frame_numbers
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.scale.anchors import project_scan
from dpt_ros.engine.settings import Settings
from dpt_ros.world import Scanner, World

PERIOD = 33_333_333  # nanoseconds
SETTINGS = Settings(input_width=128, input_height=96, scale_camera_height=0.6)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return export_embedded(SETTINGS)


@pytest.fixture(scope="module")
def step_file(tmp_path_factory: pytest.TempPathFactory, networks: Networks) -> Path:
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    StepModule(networks, kind_of(networks), SETTINGS).write(path)
    return path


def kind_of(networks: Networks, width: int = 128) -> Kind:
    return Kind("rgb8", (96, width, 3), "uint8", all_outputs(networks, True))


def video(
    count: int, first: int = 0, seed: int = 0, width: int = 128, late: int = 0, seen: int = 0
) -> Iterator[Frame]:
    """Frames of a drive: scans in frames 4 to 9, odometry in all but every fifth."""
    world = World("room", seed, width, 96)
    scanner = Scanner(world)
    for k in range(count):
        view, scan = world.frame(seen + k), scanner.scan(seen + k)
        stamp = 10**9 + (first + k) * PERIOD + late
        anchors = project_scan(
            scan.ranges, scan.angle_min, scan.angle_increment, scan.range_min, scan.range_max,
            scan.camera_from_sensor, view.camera, stamp,
        )  # fmt: skip
        yield Frame(
            view.rgb, "rgb8", stamp, "eye", "", view.camera,
            odom_from_camera=None if k % 5 == 4 else view.odom_from_camera,
            anchors=anchors if 4 <= k < 10 else None,
        )  # fmt: skip


def scenes() -> Iterator[Frame]:
    """50 frames: after a gap of a second the drive goes on; another place; noise, for a cut."""
    yield from video(20)
    yield from video(12, 20, late=10**9, seen=20)
    yield from video(15, 32, seed=3, late=10**9)
    random = np.random.default_rng(0)
    for frame in video(3, 47, seed=3, late=10**9):
        pixels = random.integers(0, 255, frame.pixels.shape).astype(np.uint8)
        yield replace(frame, pixels=pixels, odom_from_camera=None)


class NotedSession(StepSession):
    """Keeps why the filter began anew."""

    def __call__(self, frames: Sequence[Frame]) -> list[Prediction]:
        found = super().__call__(frames)
        self.resets = getattr(self, "resets", set()) | {found[0].reset}
        return found


def test_a_video_comes_out_as_from_the_runner(step_file: Path, networks: Networks) -> None:
    session = NotedSession(step_file, threads=1)
    worst = compare_step(session, networks, SETTINGS, scenes())
    assert worst.pop("reset") == worst.pop("scale") == worst.pop("labels") == 0
    assert worst.pop("confidence") < 5e-3  # of the pixels, by one level
    assert set(worst) == {"depth", "deviation", "single depth", "single deviation"}
    assert max(worst.values()) < 1e-3
    assert worst["depth"] < 1e-4
    assert worst["deviation"] < 1e-4
    assert session.resets == {"first frame", "gap", "scene cut", ""}


def test_after_a_change_of_size_the_scale_goes_on_and_the_filter_begins_anew(
    step_file: Path, networks: Networks
) -> None:
    session = StepSession(step_file, threads=1)
    with torch_only():
        runner = StreamRunner(networks, SETTINGS, Streams(), lambda text: None)
        request = all_outputs(networks, True)
        for frame in video(8, width=160):
            runner.start([frame], request, SETTINGS).release()
        session.load_state_dict(runner.state_dict())
        for k, frame in enumerate(video(3, 8, seen=8)):
            [found] = session([replace(frame, camera=None)])
            [wanted] = runner.start([replace(frame, camera=None)], request, SETTINGS).wait()
            assert found.reset == wanted.reset == ("" if k else "size changed")
            assert found.scale == wanted.scale
            np.testing.assert_allclose(found.depth, wanted.depth, rtol=1e-4)
            np.testing.assert_array_equal(found.labels, wanted.labels)


def test_the_file_has_no_branches_and_no_loops(step_file: Path) -> None:
    model = onnx.load(step_file)
    assert not {node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"}
    assert {one.domain for one in model.opset_import} == {""}


def test_the_table_in_the_metadata_covers_all_numbers(step_file: Path) -> None:
    table = json.loads(read_metadata(step_file)[FIELDS])["numbers"]
    at = 0
    for field in table.values():
        assert field["offset"] == at
        assert field["meaning"]
        at += int(np.prod(field["shape"]))
    assert at == NUMBERS
    assert table["filter.fresh"]["first"] == table["scale.fresh"]["first"] == [1.0]
    assert "next" not in table["filter.fresh"]
    assert "next" not in table["scale.fresh"]


@pytest.mark.parametrize("example", ["step example", "numbers example"])
def test_the_example_in_the_docs_runs(
    step_file: Path, example: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(step_file.parent)
    run_example("deploy_step.md", example)
    assert "96, 128" in capsys.readouterr().out


def test_a_frame_of_another_kind_is_refused(step_file: Path) -> None:
    session = StepSession(step_file)
    frame = next(video(1, width=160))
    with pytest.raises(ValueError, match=r"rgb8 \(96, 160, 3\).* take rgb8 \(96, 128, 3\)"):
        session([frame])
    fits = next(video(1))
    with pytest.raises(ValueError, match=r"2 frames, but .* takes at most 1"):
        session([fits, replace(fits, source="other")])


def changed(step_file: Path, key: str, change: Callable[[Any], None]) -> Path:
    """The file with other metadata."""
    model = onnx.load(step_file)
    for entry in model.metadata_props:
        if entry.key == key:
            values = json.loads(entry.value)
            change(values)
            entry.value = json.dumps(values)
    other = step_file.with_name("other.onnx")
    onnx.save(model, other)
    return other


def test_a_file_of_other_settings_is_refused(step_file: Path) -> None:
    other = changed(step_file, SPEC, lambda spec: spec.update(settings={"input_width": 64}))
    with pytest.raises(ExportError, match=r"cannot be used together.*settings"):
        StepSession(step_file, other)


@pytest.mark.parametrize("change", [
    lambda fields: fields["numbers"]["filter.to_grid"].update(meaning="something else"),
    lambda fields: fields["numbers"]["scale.anchors"].update(offset=7),
    lambda fields: fields["numbers"].pop("frame.limit"),
])  # fmt: skip
def test_a_file_whose_numbers_mean_something_else_is_refused(step_file: Path, change) -> None:
    with pytest.raises(ExportError, match=r"other\.onnx is of another version.* export it again"):
        StepSession(changed(step_file, FIELDS, change))


def test_without_smoothing_and_scale_there_is_no_step(networks: Networks) -> None:
    settings = replace(SETTINGS, smoothing_strength=0.0, scale_source="none")
    with pytest.raises(ExportError, match="--frame"):
        StepModule(networks, kind_of(networks), settings)


def computed(module: StepModule, networks: Networks) -> Iterator[dict[str, np.ndarray]]:
    """The maps of a video, by PyTorch."""
    cameras, state = Cameras(networks, SETTINGS), module.example(1)[2:]
    for frame in video(12):
        plan = cameras.plan(frame, module.chain, SETTINGS)
        cameras.accept([frame], [plan])
        numbers = torch.from_numpy(frame_numbers(plan.numbers, np.inf))[None]
        with torch_only(), torch.inference_mode():
            found = module(torch.from_numpy(frame.pixels[None]), numbers, *state)
        state = found[-len(state) :]
        yield {name: one.numpy() for name, one in zip(module.names, found, strict=False)}


def test_scale_in_float32_is_that_in_float64(networks: Networks) -> None:
    modules = [StepModule(networks, kind_of(networks), SETTINGS, double) for double in (1, 0)]
    assert [module.example(1)[2].dtype for module in modules] == [torch.float64, torch.float32]
    for one, other in zip(*(computed(module, networks) for module in modules), strict=True):
        assert difference(one["depth"], other["depth"]) < 1e-4
        assert difference(one["deviation"], other["deviation"]) < 1e-4
