# SPDX-License-Identifier: Apache-2.0
"""The steps of the scale: numpy on the host, plain torch, and Triton compute the same."""

import numpy as np
import pytest
import torch
from helpers.interpreted import Interpreter, run_interpreted
from helpers.plain_torch import plain_torch

from dpt_ros.engine import triton_launch
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output import postprocess
from dpt_ros.engine.scale import steps
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.scale.estimator import ScaleState, scale
from dpt_ros.engine.scale.plan import ScaleStats, describe, plan_scale
from dpt_ros.engine.settings import Settings

CAMERA = CameraModel(64, 48, 55.0, 55.0, 31.5, 23.5)
FRAME = 33_000_000
FLOOR = (2, 4)
FRAMES = 6


def recorded(seed, metric, ground):
    """Frames of a slanted wall over a floor, or of a flat wall, with good, wrong, few and no
    anchors: raw inverse depth, logits, numbers, and the host's reasons."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((48, 64), np.float32)
    truth = np.maximum(0.25 + 0.15 * x / 64, (y - 23.5) / 55 / 0.6)
    if seed == 2:
        truth[:] = 0.5
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(truth > 0.43).long(), 5).float()
    logits = one_hot.permute(2, 0, 1) + 0.1 * torch.from_numpy(rng.random((5, 48, 64))).float()
    history, frames = None, []
    for k in range(FRAMES):
        raw = truth * (1.3 + 0.05 * rng.standard_normal()) * np.where(x > 40, 1.1, 1)
        raw[:3], raw[3:5] = np.nan, 0
        u, v = rng.integers(1, 62, 200 + 20 * k), rng.integers(20, 47, 200 + 20 * k)
        metres = (1 + 0.02 * rng.standard_normal(len(u))) / truth[v, u]
        metres *= {3: 2.0, 4: rng.uniform(0.1, 10, len(u))}.get(k, 1.0)
        anchors = Anchors(*(part.astype(np.float32) for part in (u, v, metres)), k * FRAME, 64, 48)
        numbers, reason, history = plan_scale(
            history,
            Settings(scale_camera_height=0.6 if ground else 0.0),
            metric,
            1.0,
            k * FRAME,
            CAMERA,
            None if k in (0, 5) else anchors,
            np.array([0.0, 1.0, 0.0]),
            ground,
        )
        raw = torch.from_numpy(raw * (1 if metric else 500)).float()
        frames.append((raw, logits, torch.from_numpy(numbers), reason))
    return frames


def batches(metric, ground):
    """The same of two cameras side by side, numbers in rows of a larger tensor."""
    cameras = [recorded(seed, metric, ground) for seed in (1, 2)]
    for pair in zip(*cameras, strict=True):
        raw, logits, numbers = (torch.stack([one[k] for one in pair]) for k in range(3))
        wide = torch.full((2, numbers.shape[1] + 7), torch.nan)
        wide[:, 3:-4] = numbers
        yield raw, logits if ground else None, wide[:, 3:-4]


def garbage():
    state = ScaleState.empty(2)
    return ScaleState(*(part.fill_(torch.nan) for part in state))


def close(actual, expected, rtol, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)


def run(metric, ground):
    """All results of a pair of cameras, frame by frame."""
    constants = (metric, torch.tensor(FLOOR) if ground else None)
    state, results = garbage(), []
    for raw, logits, numbers in batches(metric, ground):
        state, *others = scale(state, raw, logits, numbers, *constants)
        results.append((*state, *others, steps.relative_variance(*others[:3])))
    return results


@pytest.mark.parametrize("metric", [True, False], ids=["metric", "relative"])
@pytest.mark.parametrize("ground", [True, False], ids=["floor", "anchors"])
def test_numpy_on_the_host_and_plain_torch_compute_the_same(metric, ground, monkeypatch):
    host = run(metric, ground)
    monkeypatch.setattr(postprocess, "on_host", lambda values: False)
    for one, other in zip(host, run(metric, ground), strict=True):
        for name, a, b in zip(("state", "table", "raw"), one, other, strict=False):
            close(a, b, rtol=1e-5, atol=1e-5 if name == "table" else 0.0)
        for a, b in zip(one[3:], other[3:], strict=True):
            close(a, b, rtol=1e-4)
    told = torch.stack([one[5] for one in host])
    states = {int(state) for state in told[..., ScaleStats._fields.index("state")].flatten()}
    assert states >= ({1, 3} if metric else {1, 3, 5})


def test_the_cameras_of_a_batch_do_not_depend_on_each_other():
    for k, one in enumerate((1, 2)):
        state = ScaleState.empty(1)
        for together, (raw, logits, numbers, _) in zip(
            run(True, True), recorded(one, True, True), strict=True
        ):
            constants = (True, torch.tensor(FLOOR))
            state, *others = scale(state, raw[None], logits[None], numbers[None], *constants)
            for a, b in zip((*state, *others), together, strict=False):
                close(a[0], b[k], rtol=0)


def test_what_a_state_holds_is_not_changed():
    batch = list(batches(True, False))[1]
    state = ScaleState.empty(2)
    numbers, table = state.numbers.clone(), state.table.clone()
    scale(state, batch[0], None, batch[2], True)
    assert torch.equal(state.numbers, numbers)
    assert torch.equal(state.table, table)


def test_diagnostics_name_source_state_and_reason():
    constants = (True,)
    state, told = ScaleState.empty(1), []
    for raw, _, numbers, reason in recorded(1, True, False):
        state, *_, stats = scale(state, raw[None], None, numbers[None], *constants)
        metric, names = describe(stats[0].numpy(), reason)
        assert metric
        told.append((names["scale source"], names["scale state"]))
    assert told[0] == ("network", "uncorrected")
    assert told[1] == ("anchors", "fitted")
    assert told[4:] == [("anchors", "held (not plausible)"), ("anchors", "held (no anchors)")]


# --- Triton


def check(triton, device, frames):
    for metric, ground in ((True, True), (False, True), (True, False)):
        floor = torch.tensor(FLOOR, device=device) if ground else None
        state = ScaleState(*(part.to(device) for part in garbage()))
        for k, batch in enumerate(batches(metric, ground)):
            raw, logits, numbers = (None if part is None else part.to(device) for part in batch)
            given = logits
            if ground:  # in half precision, one after the other class by class and pixel by pixel
                layout = torch.channels_last if k % 2 else torch.contiguous_format
                given = logits.half().contiguous(memory_format=layout)
                logits = given.float()
            with plain_torch():
                fits, seen = steps.fit_frame(raw, logits, numbers, floor)
                kept = steps.correct(*state, fits, seen, numbers, metric)
                corrected = steps.apply_table(raw, kept[1], kept[2])
                variance = steps.relative_variance(corrected, *kept[2:4])
            before, state = state, ScaleState(*kept[:2])
            if k not in frames:
                continue
            found = triton.fit_frame(raw, given, numbers, floor)
            assert torch.equal(found[1], seen)
            assert torch.equal(found[0][..., :2], fits[..., :2])
            fitted = fits[..., 0] <= 2
            close(found[0][fitted], fits[fitted], rtol=1e-5, atol=1e-9)
            results = triton.correct(*before, fits, seen, numbers, metric)
            close(results[0], kept[0], rtol=1e-9, atol=1e-15)
            close(results[1], kept[1], rtol=1e-4, atol=2e-6)
            for actual, expected in zip(results[2:], kept[2:], strict=True):
                close(actual, expected, rtol=1e-6)
            close(triton.apply_table(raw, *kept[1:3]), corrected, rtol=1e-5)
            close(triton.relative_variance(corrected, *kept[2:4]), variance, rtol=1e-5)


def check_refusals(triton):
    raw, _, numbers = next(batches(True, False))
    with pytest.raises(ValueError, match="contiguous float32 map"):
        triton.fit_frame(raw.double(), None, numbers, None)
    with pytest.raises(ValueError, match="takes float32 vectors"):
        triton.fit_frame(raw, None, numbers[:1], None)
    with pytest.raises(ValueError, match=r"maps of shape \(2, 64, 40\)"):
        triton.apply_table(raw, torch.zeros(2, 3, 4), torch.ones(2, 2))


def interpret():
    """Run in a process of its own with TRITON_INTERPRET=1: every kernel without a GPU."""
    from dpt_ros.engine.scale import triton_steps

    postprocess.on_host = lambda values: False
    check_refusals(triton_steps)
    triton_launch.run = Interpreter().launch
    with np.errstate(all="ignore"):
        check(triton_steps, "cpu", (0, 1, 4))
    print("interpreted")


def test_every_triton_kernel_equals_plain_torch_when_interpreted():
    pytest.importorskip("triton")
    assert run_interpreted(__file__, "interpret").endswith("interpreted\n")


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_every_triton_kernel_compiles_without_a_gpu(arch):
    pytest.importorskip("triton")
    from helpers.cubins import scale_cubins

    cubins = scale_cubins(arch)
    names = {name.rpartition("_")[0] for name in cubins}
    assert names == {"fit", "correct", "apply_table", "relative_variance"}
    assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())


@pytest.mark.parametrize("ground", [True, False])
def test_a_frame_on_a_gpu_is_four_launches_and_waits_for_nothing(ground):
    pytest.importorskip("triton")
    from helpers.fake_device import fake_gpu

    with fake_gpu() as gpu:
        raw, state = torch.empty(2, 48, 64, device="cuda"), ScaleState.empty(2, "cuda")
        numbers = torch.empty(2, next(batches(True, True))[2].shape[1], device="cuda")
        logits = torch.empty(2, 5, 24, 32, device="cuda") if ground else None
        floor = torch.empty(2, dtype=torch.int64, device="cuda") if ground else None
        gpu.counts.launches.clear()
        _, *others = scale(state, raw, logits, numbers, True, floor)
        steps.relative_variance(*others[:3])
        assert gpu.counts.total() == 4
        assert not gpu.counts.waits


@pytest.mark.gpu
def test_every_triton_kernel_on_a_gpu():
    pytest.importorskip("triton")
    from dpt_ros.engine.scale import triton_steps

    check(triton_steps, "cuda", range(FRAMES))
