# SPDX-License-Identifier: Apache-2.0
"""``dpt_ros.run.run``: pictures as published, videos steadily, what is broken by its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.networks import embedded_networks
from helpers.picture_files import encoded, kinds, picture, write_video
from helpers.places import ROOT

from dpt_ros.engine import predict_image
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model
from dpt_ros.run import Result, run
from dpt_ros.run import videos as run_videos
from dpt_ros.run.videos import VideoReader, VideoWriter

NETWORKS = embedded_networks()
SMALL = Settings(input_width=96, input_height=64)


def predict(source: Path | int, settings: Settings = SMALL, **options: object) -> list[Result]:
    return list(run(source, settings, networks=NETWORKS, **options))  # type: ignore[arg-type]


def flicker(maps: list[np.ndarray]) -> float:
    """Mean change between frames, of what does not move."""
    return float(np.mean([np.abs(a - b).mean() for a, b in pairwise(maps)]))


def test_pictures_are_predicted_as_predict_image_does_with_the_published_network(tmp_path) -> None:
    rgb = picture((90, 130))
    (tmp_path / "a.png").write_bytes(encoded(rgb, "PNG"))
    (result,) = predict(tmp_path, Settings())
    expected = predict_image(create_model("dpt_hybrid_embedded"), rgb)
    np.testing.assert_array_equal(result.picture, rgb)
    assert result.depth is not None
    assert result.inverse_depth is None
    np.testing.assert_allclose(result.depth, expected["depth"], rtol=1e-4)
    assert (result.labels != expected["labels"]).mean() < 1e-3
    assert result.source == tmp_path / "a.png"


def test_a_folder_of_all_kinds_gives_a_result_for_each_and_a_name_for_what_is_broken(
    tmp_path,
) -> None:
    for name, content in kinds(picture((37, 52))).items():
        (tmp_path / name).write_bytes(content)
    whole = encoded(picture((240, 320)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    problems = {}
    results = predict(tmp_path, on_error=lambda path, reason: problems.update({path.name: reason}))
    assert [result.source.name for result in results] == sorted(kinds(picture((37, 52))))
    for result in results:
        assert result.depth.shape == result.labels.shape == result.picture.shape[:2]
        assert np.isfinite(result.depth).all()
    assert sorted(problems) == ["cut.jpg", "gone.png"]
    assert "damaged: image file is truncated" in problems["cut.jpg"]
    assert problems["gone.png"] == "it cannot be read: No such file or directory."


def test_by_default_what_cannot_be_read_is_a_warning(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.warns(UserWarning, match=r"a\.png: it is no picture"):
        assert predict(tmp_path) == []


def test_settings_hold_for_pictures(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture((90, 130)), "PNG"))
    plain = predict(tmp_path)[0].depth
    doubled = predict(tmp_path, Settings(input_width=96, input_height=64, scale_factor=2.0))[0]
    np.testing.assert_allclose(doubled.depth, 2 * plain, rtol=1e-6)
    far = float(np.median(plain))
    limited = predict(tmp_path, Settings(input_width=96, input_height=64, max_range=far))[0]
    np.testing.assert_array_equal(np.isinf(limited.depth), plain > far)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_size": "network"}, "output_size is network, but must be input"),
        ({"points.stride": 4}, "points.stride is 4, but must be 1"),
        ({"scale.source": "anchors"}, "scale.source is anchors, but must be auto or network"),
        ({"colour_range": 3.0}, "'colour_range' is not a parameter"),
    ],
)
def test_settings_that_pictures_cannot_have_are_refused_before_anything_is_loaded(
    settings, message, tmp_path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, settings)


def test_a_picture_too_long_for_the_network_or_too_small_for_the_crop_is_named(tmp_path) -> None:
    (tmp_path / "long.png").write_bytes(encoded(picture((64, 8000)), "PNG"))
    (tmp_path / "wide.png").write_bytes(encoded(picture((360, 1300)), "PNG"))
    problems: list[str] = []
    (result,) = predict(
        tmp_path, kitti_crop=True, on_error=lambda path, reason: problems.append(reason)
    )
    assert result.picture.shape == (352, 1216, 3)
    assert result.depth.shape == (352, 1216)
    np.testing.assert_array_equal(result.picture, picture((360, 1300))[8:, 42:1258])
    assert "but KITTI's crop needs at least 352 x 1216" in problems[0]
    predict(tmp_path / "long.png", on_error=lambda path, reason: problems.append(reason))
    assert "would enter the network as" in problems[1]


def test_a_video_is_computed_frame_by_frame_in_order_with_its_stamps(tmp_path) -> None:
    path = tmp_path / "clip.mp4"
    frames = write_video(path, 12)
    results = predict(path)
    assert [result.number for result in results] == list(range(12))
    assert [result.stamp_ns for result in results] == [k * 100_000_000 for k in range(12)]
    for result, frame in zip(results, frames, strict=True):
        assert np.abs(result.picture.astype(int) - frame[..., ::-1]).mean() < 6  # MPEG-4 is lossy
        assert result.depth.shape == result.labels.shape == frame.shape[:2]
    assert [result.number for result in predict(path, every=5)] == [0, 5, 10]
    crop = []
    assert predict(path, kitti_crop=True, on_error=lambda path, reason: crop.append(reason)) == []
    assert "KITTI's crop" in crop[0]


def test_a_video_is_smoothed_and_pictures_are_not(tmp_path) -> None:
    """A camera that stands still, with noise: smoothing removes more than half of the flicker."""
    random = np.random.default_rng(0)
    still = picture((96, 128))
    writer = VideoWriter(tmp_path / "still.mp4", 10.0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(10):
        noisy = np.clip(still + random.normal(0, 12, still.shape), 0, 255).astype(np.uint8)
        writer.write(noisy, k * 100_000_000)
        (folder / f"{k}.png").write_bytes(encoded(noisy, "PNG"))
    writer.close()
    smooth = flicker([result.depth for result in predict(tmp_path / "still.mp4")][3:])
    off = Settings(input_width=96, input_height=64, smoothing_strength=0.0)
    raw = flicker([result.depth for result in predict(tmp_path / "still.mp4", off)][3:])
    assert smooth < 0.5 * raw
    assert flicker([result.depth for result in predict(folder)]) > smooth


def test_a_video_that_ends_early_gives_what_there_is_and_a_name(tmp_path, monkeypatch) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (128, 96))
    for _ in range(40):
        writer.write(picture((96, 128)))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    problems: list[str] = []
    results = predict(path, on_error=lambda path, reason: problems.append(reason))
    assert 10 < len(results) < 30
    assert problems == [f"it ends after {len(results)} of 40 frames."]


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_what_is_no_video_is_named(content, tmp_path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    problems: list[str] = []
    assert predict(path, on_error=lambda path, reason: problems.append(reason)) == []
    assert problems == ["it is no video that OpenCV can read, or it is damaged."]


def test_a_webcam_that_is_not_there_says_what_to_check() -> None:
    problems: list[str] = []
    assert predict(63, on_error=lambda path, reason: problems.append(f"{path}: {reason}")) == []
    assert problems[0].startswith("/dev/video63: it cannot be opened: is the camera connected")


@pytest.mark.parametrize("with_av", [True, False])
def test_a_video_has_the_frames_and_stamps_that_were_written(
    with_av, tmp_path, monkeypatch
) -> None:
    if not with_av:
        monkeypatch.setattr(run_videos, "av", None)
    path = tmp_path / "out" / "clip.mp4"
    writer = VideoWriter(path, 10.0)
    stamps = [0, 100, 200, 450, 500]  # ms; a frame was lost
    for k, stamp in enumerate(stamps):
        writer.write(np.full((51, 101, 3), 40 * k, np.uint8), 7_000_000_000 + stamp * 1_000_000)
    assert not path.exists()
    writer.close()
    reader = VideoReader(path)
    frames = list(reader)
    assert [pixels.shape for _, _, pixels in frames] == [(50, 100, 3)] * 5
    assert [round(pixels.mean() / 40) for _, _, pixels in frames] == [0, 1, 2, 3, 4]
    expected = stamps if with_av else [0, 100, 200, 300, 400]
    assert [stamp / 1e6 for _, stamp, _ in frames] == pytest.approx(expected, abs=1)
    assert (reader.problem, [p.name for p in path.parent.iterdir()]) == ("", ["clip.mp4"])


def test_a_video_that_was_not_completed_leaves_nothing(tmp_path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", 10.0)
    writer.write(np.zeros((50, 100, 3), np.uint8), 0)
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_it_works_where_neither_ros_nor_rosbags_are_installed(tmp_path) -> None:
    """The code of docs/without_ros.md, word for word."""
    page = (ROOT / "docs" / "without_ros.md").read_text("utf-8")
    (block,) = re.findall(r"<!-- run by a test -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(picture((48, 64)), "PNG"))
    missing = ("rclpy", "rosbags", "sensor_msgs", "std_msgs", "av")
    code = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n{block}"
    python = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=python, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.png (48, 64) ")
