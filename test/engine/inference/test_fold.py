# SPDX-License-Identifier: Apache-2.0
"""Folding keeps the output of a network."""

from __future__ import annotations

import pytest
import torch
from timm.layers import StdConv2d, StdConv2dSame
from torch import nn

from dpt_ros.engine.inference.fold import fold
from dpt_ros.model import create_model


@pytest.mark.parametrize("name", ["dpt_hybrid_ade20k", "dpt_hybrid_embedded"])
def test_a_folded_network_gives_the_same_and_has_nothing_left_to_fold(name):
    torch.manual_seed(1)
    model = create_model(name, weights="random", fold=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    picture = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before = model(picture)
        fold(model)
        after = model(picture)
    left = (nn.BatchNorm2d, nn.Dropout2d, StdConv2d, StdConv2dSame)
    assert not [m for m in model.modules() if isinstance(m, left)]
    assert model.auxiliary_head is None
    assert before.keys() == after.keys()
    for task, expected in before.items():
        assert (after[task] - expected).abs().max() <= 2e-5 * expected.abs().max()
