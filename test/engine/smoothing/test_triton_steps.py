# SPDX-License-Identifier: Apache-2.0
"""Triton's versions of the filter's steps beside the plain ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.interpreted import launched_by
from helpers.plain_torch import plain_torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine import triton_launch
from dpt_ros.engine.output import postprocess
from dpt_ros.engine.packed import length, pack, unpack
from dpt_ros.engine.smoothing import steps
from dpt_ros.engine.smoothing.maps import pixel_grid, sample
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS

pytest.importorskip("triton")

FLAGS = ("fresh", "has_flow", "has_ego", "has_odometry")
# A fresh camera has no other flag.
ALL_FLAGS = [(0, *one) for one in itertools.product((0, 1), repeat=3)] + [(1, 0, 0, 0)]
ROTATION = np.array([[1, -0.01, 0.02], [0.01, 1, -0.015], [-0.02, 0.015, 1.0]])
SHIFT = np.array([0.03, -0.02, 0.08])


def textured(rng: np.random.Generator, *shape: int) -> Tensor:
    """Smooth random maps, 0..1."""
    small = torch.from_numpy(rng.random((1, shape[0], 6, 8), np.float32))
    return F.interpolate(small, shape[1:], mode="bilinear")[0]


def numbers_of(flags: tuple[int, ...], height: int, width: int, noise: float) -> np.ndarray:
    camera = np.array([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    values: dict[str, Any] = dict(zip(FLAGS, flags, strict=True))
    values |= {
        "measurement_noise": noise, "process_noise": 1e-5, "min_gain": 0.02, "label_gain": 0.3,
        "leak": 0.1, "flow_leak": 0.2, "moving_gain": 0.3, "rotation": ROTATION, "shift": SHIFT,
        "to_grid": camera, "from_grid": np.linalg.inv(camera), "free_sigma": 0.05,
        "prior_sigma": np.repeat([0.006, 0.02], 3),
    }  # fmt: skip
    return pack(FILTER_FIELDS, values)


class Scene:
    """Frames of a batch of cameras, and the filter's state: a static scene, in which a part of
    the image moves by itself.

    Args:
        flags: of each camera.
        what: "static"; "lost": no motion of a camera explains the flow; "cut": the state is of
            another scene; "empty": no pixel is valid.
    """

    def __init__(
        self, flags: list[tuple[int, ...]], height: int, width: int, what: str = "static"
    ) -> None:
        rng = np.random.default_rng(height)
        batch = len(flags)
        packed = [numbers_of(one, height, width, 0.05 + 0.01 * k) for k, one in enumerate(flags)]
        # As a part of a longer vector
        self.numbers = torch.from_numpy(np.stack(packed)).repeat(1, 2)[:, : len(packed[0])]
        truth = 0.1 + textured(rng, batch, height, width)
        pixels = pixel_grid(height, width, torch.device("cpu")).flatten(1)
        n = {name: x[0] for name, x in unpack(FILTER_FIELDS, self.numbers).items()}
        moved = n["to_grid"] @ n["rotation"] @ n["from_grid"] @ pixels
        moved = moved + (n["to_grid"] @ n["shift"])[:, None] * truth.flatten(1)[:, None]
        moved = (moved[:, :2] / moved[:, 2:]).view(batch, 2, height, width)
        before = textured(rng, batch, height, width) * 200 + 20
        luma = sample(before[:, None], moved)[:, 0]

        def noise(*shape: int) -> Tensor:
            return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

        position = moved + 0.1 * noise(*moved.shape)
        residual = 3 * noise(batch, height, width).abs()
        # Two parts move, one of them at the border; lines at the border are noise.
        moving = torch.zeros(height, width, dtype=torch.bool)
        moving[4:12, 6:18] = moving[-5:, -10:-3] = True
        moving[0] = moving[:, 0] = moving[:, -1] = True
        position[:, 0] += 6 * moving
        luma += 60 * moving
        residual += 22 * moving
        alone = torch.from_numpy(rng.random((batch, height, width)) < 0.02)
        position += 5 * alone[:, None]
        if what == "lost":
            position += 7 * noise(*moved.shape).sign()
            luma += 50
        invalid = torch.from_numpy(rng.choice(8, size=truth.shape))
        state = truth * (1 + 0.03 * noise(*truth.shape))
        if what == "cut":
            state = 0.1 + 2 * textured(rng, batch, height, width).flip(1)
        self.raw = (truth * (1 + 0.04 * noise(*truth.shape)) - 0.02) / 1.1
        for k, value in enumerate((np.nan, 0.0, -1.0, np.inf)):
            place = (invalid == k) if what == "empty" else (invalid == k) & alone
            self.raw = torch.where(place | (what == "empty"), value, self.raw)
        variance = 1e-3 * textured(rng, batch, height, width)
        variance = torch.where(alone.roll(3), 0.3, variance)
        self.maps = torch.stack([state, variance, before, alone.roll(5).float()], 1)
        self.luma = luma
        self.seen = torch.cat(
            [torch.zeros(batch, 3, height, width), position, residual[:, None],
             torch.from_numpy(rng.random((batch, 2, height, width), np.float32))], 1
        )  # fmt: skip
        valid = torch.isfinite(self.raw) & (self.raw > 0)
        self.seen[:, 0] = torch.where(valid, self.raw, steps.MIN_INVERSE_DEPTH)
        self.seen[:, 1] = valid.float()
        self.seen[:, 2] = luma
        self.affine = torch.tensor([[1.08, 0.03]]).repeat(batch, 3)[:, :2]
        self.age = torch.arange(1.0, batch + 1)
        self.metric_affine = torch.tensor([[1.12, 0.015]]).repeat(batch, 1)
        self.correlation = torch.tensor([[1.05, 0.1 if what == "cut" else 0.9]]).repeat(batch, 1)
        for camera, (fresh, has_flow, *_) in enumerate(flags):
            if fresh:
                for x in (self.maps, self.affine, self.age):
                    x[camera] = torch.nan
            if fresh or not has_flow:
                self.seen[camera, 3:] = torch.nan if fresh else 9.0
                self.correlation[camera, 0] = torch.nan if fresh else 9.0

    def to(self, device: str) -> Scene:
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self


def close(actual: Tensor, expected: Tensor, share: float = 1.0, tolerance: float = 2e-4) -> None:
    """Equal but for rounding, by which a few pixels may fall to the other side of a limit."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    equal = torch.isclose(actual, expected, tolerance, tolerance, equal_nan=True)
    wrong = (~equal).nonzero()
    most = (1 - share) * equal.numel()
    assert len(wrong) <= most, (len(wrong), actual[~equal][:9], expected[~equal][:9], wrong[:9])


