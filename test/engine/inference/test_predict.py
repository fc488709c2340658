# SPDX-License-Identifier: Apache-2.0
"""Whole pictures against the published scripts: their pre-processing, network, post-processing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.golden import golden_photo, golden_state, load_case, reference_cases

from dpt_ros.engine import predict_image
from dpt_ros.engine.inference.backend import TorchModel
from dpt_ros.engine.inference.network import Network
from dpt_ros.engine.inference.predict import crop
from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.model import create_model

# Task of a case -> network, largest error over the largest value.
TASKS = {
    "midas": ("dpt_hybrid_midas", 5e-5),
    "nyu": ("dpt_hybrid_nyu", 5e-5),
    "kitti": ("dpt_hybrid_kitti", 3e-4),
    "ade": ("dpt_hybrid_ade20k", 0.0),
}
# What the published scripts multiply metres by before they write a PNG.
PNG_SCALE = {"midas": 1.0, "nyu": 1000.0, "kitti": 256.0}


@pytest.fixture(scope="module", params=reference_cases("e2e_"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The case's arrays, description and photo, and its network with the golden weights."""
    arrays, meta = load_case(request.param)
    name, _ = TASKS[meta["task"]]
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(golden_state("seg_hybrid" if meta["task"] == "ade" else "depth_hybrid"), path)
    model = create_model(name, weights=path)
    path.unlink()
    return arrays, meta, golden_photo(meta["seed"], *meta["photo_shape"][:2]), model


def test_a_picture_enters_the_network_as_in_the_published_scripts(case):
    arrays, meta, photo, model = case
    if meta["task"] == "kitti":
        photo = crop(photo)
    spec = model.spec
    size = network_size(*photo.shape[:2], spec.net_height, spec.net_width, spec.multiple_of)
    assert size == tuple(meta["net_input_shape"][2:])
    images = network_input(photo, size, spec.mean, spec.std)[0]
    stride = meta["net_input_stride"]
    np.testing.assert_allclose(images[:, ::stride, ::stride], arrays["net_input"], atol=2e-6)
    np.testing.assert_allclose(images[:, -1], arrays["net_input_last_row"], atol=2e-6)


@pytest.mark.parametrize("as_in_the_node", [False, True])
def test_a_picture_gives_what_the_published_scripts_give(case, as_in_the_node):
    arrays, meta, photo, model = case
    if as_in_the_node:
        cpu = torch.device("cpu")
        model = Network(model.spec, cpu, TorchModel(deepcopy(model), cpu, torch.float32))
    (result,) = predict_image(model, photo, kitti_crop=meta["task"] == "kitti").values()
    if meta["task"] == "ade":
        close = np.unpackbits(arrays["close"])[: result.size].reshape(result.shape).astype(bool)
        assert result.dtype == np.uint8
        assert close.mean() < 0.06
        np.testing.assert_array_equal(result[~close], arrays["labels"][~close])
        return
    tolerance = TASKS[meta["task"]][1]
    result = result * PNG_SCALE[meta["task"]]
    stride, largest = meta["stride"], meta["max"]
    expected = arrays["prediction"]
    assert np.abs(result[::stride, ::stride] - expected).max() <= tolerance * largest
    assert np.abs(result[-1] - arrays["prediction_last_row"]).max() <= tolerance * largest


def test_the_two_task_network_gives_depth_and_labels_of_the_picture_s_size():
    model = create_model("dpt_hybrid_embedded", weights="random")
    result = predict_image(model, golden_photo(1, 90, 130))
    assert result["depth"].shape == result["labels"].shape == (90, 130)
    assert result["labels"].dtype == np.uint8
    assert set(np.unique(result["labels"])) <= set(range(1, 11))


def test_metric_depth_stays_within_what_the_network_predicted(monkeypatch):
    """A near edge before a far wall: bicubic upsampling alone gives -2.5 m there."""
    model = create_model("dpt_hybrid_embedded", weights="random")
    steps = torch.full((1, 240, 320), 1.0)
    steps[:, :, 160:] = 40.0
    monkeypatch.setattr(type(model), "forward", lambda self, images: {"depth": steps})
    picture = golden_photo(1, 480, 640)
    assert F.interpolate(steps[None], (480, 640), mode="bicubic").min() < -1
    depth = predict_image(model, picture)["depth"]
    assert (depth.min(), depth.max()) == (1.0, 40.0)
    relative = {"invert": False, "scale": 1.0, "shift": 0.0}
    model = create_model("dpt_hybrid_embedded", weights="random", **relative)
    assert predict_image(model, picture)["depth"].min() < -1  # as published


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused_with_what_was_expected(picture):
    model = create_model("dpt_hybrid_embedded", weights="random")
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 3\)"):
        predict_image(model, picture)


def test_a_picture_smaller_than_the_kitti_crop_is_refused():
    model = create_model("dpt_hybrid_embedded", weights="random")
    with pytest.raises(ValueError, match="at least 352 x 1216"):
        predict_image(model, np.zeros((300, 1242, 3), np.uint8), kitti_crop=True)
