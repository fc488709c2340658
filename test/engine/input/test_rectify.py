# SPDX-License-Identifier: Apache-2.0
"""Rectification beside OpenCV's, and its kernel beside its twin."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from helpers.interpreted import Interpreter, run_interpreted
from helpers.lenses import COEFFICIENTS, lens, pinhole, project, raw_picture

from dpt_ros.engine import triton_launch
from dpt_ros.engine.frame import CameraModel, Lens
from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.input.rectify import Rectifier, places, rectified

WIDTH, HEIGHT = 320, 240
MODELS = sorted(COEFFICIENTS)
TURN = cv2.Rodrigues(np.array([0.01, -0.02, 0.03]))[0]
CPU = torch.device("cpu")


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def by_opencv(picture: np.ndarray, lens: Lens, camera: CameraModel) -> np.ndarray:
    """As image_proc does it, float maps of one channel each."""
    fisheye = lens.model == "equidistant"
    make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
    maps = make(
        lens.raw.matrix(), np.array(lens.coefficients), np.array(lens.rotation).reshape(3, 3),
        camera.matrix(), (camera.width, camera.height), cv2.CV_32FC1,
    )  # fmt: skip
    return cv2.remap(picture, *maps, cv2.INTER_LINEAR)


def on_host(picture: np.ndarray, lens: Lens, camera: CameraModel) -> np.ndarray:
    return Rectifier(lens, camera, "rgb8", picture.shape[:2], None)([picture])[0]


def in_torch(picture: np.ndarray, lens: Lens, camera: CameraModel) -> np.ndarray:
    make = Rectifier(lens, camera, "rgb8", picture.shape[:2], CPU)
    return make(torch.from_numpy(picture)[None])[0].numpy()


@pytest.mark.parametrize("rectify", [on_host, in_torch])
@pytest.mark.parametrize("wider", [1.0, 1.5])
@pytest.mark.parametrize("model", MODELS)
def test_a_picture_is_rectified_as_opencv_does_it(model, wider, rectify):
    turned = replace(lens(model, WIDTH, HEIGHT), rotation=tuple(TURN.ravel()))
    camera = pinhole(model, WIDTH, HEIGHT, wider)
    table, seen = places(turned, camera)
    # Between the last pixel's centre and its edge OpenCV mixes in black.
    sure = seen & ((table > 0) & (table < [WIDTH - 1, HEIGHT - 1])).all(-1)
    assert sure.mean() > 0.4
    expected = by_opencv(noise(), turned, camera).astype(int)
    difference = np.abs(rectify(noise(), turned, camera) - expected)
    assert difference[sure].max() <= 1


def board(size: float, rays: np.ndarray) -> np.ndarray:
    """A checkerboard across the whole view, a little out of focus; size of a square."""
    waves = np.sin(np.pi * rays / size).prod(1)
    return np.repeat(125 + 95 * np.clip(3 * waves, -1, 1)[:, None], 3, 1)


def corners(picture: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The saddles of the grey levels (..., 2), each found from the pixels around one nearby."""
    y, x = np.mgrid[-3:4, -3:4].reshape(2, -1)
    fit = np.linalg.pinv(np.column_stack([x * x, x * y, y * y, x, y, np.ones(49)]))
    found = []
    for u, v in near.reshape(-1, 2).round().astype(int):
        grey = picture[v - 3 : v + 4, u - 3 : u + 4, 0].reshape(-1)
        xx, xy, yy, dx, dy, _ = fit @ grey
        assert xy * xy > 4 * xx * yy  # a saddle
        found.append([u, v] - np.linalg.solve([[2 * xx, xy], [xy, 2 * yy]], [dx, dy]))
    return np.array(found).reshape(near.shape)


