# SPDX-License-Identifier: Apache-2.0
"""A depth camera's image filled by the network: each rule of the module, and its twin.

``test_fused_depth.py`` as a program prints its processor time on one core.
"""

from __future__ import annotations

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers.interpreted import launched_by
from helpers.plain_torch import plain_torch
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output import fused_depth
from dpt_ros.engine.output.fused_depth import (
    NETWORK,
    NONE,
    SENSOR,
    FusionSettings,
    fuse,
    largest_ratio,
)

HEIGHT, WIDTH = 120, 160
NAN = float("nan")


def wall(metres: float, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.full((1, height, width), metres)


def scene(height: int, width: int, seed: int = 0, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A sensor with holes, flying pixels, a mirror and noise, and a network that is wrong
    smoothly."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((batch, height, width), np.float32)[1:]
    truth = 2 + 2 * x / width + np.where((x > width / 3) & (y > height / 2), -1.0, 0.0)
    bias = 1 + 0.08 * np.sin(x / width * 5) * np.cos(y / height * 4)
    sensor = truth * (1 + 0.004 * rng.standard_normal(truth.shape))
    small = rng.standard_normal((height // 10 + 1, width // 10 + 1)).astype(np.float32)
    sensor[:, cv2.resize(small, (width, height)) > 0.2] = NAN
    sensor[:, : height // 3, -width // 4 :] *= 2.2
    sensor[:, :2], sensor[:, 2:4] = 0.0, np.inf
    depth = truth * bias
    depth[:, -1, :5], depth[:, -3:-1, :5] = NAN, np.inf
    parts = sensor, depth, 0.05 * depth
    return tuple(torch.from_numpy(p.astype(np.float32)) for p in parts)  # type: ignore[return-value]


def test_where_it_is_kept_the_sensor_is_kept_bit_for_bit() -> None:
    sensor, depth, sigma = scene(240, 320)
    fused, origin, _ = fuse(sensor, depth, sigma)
    kept = origin == SENSOR
    assert 0.2 < kept.float().mean() < 0.8
    assert torch.equal(fused[kept].view(torch.int32), sensor[kept].view(torch.int32))
    assert origin.dtype == torch.uint8
    assert ((origin == NONE) == fused.isnan()).all()


def test_every_hole_is_filled_and_the_fill_is_better_than_the_network() -> None:
    sensor, depth, sigma = scene(240, 320)
    truth = depth / (depth / depth)  # NaN and inf stay out
    y, x = np.indices((240, 320), np.float32)
    truth = torch.from_numpy(2 + 2 * x / 320 + np.where((x > 320 / 3) & (y > 120), -1.0, 0.0))
    fused, origin, _ = fuse(sensor, depth, sigma)
    filled = (origin == NETWORK) & depth.isfinite()
    before, after = (((d[0] - truth).abs() / truth)[filled[0]].mean() for d in (depth, fused))
    assert torch.isfinite(fused[depth.isfinite()]).all()
    assert after < 0.5 * before


@pytest.mark.parametrize("factor", [0.88, 1.0, 1.12])
def test_there_is_no_step_at_a_seam(factor: float) -> None:
    sensor = wall(3.0)
    sensor[:, :, 60:] = NAN
    fused, origin, _ = fuse(sensor, wall(3.0 * factor), wall(0.1))
    row = fused[0, 60]
    assert (origin[0, 60] == SENSOR).sum() == 60
    assert abs(row[60] / row[59] - 1) < 0.01
    assert (row[1:] / row[:-1] - 1).abs().max() < 0.012


def test_where_no_sensor_is_near_the_network_is_as_it_was_scaled() -> None:
    sensor = wall(3.0, 240, 320)
    sensor[:, 8:], sensor[:, :, 8:] = NAN, NAN
    fused, _, _ = fuse(sensor, wall(3.2, 240, 320), wall(0.1, 240, 320))
    assert fused[0, -1, -1] == pytest.approx(3.2, rel=0.01)
    none, origin, deviation = fuse(wall(NAN), wall(3.2), wall(0.1))
    assert torch.equal(none, wall(3.2))
    assert torch.equal(deviation, wall(0.1))
    assert (origin == NETWORK).all()


def test_unknown_and_beyond_range_stay_what_they_are() -> None:
    sensor, depth = wall(NAN), wall(2.0)
    depth[:, :10], depth[:, 10:20] = NAN, torch.inf
    sensor[:, :, :50] = 4.0
    fused, origin, _ = fuse(sensor, depth, wall(0.1))
    assert (origin[:, :20, :49] == SENSOR).all()  # nothing to compare with, or nearer
    assert (origin[:, :10, 51:] == NONE).all()
    assert fused[:, :10, 51:].isnan().all()
    assert (origin[:, 10:20, 51:] == NETWORK).all()
    assert (fused[:, 10:20, 51:] == torch.inf).all()


def test_flying_pixels_are_taken_out_and_steep_floors_are_not() -> None:
    sensor = wall(4.0)
    sensor[:, 40:80, 60:100] = 1.0
    sensor[:, 40:80, 59] = 2.1
    _, origin, _ = fuse(sensor, sensor.clone(), wall(0.1))
    assert (origin[0, 45:75, 58:60] == NETWORK).all()
    assert (origin[0, 45:75, 60:100] == SENSOR).all()
    camera = CameraModel(WIDTH, HEIGHT, 139.0, 139.0, 79.5, 59.5)
    edge = largest_ratio(camera, WIDTH, 87.0)
    rows = torch.arange(HEIGHT) - 59.5
    floor = torch.where(rows > 9, 139.0 * 0.6 / rows, torch.nan)[None, :, None]
    floor = floor.expand(1, HEIGHT, WIDTH).contiguous()
    _, origin, _ = fuse(floor, floor.clone(), wall(0.1), FusionSettings(edge=edge))
    assert (origin[floor.isfinite()] == SENSOR).float().mean() > 0.95
    assert largest_ratio(camera, 2 * WIDTH, 87.0) == pytest.approx(edge**0.5)


def test_a_thin_thing_that_the_network_misses_stays_where_the_sensor_has_it() -> None:
    sensor = wall(4.0)
    sensor[:, :, 76] = sensor[:, :, 83] = NAN
    sensor[:, :, 77:83] = 1.5
    fused, origin, _ = fuse(sensor, wall(4.0), wall(0.1))
    assert (origin[:, :, 77:83] == SENSOR).all()
    assert (fused[:, :, 77:83] == 1.5).all()
    assert fused[0, 60, 90] == 4.0  # and it does not pull the wall behind it


def test_a_bar_of_one_pixel_is_no_flying_pixel() -> None:
    sensor = wall(4.0)
    sensor[:, :, 80] = 1.5
    _, origin, _ = fuse(sensor, wall(4.0), wall(0.1))
    assert (origin[:, :, 80] == SENSOR).all()
    assert (origin[:, :, 79] == NETWORK).all()


def test_a_mirror_and_its_rim_are_what_the_network_has() -> None:
    sensor = wall(2.0)
    sensor[:, 30:90, 50:110] = 5.0
    sensor[:, 84:88, 50:110] = 2.6
    sensor[:, 88:90, 50:110] = NAN
    fused, origin, _ = fuse(sensor, wall(2.0), wall(0.1))
    assert (origin[:, 30:90, 50:110] == NETWORK).all()
    assert (fused[:, 31:89, 51:109] - 2.0).abs().max() < 0.01
    # Without a mirror near, a network that is off by as much loses to the sensor.
    sensor = wall(2.0)
    sensor[:, 30:90, 50:110] = 2.6
    _, origin, _ = fuse(sensor, wall(2.0), wall(0.1), FusionSettings(edge=2.0))
    assert (origin == SENSOR).all()


def test_the_tolerances_decide_at_the_rim_of_a_mirror() -> None:
    sensor = wall(2.0)
    sensor[:, 30:90, 50:110] = 5.0
    sensor[:, 90:94, 50:110] = 2.25
    s = FusionSettings(edge=10.0)
    for settings, kept in (
        (s, True),
        (replace(s, tolerance_metres=0.2), False),
        (replace(s, tolerance_metres=0.2, tolerance=0.2), True),
    ):
        _, origin, _ = fuse(sensor, wall(2.0), wall(0.1), settings)
        assert (origin[:, 91:93, 55:105] == SENSOR).all() == kept


def test_closer_or_farther_than_the_sensor_can_measure_is_the_network() -> None:
    sensor = wall(1.0)
    sensor[:, :40], sensor[:, 80:] = 0.2, 12.0
    _, origin, _ = fuse(sensor, sensor.clone(), wall(0.1))
    assert (origin[:, :40] == NETWORK).all()
    assert (origin[:, 80:] == NETWORK).all()
    assert (origin[:, 45:75] == SENSOR).all()
    _, origin, _ = fuse(sensor, sensor.clone(), wall(0.1), FusionSettings(near=0.1, far=20.0))
    assert (origin[:, :38] == SENSOR).all()


def test_the_deviation_is_that_of_the_source() -> None:
    sensor = wall(4.0)
    sensor[:, :, 80:] = NAN
    _, _, deviation = fuse(sensor, wall(4.0), wall(0.3), FusionSettings(noise=0.002))
    assert deviation[0, 5, 5] == pytest.approx(0.032)
    assert deviation[0, 5, -1] == pytest.approx(0.3)


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (97, 131), (33, 1000), (8, 8)])
def test_opencv_computes_what_the_plain_version_does(size: tuple[int, int]) -> None:
    parts = scene(*size)
    host = fuse(*parts)
    plain = fused_depth._fuse(*parts, FusionSettings())
    same = host[1] == plain[1]
    assert same.float().mean() > 0.9999
    for a, b in zip(host[::2], plain[::2], strict=True):
        a, b = (part[same].nan_to_num(-1.0, 99.0, -1.0) for part in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cameras_of_a_batch_do_not_mix() -> None:
    one, other = scene(97, 131, 1), scene(97, 131, 2)
    for function in (fuse, lambda *parts: fused_depth._fuse(*parts, FusionSettings())):
        together = function(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
        for k, parts in enumerate((one, other)):
            for a, b in zip(together, function(*parts), strict=True):
                torch.testing.assert_close(a[k], b[0], equal_nan=True)


def test_nothing_is_changed_in_place() -> None:
    parts = scene(97, 131)
    before = [part.clone() for part in parts]
    fuse(*parts)
    fused_depth._fuse(*parts, FusionSettings())
    for a, b in zip(parts, before, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)


def test_no_step_of_the_plain_version_depends_on_values() -> None:
    class Fusion(torch.nn.Module):
        def forward(self, sensor: Tensor, depth: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
            return fused_depth._fuse(sensor, depth, sigma, FusionSettings())

    parts = scene(97, 131)
    program = torch.export.export(Fusion(), parts)  # refuses what a graph could not repeat
    for a, b in zip(program.module()(*parts), Fusion()(*parts), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 120, 160\), \(1, 60, 160\)"):
        fuse(wall(1.0), wall(1.0, 60), wall(1.0))
    with pytest.raises(ValueError, match=r"must be of one shape \(B, H, W\)"):
        fuse(*(wall(1.0)[0] for _ in range(3)))


def check_triton(parts: tuple[Tensor, ...], settings: FusionSettings) -> Tensor:
    """Triton's version beside the plain one."""
    from dpt_ros.engine.output import triton_fused_depth as triton

    actual = triton.fuse(*parts, settings)
    with plain_torch():
        expected = fused_depth._fuse(*parts, settings)
    same = actual[1] == expected[1]
    assert same.float().mean() > 0.9999
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.is_contiguous()
        torch.testing.assert_close(one[same], other[same], rtol=1e-5, atol=1e-6, equal_nan=True)
    kept = actual[1] == SENSOR
    assert torch.equal(actual[0][kept], parts[0][kept])
    return actual[1]


def interpret() -> None:
    """Every kernel without a GPU."""
    from helpers.interpreted import Interpreter

    from dpt_ros.engine.output import triton_fused_depth as triton

    triton_launch.run, s = Interpreter().launch, FusionSettings()
    origins = set()
    # As they are on a GPU, then in larger blocks: the interpreter's time is that of operations.
    for block, batch, height, width in (
        (256, 1, 12, 100), (256, 2, 1, 1), (8192, 2, 97, 131),
        (8192, 1, 72, 648), (8192, 1, 200, 20),
    ):  # fmt: skip
        triton._BLOCK, triton._AROUND_BLOCK = block, block
        cameras = [scene(height, width, seed) for seed in range(batch)]
        parts = tuple(torch.cat(one) for one in zip(*cameras, strict=True))
        origins.update(check_triton(parts, s).unique().tolist())
    assert origins == {NONE, SENSOR, NETWORK}
    changed = FusionSettings(0.5, 4.0, 0.1, 0.02, 1.3, 0.1, 1.02, 0.01)
    check_triton(parts, changed)
    usual = fused_depth.grid_of
    for cell, step in ((8, 2), (7, 1)):  # in several rounds, as cells of large images are
        fused_depth.grid_of = triton.grid_of = lambda width, found=(cell, step): found
        triton._BLOCK = 16
        check_triton(scene(20, 28), s)
    fused_depth.grid_of = triton.grid_of = usual
    triton._BLOCK = 8192
    # A mirror and its rim; a network that has everything from 0 on
    sensor = wall(2.0)
    sensor[:, 30:90, 50:110], sensor[:, 80:84], sensor[:, 84:90, 50:110] = 5.0, 2.6, NAN
    depth = wall(2.0)
    depth[:, 0, :6] = torch.tensor([0.0, -0.0, 1e-42, -1.0, 1e38, 3e38])
    origin = check_triton((sensor, depth, wall(0.1)), replace(s, edge=2.0))
    assert (origin[:, 81:83, 52:108] == NETWORK).all()
    assert (origin[:, 81:83, :30] == SENSOR).all()
    for wrong in (wall(1.0).double(), wall(1.0).mT.contiguous().mT):
        with pytest.raises(ValueError, match="contiguous float32 maps"):
            triton.fuse(wall(1.0), wrong, wall(1.0), s)
    print("interpreted")


def test_every_kernel_equals_plain_torch_and_stays_within_its_memory() -> None:
    pytest.importorskip("triton")
    from helpers.interpreted import run_interpreted

    assert run_interpreted(__file__, "interpret").endswith("interpreted\n")


KERNELS = ["decide", "weigh", "pull", "push", "select"]


def launch_all(batch: int, height: int, width: int) -> None:
    """Every kernel, on memory that holds nothing."""
    from dpt_ros.engine.output import triton_fused_depth as triton

    maps = (torch.empty(batch, height, width) for _ in range(3))
    triton.fuse(*maps, FusionSettings())


@pytest.mark.parametrize("batch", [1, 4])
def test_five_kernels_fuse_a_batch_of_any_size(batch: int) -> None:
    pytest.importorskip("triton")
    calls: list[str] = []
    with launched_by(lambda kernel, *rest: calls.append(kernel.__name__)):
        launch_all(batch, 48, 64)
    assert calls == [f"{name}_kernel" for name in KERNELS]


@pytest.mark.parametrize("size", [(48, 64), (480, 640), (1080, 1920)])
@pytest.mark.parametrize("arch", [80, 86, 87, 89, 90, 100, 120])
def test_every_kernel_compiles_for_every_gpu_and_keeps_to_its_registers(
    arch: int, size: tuple[int, int]
) -> None:
    pytest.importorskip("triton")
    from helpers.cubins import ARCHS, compile_launch, stack_bytes

    assert arch in ARCHS
    cubins: dict[str, bytes] = {}
    with launched_by(compile_launch(arch, cubins)):
        launch_all(2, *size)
    stacks = {name: stack_bytes(cubin) for name, cubin in cubins.items()}
    assert stacks == {f"{name}_0": 0 for name in KERNELS}


@pytest.mark.gpu
def test_every_kernel_equals_plain_torch_on_a_gpu() -> None:
    for size in ((240, 320), (480, 640), (97, 131), (33, 1000), (8, 8)):
        parts = tuple(part.repeat(2, 1, 1).cuda() for part in scene(*size))
        check_triton(parts, FusionSettings())


if __name__ == "__main__":
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for size in ((240, 320), (480, 640)):
        maps, seconds = scene(*size), []
        for _ in range(200):
            start = time.thread_time()
            fuse(*maps)
            seconds.append(time.thread_time() - start)
        best, median = 1e3 * min(seconds), 1e3 * float(np.median(seconds))
        print(f"{size[1]}x{size[0]}: least {best:.2f} ms, median {median:.2f} ms")
