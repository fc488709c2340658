# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros.engine.scale import steps
from dpt_ros.engine.scale.anchors import MAX_PAIRS

COLUMNS = (np.arange(80) + 0.5) / 80


class LocalCorrection:
    """The table of one camera."""

    def __init__(self):
        self.table = np.zeros((steps.DEPTHS, steps.COLUMNS), np.float32)

    def update(self, columns, seen, measured, seconds, limit_step):
        anchors, there = np.zeros((MAX_PAIRS, 3), np.float32), np.zeros(MAX_PAIRS, np.float32)
        anchors[: len(columns)] = np.stack([columns, 0 * columns + 0.5, measured], 1)
        there[: len(columns)] = seen
        last = np.float32(seconds), np.bool_(not limit_step), np.bool_(True)
        line = np.float32(1), np.float32(0)
        with np.errstate(all="ignore"):
            self.table = steps.update_table(self.table, anchors, there, *last, *line)

    def apply(self, raw, affine):
        table = torch.from_numpy(self.table)[None]
        return steps.apply_table(raw.float()[None], table, torch.tensor([affine]))[0]


def walls():
    """Inverse depth (240, 320): a wall at 4 m, before it to the right one at 2 m."""
    truth = torch.full((240, 320), 0.25)
    truth[:, 200:] = 0.5
    return truth


def scan_of(truth, network):
    """What a scan in row 150 says: columns, the network's and the true inverse depth."""
    x = (COLUMNS * 320).astype(int)
    return COLUMNS, network[150, x].double().numpy(), truth[150, x].double().numpy()


def taken(local, columns, seen, true, seconds):
    """The table of logarithms after these anchors, zeros for none."""
    local.update(columns, seen, true, seconds, limit_step=True)
    return local.table


def test_a_wall_that_is_too_near_and_a_box_that_is_too_far_are_both_set_right():
    truth = walls()
    network = truth * torch.where(truth < 0.4, 1.15, 0.9)
    local = LocalCorrection()
    local.update(*scan_of(truth, network), 0.0, limit_step=False)
    bent = local.apply(network, (1.0, 0.0))
    inside = torch.ones(320, dtype=torch.bool)
    inside[190:210] = False
    error = (bent / truth - 1).abs()[:, inside]
    assert error.max() < 0.03
    assert (network / truth - 1).abs().min() > 0.09


def test_rows_without_anchors_are_corrected_with_their_wall():
    truth = walls()
    network = truth * 1.15
    local = LocalCorrection()
    local.update(*scan_of(truth, network), 0.0, False)
    bent = local.apply(network, (1.0, 0.0))
    torch.testing.assert_close(bent[0], bent[150])


def test_other_depths_and_columns_are_left_alone():
    truth = walls()
    network = truth * 1.15
    network[:100, :100] = 2.0  # a lamp half a metre away, above the scan
    columns, seen, true = scan_of(truth, network)
    left = columns < 0.4
    local = LocalCorrection()
    local.update(columns[left], seen[left], true[left], 0.0, limit_step=False)
    bent = local.apply(network, (1.0, 0.0))
    torch.testing.assert_close(bent[:100, :100], network[:100, :100], rtol=1e-3, atol=0)
    torch.testing.assert_close(bent[:, 220:], network[:, 220:], rtol=1e-3, atol=0)


def test_the_far_end_of_a_wall_is_not_corrected_by_anchors_at_the_near_one():
    truth = torch.full((240, 320), 0.25)
    network = truth * 1.15
    columns, seen, true = scan_of(truth, network)
    left = columns < 0.4
    local = LocalCorrection()
    local.update(columns[left], seen[left], true[left], 0.0, limit_step=False)
    bent = local.apply(network, (1.0, 0.0))
    torch.testing.assert_close(bent[:, 240:], network[:, 240:], rtol=1e-3, atol=0)
    assert (bent / truth - 1)[:, :110].abs().max() < 0.03


def test_scale_and_shift_come_on_top():
    truth = walls()
    scale, shift = 0.002, 0.05
    network = (truth * 1.1 - shift) / scale
    local = LocalCorrection()
    columns, seen, true = scan_of(truth, network)
    local.update(columns, seen * scale + shift, true, 0.0, limit_step=False)
    bent = local.apply(network, (scale, shift)) * scale + shift
    assert (bent / truth - 1)[:, :180].abs().max() < 0.03


def test_an_anchor_of_something_else_changes_nothing():
    truth = walls()
    local = LocalCorrection()
    columns, seen, _ = scan_of(truth, truth)
    local.update(columns, seen, seen * 3, 0.0, limit_step=False)
    assert not local.table.any()


def test_from_frame_to_frame_it_moves_by_small_steps_and_fades_without_anchors():
    truth = walls()
    network = truth * 1.2
    local = LocalCorrection()
    tables = [np.zeros(1)]
    for _ in range(12):
        table = taken(local, *scan_of(truth, network), 0.1)
        assert np.abs(table - tables[-1]).max() < 0.031
        tables.append(table)
    assert tables[-1].min() == pytest.approx(np.log(1 / 1.2), abs=0.05)
    none = (np.zeros(0), np.zeros(0), np.zeros(0))
    faded = [taken(local, *none, 0.3) for _ in range(40)]
    assert 0 < np.abs(faded[0]).max() < np.abs(tables[-1]).max()
    assert not local.table.any()


def test_without_anchors_there_is_no_correction():
    truth = walls()
    local = LocalCorrection()
    assert not local.table.any()
    assert torch.equal(local.apply(truth, (1.0, 0.0)), truth)


def test_what_scale_and_shift_send_beyond_range_is_left_to_them():
    network = torch.tensor([[0.02, 0.5]] * 4)
    local = LocalCorrection()
    far = np.full(80, 0.03), np.full(80, 0.02)  # the farthest that the table knows
    local.update(COLUMNS, *far, 0.0, limit_step=False)
    bent = local.apply(network, (1.0, -0.03))
    torch.testing.assert_close(bent[:, 0], network[:, 0])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(0, 60), shift=st.floats(-0.5, 0.5))
def test_unknown_and_beyond_range_stay_and_the_rest_stays_positive(seed, count, shift):
    rng = np.random.default_rng(seed)
    network = torch.from_numpy(rng.choice([0.0, np.nan, 0.01, 0.3, 5.0], (24, 32))).float()
    local = LocalCorrection()
    local.update(rng.random(count), rng.random(count) + 0.01, rng.random(count) + 0.01, 0.1, False)
    bent = local.apply(network, (1.0, shift))
    same = ~(network > 0) | (network + shift <= 0)
    torch.testing.assert_close(bent[same], network[same], equal_nan=True)
    assert (bent[network > 0] > 0).all()
    assert bent.isfinite().eq(network.isfinite()).all()
