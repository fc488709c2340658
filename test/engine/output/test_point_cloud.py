# SPDX-License-Identifier: Apache-2.0
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.point_cloud import FIELD_TYPES, POINT, points

CAMERA = CameraModel(20, 12, 17.0, 16.0, 9.2, 5.8)


def picture(seed=0, size=(12, 20)):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.2, 9, size).astype(np.float32)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.integers(0, 256, size, np.uint8)
    return depth, rgb, labels


@given(
    depth=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(0.001953125, 128, width=32)
        | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -2.0]),
    ),
    stride=st.integers(1, 5),
)
@settings(deadline=None, max_examples=50)
def test_points_project_back_onto_their_pixels(depth, stride):
    height, width = depth.shape
    camera = CameraModel(width, height, 0.9 * width, 1.1 * width, width / 2.1, height / 1.9)
    cloud = points(depth, None, None, camera, stride)
    kept = depth[::stride, ::stride]
    known = (kept > 0) & (kept < np.inf)
    assert cloud.shape == kept.shape
    for name in ("x", "y", "z"):
        np.testing.assert_array_equal(np.isnan(cloud[name]), ~known)
    rows, columns = np.nonzero(known)
    seen = cloud[known]
    np.testing.assert_array_equal(seen["z"], kept[known])
    u = camera.fx * seen["x"] / seen["z"] + camera.cx
    v = camera.fy * seen["y"] / seen["z"] + camera.cy
    np.testing.assert_allclose(u, columns * stride, atol=1e-3)
    np.testing.assert_allclose(v, rows * stride, atol=1e-3)


@given(stride=st.integers(1, 5), far=st.floats(0.5, 1000))
@settings(deadline=None, max_examples=20)
def test_beyond_range_is_a_point_so_far_away_along_its_ray(stride, far):
    depth, rgb, labels = picture()
    depth[2:7, 3:15], depth[9] = np.inf, np.nan
    depth[10, 0], depth[10, 10] = -np.inf, 0.0
    cloud = points(depth, rgb, labels, CAMERA, stride, far)
    without = points(depth, rgb, labels, CAMERA, stride)
    kept = depth[::stride, ::stride]
    beyond = kept == np.inf
    assert cloud[~beyond].tobytes() == without[~beyond].tobytes()
    assert np.isnan(without["x"][beyond]).all()
    assert np.isnan(cloud["z"][np.isnan(kept) | (kept <= 0)]).all()
    seen = np.stack([cloud[k][beyond] for k in "xyz"], 1)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), far, rtol=1e-5)
    rows, columns = np.nonzero(beyond)
    ray = [(columns * stride - CAMERA.cx) / CAMERA.fx, (rows * stride - CAMERA.cy) / CAMERA.fy]
    np.testing.assert_allclose(seen[:, :2].T, ray * seen[:, 2], rtol=1e-4, atol=1e-4)
    for name in ("rgb", "label"):
        np.testing.assert_array_equal(cloud[name], without[name])


def test_without_far_points_beyond_range_is_unknown_and_the_rest_as_the_pinhole_says():
    depth, rgb, labels = picture()
    depth[0], depth[1, :5], depth[2, 2] = np.inf, np.nan, 0
    z = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))
    u, v = np.arange(20, dtype=np.float32), np.arange(12, dtype=np.float32)[:, None]
    expected = np.zeros(depth.shape, POINT)
    fx, fy, cx, cy = (np.float32(n) for n in (CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy))
    expected["x"], expected["y"], expected["z"] = z * ((u - cx) / fx), z * ((v - cy) / fy), z
    channels = rgb.astype(np.uint32)
    expected["rgb"] = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    expected["label"] = labels
    cloud = points(depth, rgb, labels, CAMERA, far=0.0)
    for name in POINT.names:  # to the last bit
        np.testing.assert_array_equal(cloud[name], expected[name])