def check_look(triton: Any, device: str, size: tuple[int, int], small: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    raw = torch.from_numpy(rng.normal(size=(2, *size)).astype(np.float32))
    raw[0, :5, :5], raw[1, 0, 0], raw[1, 1, 0] = torch.nan, torch.inf, 1e-9
    raw[1, 2, :2] = torch.tensor([1e9, 1e20])
    luma = torch.from_numpy(rng.random((2, *small), np.float32)).to(device)
    flow = torch.from_numpy(rng.normal(size=(2, 5, *small)).astype(np.float32)).to(device)
    raw = raw.to(device)
    with plain_torch():
        expected = steps.look(raw, luma, flow)
    close(triton.look(raw, luma, flow), expected)


def check_register(triton: Any, scene: Scene) -> Tensor:
    s = scene
    given = (s.seen, s.maps, s.affine, s.age, s.metric_affine, s.correlation, s.numbers)
    with plain_torch():
        expected = steps.register(*given)
    actual = triton.register(*given)
    found, wanted = (unpack(MOTION_FIELDS, x) for x in (actual, expected))
    known = unpack(FILTER_FIELDS, s.numbers)["fresh"] == 0
    for name in MOTION_FIELDS:
        every = known if name in ("fit", "inliers") else slice(None)  # mean nothing if fresh
        close(found[name][every], wanted[name][every])
    return expected


def check_blend(triton: Any, scene: Scene, motion: Tensor) -> tuple[Tensor, ...]:
    s = scene
    given = (s.seen, s.raw, s.maps, motion, s.correlation, s.numbers)
    with plain_torch():
        expected = steps.blend(*given)
    actual = triton.blend(*given)
    *others, position = zip(actual, expected, strict=True)
    # At large maps the same place in pixels is known to 1e-5 only, which matters beside what has
    # another variance.
    tolerance = 5e-3 if s.raw.is_cuda else 2e-4
    for one, other in others:
        close(one, other, 0.998, tolerance)
    known = unpack(FILTER_FIELDS, s.numbers)["fresh"] == 0
    close(position[0][known], position[1][known], 0.998)
    assert position[0].isfinite().all()
    return actual


def check_logits(
    triton: Any, scene: Scene, position: Tensor, gain: Tensor, logits: Tensor
) -> None:
    previous = torch.nan_to_num(logits.roll(1, 0).float(), 0.0, 0.0, 0.0)
    previous[unpack(FILTER_FIELDS, scene.numbers)["fresh"] > 0] = torch.nan
    # Of another layout; of another size; none
    other = previous.contiguous(memory_format=torch.channels_last)
    for past in (other, previous[..., :-1], None):
        with plain_torch():
            expected = steps.smooth_logits(logits, past, position, gain, scene.numbers)
        actual = triton.smooth_logits(logits, past, position, gain, scene.numbers)
        close(actual, expected)
        beside = logits.stride(1) == 1
        form = torch.channels_last if beside else torch.contiguous_format
        assert actual.is_contiguous(memory_format=form)


def check_everything(triton: Any, scene: Scene, small: tuple[int, int]) -> None:
    size = scene.raw.shape[1:]
    check_look(triton, scene.raw.device, size, small)
    motion = check_register(triton, scene)
    _, _, _, gain, position = check_blend(triton, scene, motion)
    for classes, dtype, form, shape in (
        (35, torch.float16, "padded", small),
        (2, torch.float32, "nhwc", size),
        (3, torch.float16, "nchw", size),
    ):
        logits = logits_of((len(scene.raw), classes, *shape), form, dtype).to(gain.device)
        check_logits(triton, scene, position, gain, logits)


def logits_of(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    rng = np.random.default_rng(shape[1])
    values = torch.from_numpy(rng.normal(size=shape).astype(np.float32) * 3).to(dtype)
    values[:, 0, 0, :2] = torch.nan
    values[:, -1, 1, 1] = torch.inf
    if layout == "nchw":
        return values
    values = values.contiguous(memory_format=torch.channels_last)
    if layout == "padded":  # as the fused label head gives them
        more = torch.zeros(shape[0], shape[1] + 2, *shape[2:], dtype=dtype)
        more = more.contiguous(memory_format=torch.channels_last)
        more[:, : shape[1]] = values
        return more[:, : shape[1]]
    return values


def interpret() -> None:
    """Every kernel without a GPU."""
    from helpers.interpreted import Interpreter

    from dpt_ros.engine.smoothing import triton_steps as triton

    postprocess.on_host = lambda values: False  # torch computes, as on a GPU
    triton_launch.run = Interpreter().launch
    usual = [(0, 1, 1, 1), (1, 0, 0, 0), (0, 1, 1, 0)]
    # As they are on a GPU, then in larger blocks: the interpreter's time is that of operations.
    check_everything(triton, Scene(usual[:2], 21, 33), (9, 13))
    for name, value in (("_BLOCK", 1024), ("_SAMPLES_BLOCK", 1024), ("_TILE", 2**15)):
        setattr(triton, name, value)
    for k in range(0, 9, 3):
        scene = Scene(ALL_FLAGS[k : k + 3], 24, 33)
        motion = check_register(triton, scene)
        check_blend(triton, scene, motion)
    for what, reliable, reset_code in (("lost", 0, 0), ("cut", 1, 1), ("empty", 1, 2)):
        scene = Scene(usual[::2], 23, 34, what)
        motion = check_register(triton, scene)
        found = unpack(MOTION_FIELDS, motion)
        assert (found["reliable"][0], found["reset_code"][0]) == (reliable, reset_code), what
        check_blend(triton, scene, motion)
    check_register(triton, Scene(usual[:1], 96, 130))  # every second pixel
    for size, small in (((19, 26), (24, 32)), ((21, 16), (33, 40)), ((16, 20), (16, 20))):
        check_look(triton, "cpu", size, small)
    check_refusals(triton)
    print("interpreted")


def check_refusals(triton: Any) -> None:
    s = Scene([(0, 1, 1, 1)], 16, 20)
    motion = torch.zeros(1, length(MOTION_FIELDS))
    logits, position = torch.zeros(1, 3, 16, 20), s.seen[:, 3:5].contiguous()
    for words, call in (
        ("float32", lambda: triton.look(s.raw.half(), s.luma, s.seen[:, :5])),
        ("strides", lambda: triton.look(s.raw, s.luma, s.seen[:, :5].mT.contiguous().mT)),
        ("shape", lambda: triton.blend(
            s.seen, s.raw, s.maps, motion[:, 1:], s.correlation, s.numbers)),
        ("one piece", lambda: triton.blend(
            s.seen, s.raw, s.maps, motion, s.correlation, s.numbers[:, 1:])),
        ("evenly spaced", lambda: triton.smooth_logits(
            logits.mT, None, position, s.raw, s.numbers)),
        ("float64", lambda: triton.smooth_logits(
            logits.double(), None, position, s.raw, s.numbers)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()


def test_every_kernel_equals_plain_torch_and_stays_within_its_memory() -> None:
    from helpers.interpreted import run_interpreted

    assert run_interpreted(__file__, "interpret").endswith("interpreted\n")


def launch_all(batch: int, height: int, width: int) -> None:
    """Every wrapper, on memory that holds nothing."""
    from dpt_ros.engine.smoothing import triton_steps as triton

    raw, luma = torch.empty(batch, height, width), torch.empty(batch, 240, 320)
    pairs, numbers = torch.empty(batch, 2), torch.empty(batch, length(FILTER_FIELDS))
    maps, age = torch.empty(batch, 4, height, width), torch.empty(batch)
    seen = triton.look(raw, luma, torch.empty(batch, 5, 240, 320))
    motion = triton.register(seen, maps, pairs, age, pairs, pairs, numbers)
    found = triton.blend(seen, raw, maps, motion, pairs, numbers)
    logits = torch.empty(batch, height // 2, width // 2, 152, dtype=torch.float16)
    logits = logits.movedim(3, 1)[:, :150]
    previous = torch.empty(logits.shape, memory_format=torch.channels_last)
    triton.smooth_logits(logits, previous, found[4], found[3], numbers)


def test_five_kernels_filter_a_batch_of_any_size() -> None:
    for batch in (1, 4):
        calls: list[str] = []
        with launched_by(lambda kernel, *rest, calls=calls: calls.append(kernel.__name__)):
            launch_all(batch, 48, 64)
        names = ("look", "register", "moving", "update", "smooth_logits")
        assert calls == [f"{name}_kernel" for name in names]


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_every_kernel_compiles_without_a_gpu_and_keeps_to_its_registers(arch: int) -> None:
    from helpers.cubins import compile_launch, stack_bytes

    cubins: dict[str, bytes] = {}
    with launched_by(compile_launch(arch, cubins)):
        launch_all(2, 480, 640)
    assert {name: stack_bytes(cubin) for name, cubin in cubins.items()} == {
        f"{name}_0": 0 for name in ("look", "register", "moving", "update", "smooth_logits")
    }


@pytest.mark.gpu
def test_every_kernel_equals_plain_torch_on_a_gpu() -> None:
    from dpt_ros.engine.smoothing import triton_steps as triton

    for flags in (ALL_FLAGS, [(0, 1, 1, 1)]):
        check_everything(triton, Scene(flags, 240, 320).to("cuda"), (120, 160))
    for what in ("lost", "cut", "empty"):
        check_everything(triton, Scene([(0, 1, 1, 0)], 480, 640, what).to("cuda"), (240, 320))
