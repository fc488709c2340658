# SPDX-License-Identifier: Apache-2.0
"""Losses: invariances, values worked out by hand, and gradients that point the right way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpt_ros.model.losses import (
    gradient_matching,
    label_loss,
    median_align,
    metric_loss,
    robust_alignment,
    scale_shift_invariant_loss,
    silog_loss,
    trimmed_mae,
)


def sample(
    seed: int = 0, shape: tuple[int, ...] = (2, 16, 20)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.rand(shape, generator=g),
        torch.rand(shape, generator=g) + 0.1,
        torch.rand(shape, generator=g) > 0.3,
    )


def test_median_align_worked_out_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0, 4.0, 100.0]]])
    known = torch.tensor([[[True, True, True, False]]])
    # median 2, mean absolute deviation (1 + 0 + 2) / 3 = 1; the unknown pixel becomes 0
    assert median_align(x, known).flatten().tolist() == pytest.approx([-1.0, 0.0, 2.0, 0.0])


def test_the_relative_loss_ignores_the_predictions_scale_and_shift() -> None:
    p, t, m = sample()
    scale, shift = (
        torch.tensor([3.0, 0.2])[:, None, None],
        torch.tensor([-5.0, 7.0])[:, None, None],
    )
    a = scale_shift_invariant_loss(p, t, m)
    b = scale_shift_invariant_loss(scale * p + shift, t, m)
    assert a > 0.01
    assert b == pytest.approx(float(a), rel=1e-3)
    assert scale_shift_invariant_loss(scale * t + shift, t, m) < 1e-5


def test_the_trim_drops_the_largest_residuals_of_every_image() -> None:
    residual = torch.tensor([[[1.0, -2.0, 3.0, 4.0, 100.0]]])
    known = torch.ones_like(residual, dtype=torch.bool)
    # a fifth of five pixels is one; and the mean is over all five, halved
    assert trimmed_mae(residual, known, 0.2) == pytest.approx(10 / (2 * 5))
    assert trimmed_mae(residual, known, 0.0) == pytest.approx(110 / (2 * 5))
    hidden = known.clone()
    hidden[..., 4] = False
    assert trimmed_mae(residual, hidden, 0.0) == pytest.approx(10 / (2 * 4))


def test_gradient_matching_agrees_with_a_plain_loop() -> None:
    r, _, m = sample(3, (1, 9, 11))
    want = 0.0
    for s in (1, 2, 4):
        a, k = r[0, ::s, ::s].numpy(), m[0, ::s, ::s].numpy()
        total = 0.0
        for y in range(a.shape[0]):
            for x in range(a.shape[1]):
                if x + 1 < a.shape[1] and k[y, x] and k[y, x + 1]:
                    total += abs(a[y, x + 1] - a[y, x])
                if y + 1 < a.shape[0] and k[y, x] and k[y + 1, x]:
                    total += abs(a[y + 1, x] - a[y, x])
        want += total / max(k.sum(), 1)
    assert gradient_matching(r, m, 3) == pytest.approx(want, rel=1e-5)


def test_the_metric_loss_is_relative_and_depends_on_scale() -> None:
    _, t, m = sample(4)
    everywhere = torch.ones_like(m)
    assert metric_loss(t, t, everywhere) == 0
    near, far = torch.full((1, 4, 4), 1.0), torch.full((1, 4, 4), 0.05)
    ones = torch.ones((1, 4, 4), dtype=torch.bool)
    assert metric_loss(1.1 * near, near, ones) == pytest.approx(np.log(1.1), rel=1e-4)
    assert metric_loss(1.1 * far, far, ones) == pytest.approx(np.log(1.1), rel=1e-4)


def test_the_metric_loss_is_zero_beyond_the_floor() -> None:
    sky = torch.zeros(1, 4, 4)
    ones = torch.ones_like(sky, dtype=torch.bool)
    assert metric_loss(torch.full_like(sky, 0.01), sky, ones, floor=0.02) == 0
    assert metric_loss(torch.full_like(sky, 0.04), sky, ones, floor=0.02) == pytest.approx(
        np.log(2), rel=1e-5
    )


@pytest.mark.parametrize("loss", [scale_shift_invariant_loss, metric_loss, silog_loss])
def test_unknown_pixels_have_no_influence_and_no_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    p, t, m = sample(5)
    wild = t.masked_fill(~m, float("nan"))
    p.requires_grad_()
    value = loss(p, wild, m)
    value.backward()
    assert value.item() == pytest.approx(float(loss(p.detach(), t, m)))
    assert torch.isfinite(p.grad).all()
    assert (p.grad[~m] == 0).all()
    assert (p.grad[m] != 0).any()


@pytest.mark.parametrize("loss", [scale_shift_invariant_loss, metric_loss, silog_loss])
def test_an_image_without_any_truth_costs_nothing(loss) -> None:  # type: ignore[no-untyped-def]
    p, t, m = sample(6)
    p.requires_grad_()
    value = loss(p, t, torch.zeros_like(m))
    value.backward()
    assert value == 0
    assert torch.isfinite(p.grad).all()


def test_silog_is_eigens_formula_and_forgives_half_of_a_common_factor() -> None:
    p, t, m = sample(8)
    want = []
    for k in range(len(p)):
        d = (p[k][m[k]].clamp(min=1e-3).log() - t[k][m[k]].log()).double().numpy()
        n = len(d)
        want.append((d**2).sum() / n - 0.5 * d.sum() ** 2 / n**2)
    assert silog_loss(p, t, m, alpha=0) == pytest.approx(np.mean(want), rel=1e-5)
    ones = torch.ones_like(m)
    assert silog_loss(2 * t, t, ones, variance_focus=1.0) == pytest.approx(0, abs=1e-5)
    assert silog_loss(2 * t, t, ones) == pytest.approx(0.5 * np.log(2) ** 2, rel=1e-4)
    assert silog_loss(p, t, m) > silog_loss(p, t, m, alpha=0)


def test_robust_alignment_finds_scale_and_shift_despite_outliers() -> None:
    _, t, m = sample(9)
    prediction = (t - 0.25) / 0.3
    scale, shift = robust_alignment(prediction, t.masked_fill(~m, torch.nan), m)
    assert scale.tolist() == pytest.approx([0.3, 0.3], rel=1e-4)
    assert shift.tolist() == pytest.approx([0.25, 0.25], rel=1e-3)
    scale, shift = robust_alignment(torch.ones_like(t), t, m)
    assert scale.isnan().all()


def test_label_loss_is_cross_entropy_over_what_is_judged() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=g)
    labels = torch.randint(-1, 3, (2, 4, 5), generator=g)
    weight = torch.tensor([0.5, 1.0, 2.0])
    for w in (None, weight):
        want = F.cross_entropy(logits, labels, w, ignore_index=-1)
        assert label_loss(logits, labels, w) == pytest.approx(float(want), rel=1e-5)
    assert label_loss(logits, torch.full_like(labels, -1), weight) == 0


@pytest.mark.parametrize("loss", [scale_shift_invariant_loss, metric_loss, silog_loss])
def test_shares_of_a_batch_add_up_to_its_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    p, t, m = sample(10)
    m[1, 3:] = False  # one share knows much less than the other
    whole = p.clone().requires_grad_()
    loss(whole, t, m).backward()
    known: list[list[torch.Tensor]] = []
    for k in (0, 1):
        known.append([])
        loss(p[k : k + 1], t[k : k + 1], m[k : k + 1], share=lambda n: (known[-1].append(n), n)[1])
    means = [(a + b) / 2 for a, b in zip(*known, strict=True)]
    for k in (0, 1):
        part, turn = p[k : k + 1].clone().requires_grad_(), iter(means)
        loss(part, t[k : k + 1], m[k : k + 1], share=lambda n, turn=turn: next(turn)).backward()
        torch.testing.assert_close(part.grad[0] / 2, whole.grad[k])


def test_following_the_gradient_lowers_the_loss() -> None:
    p, t, m = sample(7)
    p.requires_grad_()
    start = scale_shift_invariant_loss(p, t, m)
    optimizer = torch.optim.Adam([p], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = scale_shift_invariant_loss(p, t, m)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * start
