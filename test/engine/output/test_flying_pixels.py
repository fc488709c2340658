# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.flying_pixels import flying_pixel_mask, remove_flying_pixels

CAMERA = CameraModel(320, 240, 277.0, 277.0, 159.5, 119.5)


def plane(degrees, distance=3.0, camera=CAMERA):
    """Depth of a wall that is turned by an angle about the picture's vertical, (H, W)."""
    x = (torch.arange(camera.width) - camera.cx) / camera.fx
    a = np.radians(degrees)
    z = distance * np.cos(a) / (np.cos(a) - x * np.sin(a))
    z = torch.where(z > 0, z, torch.inf)
    return z.expand(camera.height, -1).float()


def box_before_a_wall(blur):
    """Depth with an edge at column 160, ``blur`` pixels wide: 2 m to the left, 4 to the right."""
    x = torch.arange(320, dtype=torch.float32)
    share = ((x - 160) / max(blur, 1e-6) + 0.5).clamp(0, 1)
    return (2 + 2 * share).expand(240, -1).contiguous()


def test_what_hangs_between_two_depths_is_smeared_and_the_surfaces_are_not():
    depth = box_before_a_wall(blur=6)
    mask = flying_pixel_mask(depth, CAMERA, 85.0)
    between = (depth > 2.2) & (depth < 3.8)
    assert mask[between].all()
    assert not mask[:, :150].any()
    assert not mask[:, 170:].any()


def test_a_wall_is_kept_at_every_angle_below_the_limit():
    for degrees in (0, 30, 50):  # of incidence in the middle; 30 degrees more at the border
        assert not flying_pixel_mask(plane(degrees), CAMERA, 85.0).any()


def test_a_surface_seen_more_grazing_than_the_limit_is_taken_away():
    floor = 0.6 / torch.arange(1, 121).flip(0).clamp(min=1).float() * 277.0
    depth = floor.flip(0)[:, None].expand(-1, 320).contiguous()  # row 0 is at the horizon
    mask = flying_pixel_mask(depth, CameraModel(320, 120, 277.0, 277.0, 159.5, 0.0), 80.0)
    assert mask[:5].all()
    assert not mask[60:].any()


@pytest.mark.parametrize("far", [float("inf"), float("nan")])
def test_the_border_to_the_sky_is_an_edge(far):
    depth = torch.full((240, 320), 3.0)
    depth[:100] = far
    mask = flying_pixel_mask(depth, CAMERA, 85.0)
    assert mask[98:102].all()
    assert not mask[110:].any()
    cleaned = remove_flying_pixels(depth, CAMERA, 85.0)
    # Beyond range stays beyond range: there is no point that could be in the wrong place.
    torch.testing.assert_close(cleaned[:100], depth[:100], equal_nan=True)
    assert cleaned[100:102].isnan().all()


def test_the_same_scene_in_twice_the_size_is_smeared_at_the_same_places():
    small = box_before_a_wall(blur=6)
    big = CameraModel(640, 480, 554.0, 554.0, 319.5, 239.5)
    large = torch.nn.functional.interpolate(small[None, None], size=(480, 640), mode="bilinear")
    a = flying_pixel_mask(small, CAMERA, 85.0)
    b = flying_pixel_mask(large[0, 0], big, 85.0)[::2, ::2]
    assert (a != b).float().mean() < 0.02


def test_a_strip_of_the_picture_is_smeared_where_the_whole_is():
    depth = box_before_a_wall(blur=0)
    strip = CameraModel(320, 60, 277.0, 277.0, 159.5, 29.5)
    whole = flying_pixel_mask(depth, CAMERA, 85.0)
    torch.testing.assert_close(flying_pixel_mask(depth[90:150], strip, 85.0), whole[90:150])


def test_intrinsics_of_another_size_are_scaled():
    # 0.0375 per pixel of a change of log depth: more than 75 degrees at this size, less than 80
    depth = torch.exp(torch.arange(320) * 0.0157).expand(240, -1).contiguous()
    big = CameraModel(960, 720, 831.0, 831.0, 479.5, 359.5)
    assert flying_pixel_mask(depth, big, 75.0)[:, 10:-10].all()
    assert not flying_pixel_mask(depth, big, 78.0).any()


@pytest.mark.parametrize("distance", [0.1, 0.4, 20.0])
def test_an_edge_is_seen_at_any_distance_and_in_a_tiny_picture(distance):
    depth = box_before_a_wall(blur=0) / 2 * distance
    assert flying_pixel_mask(depth, CAMERA, 85.0)[:, 159:161].all()
    tiny = CameraModel(40, 30, 34.6, 34.6, 19.5, 14.5)
    assert flying_pixel_mask(depth[:30, 140:180].contiguous(), tiny, 60.0)[:, 19:21].all()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 400),
    seed=st.integers(0, 2**16),
    degrees=st.floats(1, 89.9),
)
def test_any_depth_image_gives_a_mask_of_its_size(height, width, seed, degrees):
    rng = np.random.default_rng(seed)
    depth = rng.choice([0.5, 1.0, 7.0, np.nan, np.inf, 0.0], (height, width)).astype(np.float32)
    camera = CameraModel(width, height, 300.0, 300.0, width / 2, height / 2)
    mask = flying_pixel_mask(torch.from_numpy(depth), camera, degrees)
    assert mask.shape == (height, width)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("degrees", [0.0, 90.0, 120.0, -3.0, float("nan")])
def test_an_angle_that_is_none_is_refused(degrees):
    with pytest.raises(ValueError, match="must be between 0 and 90"):
        flying_pixel_mask(torch.ones(4, 4), CAMERA, degrees)
