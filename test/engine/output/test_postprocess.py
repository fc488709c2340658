# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpt_ros.engine.output.color import (
    depth_to_color,
    inverse_to_color,
    labels_to_color,
    with_words,
)
from dpt_ros.engine.output.postprocess import classify, resize_depth, resize_labels


@pytest.mark.parametrize("classes", [1, 10, 16, 17, 150])
@pytest.mark.parametrize("size", [(12, 16), (31, 45)])
def test_labels_are_the_argmax_of_bicubic_logits_plus_one(classes, size):
    logits = torch.randn(2, classes, 12, 16, generator=torch.Generator().manual_seed(classes))
    whole = F.interpolate(logits, size, mode="bicubic", align_corners=False)
    labels, confidence = classify(logits, size, confidence=True)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), whole.argmax(dim=1) + 1)
    expected = whole.softmax(dim=1).amax(dim=1) * 255
    torch.testing.assert_close(confidence.float(), expected, atol=0.51, rtol=0)
    assert torch.equal(labels, classify(logits, size)[0])
    assert classify(logits, size)[1] is None


def test_the_first_of_two_equal_classes_wins_across_parts():
    logits = torch.zeros(1, 40, 2, 2)
    logits[:, [5, 30]] = 1.0
    assert classify(logits, (2, 2))[0].unique().tolist() == [6]


def test_depth_of_the_right_size_is_left_alone():
    depth = torch.rand(1, 6, 8)
    assert torch.equal(resize_depth(depth, (6, 8)), depth)
    assert resize_depth(depth, (12, 16)).shape == (1, 12, 16)


@pytest.mark.parametrize("size", [(12, 16), (31, 45), (5, 7)])
def test_the_fast_depth_resize_is_the_exact_one_to_a_ten_thousandth_of_a_pixel(size):
    depth = torch.rand(2, 10, 14, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(depth[:, None], size, mode="bicubic", align_corners=False)[:, 0]
    assert torch.equal(resize_depth(depth, size), expected)
    torch.testing.assert_close(resize_depth(depth, size, exact=False), expected, rtol=0, atol=1e-4)


def test_class_ids_are_resized_to_ids_that_were_there():
    labels = torch.tensor([[[1, 9], [4, 255]]], dtype=torch.uint8)
    large = resize_labels(labels, (4, 4))[0]
    assert large.tolist() == [[1, 1, 9, 9], [1, 1, 9, 9], [4, 4, 255, 255], [4, 4, 255, 255]]
    assert torch.equal(resize_labels(large[None], (2, 2)), labels)


def test_one_colour_means_one_distance_in_every_frame():
    near = depth_to_color(np.array([[1.0, 2.0]], np.float32), 10.0)
    far = depth_to_color(np.array([[1.0, 9.0]], np.float32), 10.0)
    np.testing.assert_array_equal(near[0, 0], far[0, 0])
    assert near[0, 0].sum() > near[0, 1].sum() > far[0, 1].sum()


def test_unknown_depth_is_black_and_infinite_depth_is_far():
    colors = depth_to_color(np.array([[np.nan, np.inf, 10.0]], np.float32), 10.0)
    assert colors[0, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(colors[0, 1], colors[0, 2])


def test_inverse_depth_is_bright_where_near():
    colors = inverse_to_color(np.array([[0.0, 50.0, 100.0, 200.0]], np.float32), 100.0)
    assert colors[0, 0].sum() < colors[0, 1].sum() < colors[0, 2].sum()
    np.testing.assert_array_equal(colors[0, 2], colors[0, 3])


def test_words_on_a_picture_can_be_seen_on_any_ground():
    for shade in (0, 128, 255):
        picture = with_words(np.full((240, 320, 3), shade, np.uint8), "RANDOM WEIGHTS")
        assert (picture[:40] != shade).any()
        assert (picture[60:] == shade).all()


def test_labels_take_their_colour_from_the_palette():
    palette = np.arange(768, dtype=np.int64).reshape(256, 3).astype(np.uint8)
    labels = np.array([[0, 3, 255]], np.uint8)
    np.testing.assert_array_equal(labels_to_color(labels, palette)[0], palette[[0, 3, 255]])
