# SPDX-License-Identifier: Apache-2.0
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from dpt_ros.engine.frame import CameraModel, Frame, Outputs, Prediction
from dpt_ros.engine.network import Network, Networks
from dpt_ros.engine.pipeline import Chain, Pipeline
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model

CAMERA = CameraModel(64, 48, 60.0, 60.0, 31.5, 23.5)
SMALL = Settings(input_width=64, input_height=48)
EVERYTHING = Outputs(depth=True, inverse=True, labels=True, confidence=True)


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    model = create_model("dpt_hybrid_embedded", weights="random")
    both = Network(model, torch.device("cpu"), torch.float32)
    names = tuple(f"class {k}" for k in range(model.spec.num_classes))
    return Networks(
        depth=both,
        labels=both,
        device=torch.device("cpu"),
        precision="fp32",
        class_names=names,
        palette=np.zeros((256, 3), np.uint8),
        random=True,
        notes=(),
    )


def frame(number: int, source: str = "", **changes: object) -> Frame:
    pixels = np.full((48, 64, 3), number % 256, np.uint8)
    made = Frame(pixels, "rgb8", stamp_ns=number, frame_id="eye", source=source, camera=CAMERA)
    return replace(made, **changes)


@dataclass
class Log:
    """What a pipeline said, in order."""

    predictions: list[Prediction] = field(default_factory=list)
    drops: list[tuple[Frame, str]] = field(default_factory=list)
    errors: list[tuple[Frame, Exception]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def predicted(self, prediction: Prediction) -> None:
        self.predictions.append(prediction)
        self.entered.set()
        assert self.gate.wait(10)

    def pipeline(self, networks: Networks, settings: Settings = SMALL, **options: object):
        return Pipeline(
            networks,
            settings,
            on_prediction=self.predicted,
            on_drop=lambda frame, reason: self.drops.append((frame, reason)),
            on_error=lambda frame, error: self.errors.append((frame, error)),
            **options,
        )

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.predictions) + len(self.drops) + len(self.errors) < count:
            assert time.monotonic() < deadline, "the pipeline did not account for every frame"
            time.sleep(0.002)


def test_a_prediction_has_what_was_asked_for_and_nothing_else(networks):
    whole = Chain(networks).run(frame(1), EVERYTHING, SMALL)
    assert whole.depth.shape == whole.inverse.shape == (48, 64)
    assert whole.depth.dtype == whole.inverse.dtype == np.float32
    assert whole.labels.dtype == whole.confidence.dtype == np.uint8
    assert whole.labels.min() >= 1
    assert whole.labels.max() <= 10
    only_labels = Chain(networks).run(frame(1), Outputs(depth=False), SMALL)
    assert only_labels.depth is None
    assert only_labels.inverse is None
    assert only_labels.confidence is None
    np.testing.assert_array_equal(only_labels.labels, whole.labels)


def test_inverse_depth_of_a_metric_network_is_one_over_its_metres(networks):
    both = Chain(networks).run(frame(90), Outputs(inverse=True), SMALL)
    np.testing.assert_allclose(both.inverse, 1 / both.depth, rtol=1e-6)


def test_depth_beyond_the_range_is_infinite(networks):
    free = Chain(networks).run(frame(90), Outputs(), SMALL).depth
    limit = float(np.median(free))
    limited = Chain(networks).run(frame(90), Outputs(), replace(SMALL, max_range=limit)).depth
    assert np.isinf(limited[free > limit]).all()
    np.testing.assert_array_equal(limited[free <= limit], free[free <= limit])
    assert np.isinf(limited).any()


def test_outputs_have_the_size_of_the_image_or_of_the_network(networks):
    large = frame(1, pixels=np.zeros((100, 160, 3), np.uint8))
    as_image = Chain(networks).run(large, EVERYTHING, SMALL)
    assert as_image.depth.shape == as_image.labels.shape == (100, 160)
    as_network = Chain(networks).run(large, EVERYTHING, replace(SMALL, output_size="network"))
    assert as_network.depth.shape == as_network.labels.shape == (48, 80)
    assert as_network.camera.width == 80


