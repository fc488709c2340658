# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from helpers.fake_device import CUDA, fake_gpu
from helpers.gpu_rehearsal import rehearsal
from helpers.interpreted import Interpreter, launched_by, run_interpreted
from helpers.plain_torch import plain_torch
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.smoothing import flow
from dpt_ros.engine.smoothing.flow import (
    grey,
    inverse_search,
    luma_of,
    optical_flow,
)

H, W = 240, 320
Warp = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def shift(x: float, y: float) -> Warp:
    return lambda columns, rows: (columns + x, rows + y)


def turn(angle: float, zoom: float) -> Warp:
    cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)

    def warp(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = x - W / 2, y - H / 2
        return W / 2 + cosine * x - sine * y, H / 2 + sine * x + cosine * y

    return warp


def pair(
    warp: Warp, gain: float = 1.0, seed: int = 0, height: int = H, width: int = W
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """This frame and the previous one, (1, h, w) each, of a textured plane; the true displacement
    (2, h, w), and where it stays inside of the image."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((height + 120, width + 120), np.float32)
    for sigma in (1.5, 4.0, 12.0):
        part = cv2.GaussianBlur(rng.normal(size=texture.shape).astype(np.float32), (0, 0), sigma)
        texture += part / part.std() * np.float32(sigma**0.5)
    texture = cv2.normalize(texture, None, 10, 245, cv2.NORM_MINMAX)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    to_x, to_y = (np.float32(one) for one in warp(x, y))
    now = cv2.remap(texture, to_x + 60, to_y + 60, cv2.INTER_CUBIC) * gain
    before = texture[60 : 60 + height, 60 : 60 + width]
    frames = [torch.from_numpy(np.round(np.clip(one, 0, 255)))[None] for one in (now, before)]
    inside = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
    return frames[0], frames[1], np.stack([to_x - x, to_y - y]), inside


def endpoint_error(found: Tensor, true: np.ndarray, inside: np.ndarray) -> float:
    return float(np.hypot(*(found[0, :2].numpy() - true))[inside].mean())


@pytest.mark.parametrize(
    ("warp", "gain", "limit"),
    [
        (shift(0.3, -0.2), 1.0, 0.06),
        (shift(1.5, 0.7), 1.0, 0.08),
        (shift(-2.4, 3.3), 1.0, 0.08),
        (shift(20.0, 0.0), 1.0, 0.08),
        (shift(-14.0, -14.0), 1.0, 0.08),
        (turn(0.03, 1.02), 1.0, 0.2),
        (turn(-0.05, 0.97), 1.0, 0.2),
        (shift(3.3, -2.0), 0.6, 0.4),
    ],
)
def test_a_device_finds_known_motion_at_least_as_well_as_opencv(
    warp: Warp, gain: float, limit: float
) -> None:
    now, before, true, inside = pair(warp, gain)
    found = inverse_search(now, before)
    error = endpoint_error(found, true, inside)
    assert error < limit
    assert error < endpoint_error(optical_flow(now, before), true, inside) + 0.01


@pytest.mark.parametrize("method", [optical_flow, inverse_search])
def test_the_residual_is_free_of_exposure_and_shows_what_does_not_fit(
    method: Callable[[Tensor, Tensor], Tensor],
) -> None:
    now, before, _, inside = pair(shift(3.0, -2.0), gain=0.6)
    residual = method(now, before)[0, 2].numpy()
    assert np.median(residual[inside]) < 2
    now[0, 100:140, 100:140] = torch.from_numpy(
        np.random.default_rng(1).uniform(0, 150, (40, 40)).astype(np.float32)
    )
    residual = method(now, before)[0, 2].numpy()
    assert np.median(residual[105:135, 105:135]) > 15


@pytest.mark.parametrize("method", [optical_flow, inverse_search])
def test_texture_tells_along_which_axis_motion_is_known(
    method: Callable[[Tensor, Tensor], Tensor],
) -> None:
    stripes = (100 + 50 * torch.sin(torch.arange(64) * 0.8)).expand(1, 48, 64).contiguous()
    along_x, along_y = method(stripes, stripes)[0, 3:].numpy()
    assert np.median(along_x) > 0.9
    assert along_y.max() < 0.01


def test_both_ways_agree_on_texture() -> None:
    now, before, *_ = pair(shift(1.0, 2.0), height=96, width=130)
    apart = (optical_flow(now, before) - inverse_search(now, before))[0, 3:].abs()
    assert apart.max() < 0.1
    assert apart.median() < 0.01


def test_on_a_cpu_the_displacement_is_that_of_opencv() -> None:
    now, before, *_ = pair(shift(2.0, 1.0))
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    images = [one[0].numpy().astype(np.uint8) for one in (now, before)]
    expected = torch.from_numpy(dis.calc(*images, None)).permute(2, 0, 1)
    assert torch.equal(optical_flow(now, before)[0, :2], expected)


@pytest.mark.parametrize("method", [optical_flow, inverse_search])
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (33, 57), (180, 320)])
def test_cameras_of_a_batch_do_not_matter_to_one_another(
    method: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int]
) -> None:
    pairs = [pair(shift(1.0, seed), 1.0, seed, *size)[:2] for seed in range(3)]
    both = method(*(torch.cat(frames) for frames in zip(*pairs, strict=True)))
    assert both.shape == (3, 5, *size)
    assert both.isfinite().all()
    for one, frames in zip(both, pairs, strict=True):
        torch.testing.assert_close(one, method(*frames)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("on_host", [True, False])
def test_small_images_have_no_flow(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpt_ros.engine.output.postprocess.on_host", lambda _: on_host)
    for size in ((8, 8), (31, 64), (1, 1)):
        found = optical_flow(torch.full((2, *size), 9.0), torch.zeros((2, *size)))
        assert torch.equal(found, torch.zeros(2, 5, *size))


@pytest.mark.parametrize("method", [optical_flow, inverse_search])
@pytest.mark.parametrize(("now", "before"), [(100, 100), (0, 0), (255, 0), (0, 255)])
def test_flat_images_stand_still_and_weigh_nothing(
    method: Callable[[Tensor, Tensor], Tensor], now: float, before: float
) -> None:
    found = method(torch.full((1, 48, 64), float(now)), torch.full((1, 48, 64), float(before)))
    assert found.isfinite().all()
    assert not found[:, 3:].any()
    assert not found[:, :2].any()


def test_grey_levels_of_a_networks_input_are_those_of_the_image() -> None:
    rng = np.random.default_rng(0)
    scale, offset = torch.tensor([58.4, 57.1, 57.4]), torch.tensor([123.7, 116.3, 103.5])
    for height, width in ((24, 32), (48, 320), (480, 640), (30, 384), (61, 333), (9, 1000)):
        rgb = cv2.blur(rng.integers(0, 256, (height, width, 3), np.uint8), (3, 3))
        levels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
        images = (levels - offset.view(3, 1, 1)) / scale.view(3, 1, 1)
        found = luma_of(images.half().contiguous(memory_format=torch.channels_last), scale, offset)
        expected = torch.from_numpy(grey(rgb))[None].float()
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 1.6


def test_launches_on_a_device() -> None:
    with fake_gpu() as gpu:
        before = gpu.counts.total()
        images = torch.empty((2, 3, 480, 640), dtype=torch.float16, device=CUDA)
        numbers = torch.empty(3, device=CUDA)
        luma = luma_of(images, numbers, numbers)
        assert optical_flow(luma, luma).shape == (2, 5, 240, 320)
        assert gpu.counts.total() - before <= 3 + 9
        assert not gpu.counts.waits
        assert not gpu.counts.uploads


def test_the_rehearsed_kernels_give_the_plain_values() -> None:
    now, before, *_ = pair(shift(2.0, 1.0), height=48, width=64)
    with rehearsal() as kernels:
        found = optical_flow(now, before)
    assert torch.equal(found, inverse_search(now, before))
    assert kernels.calls == {
        "pyramid_kernel": 1, "search_kernel": 2, "dense_kernel": 1, "finish_kernel": 1,
    }  # fmt: skip


def check_kernels(device: str, height: int, width: int) -> None:
    """Every kernel beside its plain twin, on the same values."""
    from dpt_ros.engine.smoothing import triton_flow as triton

    def same(name: str, *given: Tensor, tolerance: float = 2e-3) -> Tensor:
        found, expected = getattr(triton, name)(*given), None
        with plain_torch():
            expected = getattr(flow, name)(*given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=tolerance)
        return expected

    pairs = [pair(shift(1.5, seed), 1.0, seed, height, width)[:2] for seed in range(2)]
    luma, previous = (torch.cat(frames).to(device) for frames in zip(*pairs, strict=True))
    levels = same("pyramid", luma, previous)
    found = torch.zeros((2, 2, 1, 1), device=device)
    for level in levels[::-1]:
        if min(level.shape[2:]) >= 8:
            with plain_torch():
                expected = flow.search(level, found)
            apart = (triton.search(level, found) - expected).abs()
            # A step of which rounding decides whether it lowers the error may be taken by one.
            assert (apart < 1e-3).float().mean() > 0.98
            assert apart.max() < 0.5
            found = expected
    half = same("dense", levels[0], found)
    same("finish", luma, previous, levels[-1], half, tolerance=1e-2)
    numbers = torch.tensor([58.4, 57.1, 57.4], device=device)
    for dtype, size in ((torch.float32, (9, 14)), (torch.float16, (2, 333))):
        images = torch.randn((2, 3, *size), generator=torch.Generator().manual_seed(1))
        images = images.to(device, dtype)
        same("luma_of", images, numbers, numbers)
        same("luma_of", images.contiguous(memory_format=torch.channels_last), numbers, numbers)


def check_wild_values() -> None:
    """Displacements without meaning stay within the images' memory."""
    from dpt_ros.engine.smoothing import triton_flow as triton

    luma = torch.rand((1, 16, 18)) * 255
    level = torch.rand((1, 2, 8, 9)) * 255
    for value in (float("nan"), -1e30):
        found = triton.search(level, torch.full((1, 2, 1, 1), value))
        half = triton.dense(level, found + value)
        triton.finish(luma, luma, level, half + value)


def interpret() -> None:
    """Run in a process of its own with TRITON_INTERPRET=1: every kernel without a GPU."""
    from dpt_ros.engine.smoothing import triton_flow as triton

    triton._ROWS = 32  # fewer programs take less time
    triton_launch.run = Interpreter().launch
    check_kernels("cpu", 33, 37)
    with np.errstate(all="ignore"):
        check_wild_values()
    print("interpreted")


def test_every_kernel_equals_plain_torch_and_stays_in_its_memory_when_interpreted() -> None:
    pytest.importorskip("triton")
    assert run_interpreted(__file__, "interpret").endswith("interpreted\n")


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_every_kernel_compiles_without_a_gpu(arch: int) -> None:
    pytest.importorskip("triton")
    from helpers.cubins import compile_launch

    from dpt_ros.engine.smoothing import triton_flow as triton

    cubins: dict[str, bytes] = {}
    luma, numbers = torch.empty((2, H, W)), torch.empty(3)
    with launched_by(compile_launch(arch, cubins)):
        triton.luma_of(torch.empty((2, 3, 480, 640), dtype=torch.float16), numbers, numbers)
        levels = triton.pyramid(luma, luma)
        found = triton.search(levels[0], torch.zeros((2, 2, 1, 1)))
        triton.finish(luma, luma, levels[-1], triton.dense(levels[0], found))
    assert {name[:-2] for name in cubins} == {"luma", "pyramid", "search", "dense", "finish"}
    assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())


def test_maps_of_another_type_are_refused() -> None:
    pytest.importorskip("triton")
    from dpt_ros.engine.smoothing import triton_flow as triton

    with pytest.raises(ValueError, match="pyramid takes contiguous float32 maps"):
        triton.pyramid(torch.zeros(1, 40, 40).half(), torch.zeros(1, 40, 40))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(240, 320), (180, 320), (67, 101)])
def test_every_kernel_on_a_gpu_at_real_shapes(size: tuple[int, int]) -> None:
    check_kernels("cuda", *size)


@pytest.mark.gpu
def test_flow_can_be_captured_in_a_graph_and_replayed_on_new_frames() -> None:
    now, before, true, inside = pair(shift(-2.4, 3.3))
    luma, previous = before.cuda(), before.cuda()
    optical_flow(luma, previous)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = optical_flow(luma, previous)
    luma.copy_(now)
    graph.replay()
    assert torch.equal(found, optical_flow(luma, previous))
    assert endpoint_error(found.cpu(), true, inside) < 0.08