def test_a_point_s_bytes_are_what_pcl_reads():
    cloud = points(
        np.full((1, 1), 2.0, np.float32),
        np.array([[[1, 2, 3]]], np.uint8),
        np.array([[7]], np.uint8),
        CameraModel(1, 1, 1.0, 1.0, 0.5, 0.25),
    )
    assert cloud.tobytes() == struct.pack("<3f2I", -1.0, -0.5, 2.0, 0x010203, 7)
    assert POINT.itemsize == 20
    assert [(name, POINT.fields[name][1], kind) for name, kind in FIELD_TYPES.items()] == [
        ("x", 0, 7),
        ("y", 4, 7),
        ("z", 8, 7),
        ("rgb", 12, 7),
        ("label", 16, 6),
    ]


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_points_colours_labels_and_confidence_are_strided_alike(stride):
    depth, rgb, labels = picture()
    cloud = points(depth, rgb, labels, CAMERA, stride)
    np.testing.assert_array_equal(cloud["label"], labels[::stride, ::stride])
    color = rgb[::stride, ::stride].astype(np.uint32)
    np.testing.assert_array_equal(
        cloud["rgb"], color[..., 0] << 16 | color[..., 1] << 8 | color[..., 2]
    )
    # Of an image of every stride-th pixel, the first one included.
    height, width = cloud.shape
    focal, center = (CAMERA.fx, CAMERA.fy), (CAMERA.cx, CAMERA.cy)
    camera = CameraModel(width, height, *(value / stride for value in focal + center))
    again = points(np.ascontiguousarray(depth[::stride, ::stride]), None, None, camera)
    np.testing.assert_allclose(again["x"], cloud["x"], rtol=1e-5, atol=1e-6)


def test_tensor_and_array_give_the_same_bytes():
    depth, rgb, labels = picture()
    depth[3, 4], depth[5, 6] = np.nan, np.inf
    tensors = [torch.from_numpy(part) for part in (depth, rgb, labels)]
    cloud = points(*tensors, CAMERA)
    assert isinstance(cloud, torch.Tensor)
    assert cloud.numpy().tobytes() == points(depth, rgb, labels, CAMERA).tobytes()


def test_intrinsics_of_another_size_are_scaled():
    depth, _, _ = picture()
    twice = CAMERA.scaled(40, 24)
    a, b = points(depth, None, None, CAMERA), points(depth, None, None, twice)
    np.testing.assert_allclose(a["x"], b["x"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a["y"], b["y"], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_together_is_refused_with_a_sentence():
    depth, rgb, labels = picture()
    with pytest.raises(ValueError, match=r"must be \(H, W\)"):
        points(depth[None], None, None, CAMERA)
    with pytest.raises(ValueError, match="at least 1"):
        points(depth, None, None, CAMERA, 0)
    with pytest.raises(ValueError, match="at least 0 and finite"):
        points(depth, None, None, CAMERA, far=np.inf)
    with pytest.raises(ValueError, match=r"must be \(12, 20, 3\)"):
        points(depth, rgb[:5], None, CAMERA)
    with pytest.raises(ValueError, match=r"must be \(12, 20\) like the depth"):
        points(depth, None, labels.T, CAMERA)


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gpu_makes_the_same_points(stride):
    depth, rgb, labels = picture(size=(48, 64))
    depth[0, :9], depth[1, :9] = np.nan, np.inf
    camera = CAMERA.scaled(64, 48)
    there = points(
        *(torch.from_numpy(part).cuda() for part in (depth, rgb, labels)), camera, stride, 7.0
    )
    assert there.is_cuda
    found = there.cpu().numpy().view(POINT)[..., 0]
    expected = points(depth, rgb, labels, camera, stride, 7.0)
    for name in ("rgb", "label"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["z"], expected["z"], rtol=1e-6)
    np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_scale_and_points_of_a_vga_image_can_be_captured_in_a_graph():
    from dpt_ros.engine.scale.estimator import metric_inverse_depth

    depth, rgb, labels = (torch.from_numpy(part).cuda() for part in picture(size=(480, 640)))
    inverse, camera = 1 / depth, CAMERA.scaled(640, 480)
    correction = torch.tensor([1.0, 0.0], device="cuda")

    def chain():
        depth = metric_inverse_depth(inverse, correction).reciprocal()
        return points(depth, rgb, labels, camera)

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cloud = chain()
    correction[0] = 0.5
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(cloud[..., 2], 2 * depth)