def test_the_camera_of_a_prediction_fits_its_depth(networks):
    settings = replace(SMALL, input_width=32, input_height=32, output_size="network")
    camera = Chain(networks).run(frame(1), Outputs(), settings).camera
    assert (camera.width, camera.height) == (48, 32)
    assert camera.fx == pytest.approx(45.0)
    assert camera.cx == pytest.approx(23.5)


def test_a_frame_never_waits_behind_an_older_one(networks):
    log = Log()
    pipeline = log.pipeline(networks)
    log.gate.clear()
    pipeline.submit(frame(1), Outputs())
    assert log.entered.wait(10)
    for number in range(2, 7):
        pipeline.submit(frame(number), Outputs())
    log.gate.set()
    log.wait(6)
    pipeline.close()
    assert [p.frame.stamp_ns for p in log.predictions] == [1, 6]
    assert [(f.stamp_ns, why) for f, why in log.drops] == [
        (number, "replaced by a newer frame") for number in range(2, 6)
    ]


def test_cameras_take_turns_and_do_not_replace_each_other(networks):
    log = Log()
    pipeline = log.pipeline(networks)
    log.gate.clear()
    pipeline.submit(frame(1, "front"), Outputs())
    assert log.entered.wait(10)
    pipeline.submit(frame(2, "rear"), Outputs())
    pipeline.submit(frame(3, "front"), Outputs())
    pipeline.submit(frame(4, "rear"), Outputs())
    log.gate.set()
    log.wait(4)
    pipeline.close()
    seen = [(p.frame.source, p.frame.stamp_ns) for p in log.predictions]
    assert seen == [("front", 1), ("rear", 4), ("front", 3)]


def test_a_frame_that_fails_is_reported_and_the_next_one_goes_on(networks):
    log = Log()
    pipeline = log.pipeline(networks)
    pipeline.submit(frame(1, encoding="rgb9"), Outputs())
    log.wait(1)
    pipeline.submit(frame(2), Outputs())
    log.wait(2)
    pipeline.close()
    assert [f.stamp_ns for f, _ in log.errors] == [1]
    assert "rgb9" in str(log.errors[0][1])
    assert [p.frame.stamp_ns for p in log.predictions] == [2]


def test_a_frame_older_than_max_age_is_dropped_with_the_reason(networks):
    log = Log()
    settings = replace(SMALL, max_age=0.5)
    pipeline = log.pipeline(networks, settings, now_ns=lambda: 1_000_000_000)
    pipeline.submit(frame(400_000_000), Outputs())
    log.wait(1)
    pipeline.submit(frame(600_000_000), Outputs())
    log.wait(2)
    pipeline.close()
    assert [why for _, why in log.drops] == ["older than max_age"]
    assert [p.frame.stamp_ns for p in log.predictions] == [600_000_000]


def test_closing_accounts_for_every_frame_and_later_ones_are_dropped(networks):
    log = Log()
    pipeline = log.pipeline(networks)
    log.gate.clear()
    pipeline.submit(frame(1), Outputs())
    assert log.entered.wait(10)
    pipeline.submit(frame(2), Outputs())
    log.gate.set()
    pipeline.close()
    pipeline.submit(frame(3), Outputs())
    log.wait(3)
    assert (3, "closed") in [(f.stamp_ns, why) for f, why in log.drops]
    assert 1 in [p.frame.stamp_ns for p in log.predictions]


@pytest.mark.gpu
def test_the_gpu_says_what_the_cpu_says_within_half_precision(networks):
    device = torch.device("cuda")
    model = create_model("dpt_hybrid_embedded", weights="random")
    model.load_state_dict(networks.depth._model.state_dict())
    fast = Network(model, device, torch.float16)
    there = replace(networks, depth=fast, labels=fast, device=device, precision="fp16")
    expected = Chain(networks).run(frame(90), EVERYTHING, SMALL)
    actual = Chain(there).run(frame(90), EVERYTHING, SMALL)
    np.testing.assert_allclose(actual.depth, expected.depth, rtol=2e-2)
    assert (actual.labels == expected.labels).mean() > 0.98