@pytest.mark.parametrize("rectify", [on_host, in_torch])
@pytest.mark.parametrize("model", MODELS)
def test_the_corners_of_a_board_are_on_straight_lines(model, rectify):
    taken, camera = lens(model, WIDTH, HEIGHT), pinhole(model, WIDTH, HEIGHT)
    size = 0.15 if model == "equidistant" else 0.1
    raw = raw_picture(taken, partial(board, size))
    k = np.arange(-4, 5) * size
    rays = np.stack(np.meshgrid(k, k[2:-2]), -1)

    def bend(points: np.ndarray) -> float:
        """The largest distance of a corner from the line through its row or column."""
        lines = [*points, *points.transpose(1, 0, 2)]
        centred = [line - line.mean(0) for line in lines]
        return max(np.abs(one @ np.linalg.svd(one)[2][1]).max() for one in centred)

    expected = rays * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    found = corners(rectify(raw, taken, camera), expected)
    assert np.abs(found - expected).max() < 0.3
    assert bend(found) < 0.3
    where = project(taken, rays.reshape(-1, 2)).reshape(rays.shape)
    assert bend(corners(raw, where)) > 1.0  # so that there was something to straighten


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_is_rectified_from_its_colours(encoding):
    form = ENCODINGS[encoding]
    shape = (int(32 * form.planes), 48) + ((form.channels,) if form.channels else ())
    random = np.random.default_rng(2)
    pixels = random.random((2, *shape), np.float32)
    if form.dtype != np.float32:
        pixels = random.integers(0, np.iinfo(form.dtype).max + 1, (2, *shape), form.dtype)
    taken, camera = lens("plumb_bob", 48, 32), pinhole("plumb_bob", 48, 32)
    host = Rectifier(taken, camera, encoding, (32, 48), None)([*pixels])
    tensor = torch.from_numpy(pixels.view(np.int16) if form.dtype == np.uint16 else pixels)
    device = Rectifier(taken, camera, encoding, (32, 48), CPU)(tensor).numpy()
    assert device.shape == (2, 32, 48, 3)
    most = 1 + (encoding == "nv24")  # whose colours can differ by one level
    for one, other, raw in zip(host, device, pixels, strict=True):
        assert np.abs(one.astype(int) - other).max() <= most
        np.testing.assert_array_equal(one, on_host(to_rgb(raw, encoding), taken, camera))


def test_what_looks_past_the_raw_picture_is_known_and_repeats_its_border():
    taken, camera = lens("plumb_bob", 64, 48), pinhole("plumb_bob", 64, 48, wider=2.0)
    table, seen = places(taken, camera)
    assert 0.1 < seen.mean() < 0.9
    assert seen[24, 32]
    assert not seen[0].any()
    assert (table >= 0).all()
    assert (table <= [63, 47]).all()
    white = np.full((48, 64, 3), 255, np.uint8)
    for rectify in (on_host, in_torch):
        assert (rectify(white, taken, camera) == 255).all()


def test_no_part_of_the_picture_is_shown_twice():
    # The radius of this model grows up to 0.82 focal lengths, and falls beyond.
    folding = Lens(
        "plumb_bob", (-0.5, 0.0, 0.0, 0.0, 0.0), CameraModel(640, 480, 500, 500, 320, 240)
    )
    camera = CameraModel(640, 480, 200.0, 200.0, 319.5, 239.5)
    _, seen = places(folding, camera)
    x, y = np.meshgrid((np.arange(640) - 319.5) / 200, (np.arange(480) - 239.5) / 200)
    radius = np.hypot(x, y)
    assert not seen[radius > 0.83].any()
    assert seen[radius < 0.55].all()


def test_a_fisheye_sees_nothing_behind_itself():
    taken = lens("equidistant", 64, 48)
    back = cv2.Rodrigues(np.array([0.0, np.pi / 2, 0.0]))[0]
    turned = replace(taken, rotation=tuple(back.ravel()))
    _, seen = places(turned, pinhole("equidistant", 64, 48))
    assert not seen[:, :20].any() or not seen[:, -20:].any()


