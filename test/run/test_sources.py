# SPDX-License-Identifier: Apache-2.0
"""What a path stands for, and the names of the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.picture_files import encoded, picture

from dpt_ros.run.sources import RECORD, find_sources

PNG = encoded(picture((8, 8)), "PNG")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return folder


def found(folder: Path, recursive: bool = True) -> dict[str, str]:
    """Name of the result by path."""
    sources, _ = find_sources(folder, recursive)
    return {str(source.path.relative_to(folder)): source.name for source in sources}


def test_results_have_the_published_names_where_these_are_unique(tmp_path) -> None:
    fill(tmp_path, "a.jpg", "b.JPG", "sub/a.png", "x.y.png")
    assert found(tmp_path) == {
        "a.jpg": "a",
        "b.JPG": "b",
        "x.y.png": "x.y",
        "sub/a.png": "sub/a",
    }


def test_no_two_results_have_one_name(tmp_path) -> None:
    fill(tmp_path, "a.jpg", "a.png", "A.bmp", "a.jpg.png", "clip.mp4", "clip/b.png", "c", "c.png")
    names = found(tmp_path)
    assert names["a.jpg"] == "a.jpg"
    assert names["a.png"] == "a.png"
    assert names["A.bmp"] == "A.bmp"
    assert names["a.jpg.png"] == "a.jpg.png"
    assert names["clip.mp4"] == "clip.mp4"  # clip is the folder of other results
    assert names["clip/b.png"] == "clip/b"
    assert len({name.casefold() for name in names.values()}) == len(names) == 8


def test_only_pictures_and_videos_are_taken_and_hidden_files_and_results_are_not(tmp_path) -> None:
    fill(tmp_path, "a.png", ".b.png", "without_suffix", ".git/c.png", "old/depth/a.png", "d.HEIC")
    (tmp_path / "old" / RECORD).write_text("{}")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "clip.MOV").write_text("a video, says its name")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    sources, others = find_sources(tmp_path, recursive=True)
    kinds = {source.path.name: source.kind for source in sources}
    assert kinds == {
        "a.png": "picture",
        "without_suffix": "picture",
        "d.HEIC": "picture",
        "gone.jpg": "picture",  # will be named as one that cannot be read
        "clip.MOV": "video",
    }
    assert [path.name for path in others] == ["notes.txt"]


def test_sub_folders_are_read_on_request_and_the_folder_of_results_never(tmp_path) -> None:
    fill(tmp_path, "a.png", "sub/b.png", "out/depth/a.png")
    assert found(tmp_path, recursive=False) == {"a.png": "a"}
    sources, _ = find_sources(tmp_path, recursive=True, leave_out=tmp_path / "out")
    assert [source.name for source in sources] == ["a", "sub/b"]


def test_a_single_file_is_a_picture_by_its_contents_and_else_a_video(tmp_path) -> None:
    fill(tmp_path, "strange")
    (tmp_path / "recording").write_bytes(b"of something")
    assert find_sources(tmp_path / "strange")[0][0].kind == "picture"
    assert find_sources(tmp_path / "recording")[0][0].kind == "video"


@pytest.mark.parametrize("source", [3, "3", "/dev/video3", Path("/dev/video3")])
def test_a_webcam_is_a_number_or_a_device_and_its_result_has_the_time_in_its_name(source) -> None:
    (webcam,), _ = find_sources(source)
    assert (webcam.path, webcam.kind) == (Path("/dev/video3"), "webcam")
    assert re.fullmatch(r"camera3_\d{8}_\d{6}", webcam.name)


def test_a_folder_with_a_number_as_its_name_is_a_folder(tmp_path, monkeypatch) -> None:
    fill(tmp_path, "0/a.png")
    monkeypatch.chdir(tmp_path)
    assert find_sources("0")[0][0].name == "a"


def test_nothing_to_read_is_an_error_that_says_what_was_expected(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist: expected a picture, a video"):
        find_sources(tmp_path / "nowhere")
    fill(tmp_path, "sub/a.png")
    with pytest.raises(ValueError, match="no pictures or videos; --recursive looks into"):
        find_sources(tmp_path)