@pytest.mark.parametrize("number", [1e300, -1e300, np.nan, np.inf, 0.0])
@pytest.mark.parametrize("model", MODELS)
def test_absurd_coefficients_give_a_table_within_the_picture(model, number):
    absurd = replace(lens(model, 64, 48), coefficients=(number,) * len(COEFFICIENTS[model]))
    table, seen = places(absurd, pinhole(model, 64, 48))
    assert np.isfinite(table).all()
    assert (table >= 0).all()
    assert (table <= [63, 47]).all()
    assert seen.mean() < 0.2 or number == 0


def test_a_lens_of_another_size_is_refused():
    with pytest.raises(ValueError, match="calibrated for 64x48 pixels, but the picture has 32x24"):
        Rectifier(lens("plumb_bob", 64, 48), pinhole("plumb_bob", 64, 48), "rgb8", (24, 32), None)


def test_the_twin_can_be_exported():
    table = torch.from_numpy(places(lens("plumb_bob", 64, 48), pinhole("plumb_bob", 64, 48))[0])

    class Module(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return rectified(pixels, "nv12", table)

    pixels = torch.randint(0, 256, (2, 72, 64), dtype=torch.uint8)
    batch = {"pixels": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Module(), (pixels,), dynamic_shapes=batch).module()
    for count in (2, 3):
        pixels = torch.randint(0, 256, (count, 72, 64), dtype=torch.uint8)
        assert torch.equal(exported(pixels), rectified(pixels, "nv12", table))


def interpret() -> None:
    """Every format in the interpreter: the twin's values, within the tensors' memory."""
    from dpt_ros.engine.input import triton_rectify

    for encoding in {form: name for name, form in ENCODINGS.items()}.values():
        form = ENCODINGS[encoding]
        shape = (int(12 * form.planes), 30) + ((form.channels,) if form.channels else ())
        pixels = torch.rand(2, *shape) * 1.4 - 0.2
        if form.dtype != np.float32:
            info = np.iinfo(form.dtype)
            values = np.random.default_rng(3).integers(0, info.max + 1, (2, *shape), form.dtype)
            pixels = torch.from_numpy(values.view(np.int16) if info.bits == 16 else values)
        taken, camera = lens("plumb_bob", 30, 12), pinhole("plumb_bob", 30, 12, wider=1.5)
        table = torch.from_numpy(places(taken, camera)[0])
        interpreter = Interpreter()
        triton_launch.run = interpreter.launch
        made = triton_rectify.rectified(pixels, encoding, table)
        assert torch.equal(made, rectified(pixels, encoding, table)), encoding
        assert interpreter.calls == ["rectify_kernel"]
    print("interpreted")


def test_the_kernel_gives_the_values_of_its_twin_in_the_interpreter():
    pytest.importorskip("triton")
    assert run_interpreted(__file__, "interpret").endswith("interpreted\n")


def test_the_kernel_compiles_for_every_gpu_generation():
    pytest.importorskip("triton")
    from helpers.cubins import ARCHS, rectify_cubins, stack_bytes

    for arch in ARCHS:
        cubins = rectify_cubins(arch, ["rgb8"])
        assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())
    for cubin in rectify_cubins(87, ["bayer_grbg16", "nv12"]).values():
        assert stack_bytes(cubin) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_the_kernel_gives_the_values_of_its_twin_on_a_gpu(encoding):
    form = ENCODINGS[encoding]
    shape = (int(480 * form.planes), 640) + ((form.channels,) if form.channels else ())
    pixels = torch.rand(2, *shape)
    if form.dtype != np.float32:
        pixels = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
        pixels = pixels if form.dtype == np.uint8 else pixels.to(torch.int16) * 117
    make = Rectifier(
        lens("equidistant", 640, 480), pinhole("equidistant", 640, 480, 1.5), encoding,
        (480, 640), torch.device("cuda"),
    )  # fmt: skip
    table = make._device_table.cpu()
    assert torch.equal(make(pixels.cuda()).cpu(), rectified(pixels, encoding, table))
