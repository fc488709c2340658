# SPDX-License-Identifier: Apache-2.0
"""dpt_run: files for a folder of everything, resumed, refused, interrupted; the golden cases."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.golden import golden_photo, golden_state, load_case, reference_cases
from helpers.picture_files import encoded, kinds, picture, write_video
from PIL import Image

from dpt_ros.apps.run import command, main
from dpt_ros.run.videos import VideoReader

SMALL = ("-p", "input_width:=96", "-p", "input_height:=64")
FILES = ["color/{}.png", "depth/{}.pfm", "depth/{}.png", "labels/{}.png", "overlay/{}.png"]


def files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def times(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in files(out)}


def write(folder: Path, *names: str) -> Path:
    """Pictures, each another part of a room."""
    folder.mkdir(exist_ok=True)
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture((48, 64), seed=k), "PNG"))
    return folder


def start(*words: object) -> int:
    return main([*map(str, words), *SMALL])


def test_a_folder_of_mixed_pictures_gives_all_results_but_one_and_one_name(
    tmp_path, capsys
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    contents = kinds(picture((37, 52)))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "broken.jpg").write_bytes(contents["plain.jpg"][:500])
    out = tmp_path / "out"
    assert start(folder, out) == 3
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "broken" in line]
    assert line.startswith(f"{folder / 'broken.jpg'}: it is damaged: ")
    assert f"{len(contents)} done in" in said.out
    assert f"1 could not be read; results in {out}" in said.out
    assert len(files(out)) == len(FILES) * len(contents) + 1
    # Several are plain.*, deep.* and so on: these keep their suffixes.
    assert "depth/plain.jpg.png" in files(out)
    assert "depth/grey_alpha.png" in files(out)
    turned = cv2.imread(str(out / "depth" / "turned.JPG.pfm"), cv2.IMREAD_UNCHANGED)
    assert turned.shape == (52, 37)


def test_a_picture_gives_maps_of_its_size_in_every_format(tmp_path) -> None:
    folder = write(tmp_path / "in", "room.png")
    out = tmp_path / "out"
    outputs = "png,pfm,npy,color,labels,overlay"
    assert start(folder / "room.png", out, "--outputs", outputs, "--absolute-depth") == 0
    assert files(out) == sorted(
        [f.format("room") for f in [*FILES, "depth/{}.npy"]] + ["dpt_run.json"]
    )
    metres = np.load(out / "depth" / "room.npy")
    assert (metres.dtype, metres.shape) == (np.float32, (48, 64))
    deep = cv2.imread(str(out / "depth" / "room.png"), cv2.IMREAD_UNCHANGED)
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep, (metres * np.float32(1000)).astype(np.uint16))
    labels = np.asarray(Image.open(out / "labels" / "room.png"))
    assert labels.shape == (48, 64)
    assert set(np.unique(labels)) <= set(range(1, 11))
    assert Image.open(out / "overlay" / "room.png").mode == "RGBA"


def test_complete_results_are_passed_over_and_the_rest_is_computed(tmp_path, capsys) -> None:
    folder, out = write(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    assert start(folder, out) == 0
    before = times(out)
    (out / "color" / "b.png").unlink()
    later = before["depth/c.png"] + 10**9
    os.utime(folder / "c.png", ns=(later, later))  # changed since
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes())
    capsys.readouterr()
    assert start(folder, out) == 0
    said = capsys.readouterr()
    assert "1 complete before, passed over." in said.err
    assert "3 done in" in said.out
    after = times(out)
    assert {name for name in before if after[name] == before[name]} == {
        *(form.format("a") for form in FILES),
        "dpt_run.json",
    }
    # More outputs of the same settings are added.
    assert start(folder, out, "--outputs", "npy") == 0
    assert "depth/a.npy" in files(out)


def test_results_of_other_settings_are_refused_and_replaced_on_request(tmp_path, capsys) -> None:
    folder, out = write(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    assert start(folder, out) == 0
    before = times(out)
    assert start(folder, out, "--absolute-depth") == 1
    said = capsys.readouterr().err
    assert f"{out} was made with other settings (--absolute-depth: False, now True)" in said
    assert times(out) == before
    assert start(folder, out, "-p", "scale.factor:=2.0") == 1
    assert "scale.factor: 1.0, now 2.0" in capsys.readouterr().err
    assert start(folder, out, "--absolute-depth", "--overwrite") == 0
    after = times(out)
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in before)


def test_an_overwriting_run_that_was_interrupted_leaves_nothing_old_as_done(
    tmp_path, monkeypatch
) -> None:
    folder, out = write(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    assert start(folder, out) == 0

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "predict_pictures", stopped)
        assert start(folder, out, "--absolute-depth", "--overwrite") == 130
    before = times(out)
    assert start(folder, out, "--absolute-depth") == 0
    after = times(out)
    assert all(after[name] > before[name] for name in before if name != "dpt_run.json")


def test_what_dpt_run_did_not_write_is_never_touched(tmp_path, capsys) -> None:
    folder = write(tmp_path / "in", "a.png")
    for out, message in ((folder, "holds files that dpt_run did not write"),
                         (folder / "a.png", "is a file; give a folder")):  # fmt: skip
        assert start(folder, out, "--overwrite") == 2
        assert message in capsys.readouterr().err
    assert files(folder) == ["a.png"]


def test_results_inside_of_the_input_are_not_read_again(tmp_path, capsys) -> None:
    folder = write(tmp_path / "in", "a.png", "sub/b.png")
    for _ in range(2):
        assert start(folder, folder / "out", "--recursive", "--outputs", "color") == 0
        assert start(folder, folder / "more", "--recursive", "--outputs", "color") == 0
    assert files(folder / "more") == ["color/a.png", "color/sub/b.png", "dpt_run.json"]


def test_an_interruption_leaves_whole_files_and_the_next_run_does_the_rest(
    tmp_path, monkeypatch, capsys
) -> None:
    folder, out = write(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    real = command.predict_pictures

    def stopped(*args: object):
        results = real(*args)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "predict_pictures", stopped)
    assert start(folder, out, "--outputs", "png") == 130
    said = capsys.readouterr().err
    assert "Interrupted after 1 of 3. The same command passes over what is complete" in said
    assert not list(out.rglob(".*"))
    monkeypatch.setattr(command, "predict_pictures", real)
    assert start(folder, out, "--outputs", "png") == 0
    assert files(out) == ["depth/a.png", "depth/b.png", "depth/c.png", "dpt_run.json"]


def test_a_full_disk_ends_the_run_with_its_message_and_no_half_file(
    tmp_path, monkeypatch, capsys
) -> None:
    folder, out = write(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    real = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".b.pfm.new"):
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert start(folder, out, "--outputs", "pfm") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert "depth/a.pfm" in files(out)
    assert "depth/b.pfm" not in files(out)


def test_a_video_gives_one_video_of_image_depth_and_labels(tmp_path, capsys) -> None:
    path, out = tmp_path / "clip.mp4", tmp_path / "out"
    write_video(path, 8)
    assert start(path, out) == 0
    assert "1 done (8 frames of videos)" in capsys.readouterr().out
    assert files(out) == ["dpt_run.json", "video/clip.mp4"]
    frames = list(VideoReader(out / "video" / "clip.mp4"))
    assert [pixels.shape for _, _, pixels in frames] == [(96, 384, 3)] * 8
    assert [stamp for _, stamp, _ in frames] == [k * 100_000_000 for k in range(8)]
    assert start(path, out) == 0
    assert "1 complete before" in capsys.readouterr().err


def test_a_video_gives_the_maps_of_each_frame_on_request_and_starts_anew_if_interrupted(
    tmp_path, monkeypatch, capsys
) -> None:
    folder, out = write(tmp_path / "in", "a.png"), tmp_path / "out"
    write_video(folder / "clip.mp4", 7)
    words = (folder, out, "--outputs", "png,labels,video", "--every", "3")
    real = command.predict_video

    def stopped(*args: object):
        results = real(*args)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "predict_video", stopped)
    assert start(*words) == 130
    assert "A video is started anew." in capsys.readouterr().err
    assert "video/clip.mp4" not in files(out)
    monkeypatch.setattr(command, "predict_video", real)
    assert start(*words) == 0
    assert "1 done (3 frames of videos)" in capsys.readouterr().out
    numbers = ("000000", "000003", "000006")
    maps = [f"{kind}/clip/{number}.png" for kind in ("depth", "labels") for number in numbers]
    stamps = ["depth/clip/stamps.csv", "labels/clip/stamps.csv"]
    assert files(out) == sorted(
        [*maps, *stamps, "depth/a.png", "labels/a.png", "video/clip.mp4", "dpt_run.json"]
    )
    assert (out / stamps[0]).read_text() == "frame,seconds\n0,0.000000\n3,0.300000\n6,0.600000\n"
    before = times(out)
    assert start(*words) == 0
    assert times(out) == before


def test_a_webcam_is_recorded_until_ctrl_c(tmp_path, monkeypatch, capsys) -> None:
    """A camera of a test: whether a real one works was not tried."""

    class Camera:
        def __init__(self, number: int) -> None:
            assert number == 0
            self.left = 4

        def isOpened(self) -> bool:
            return True

        def set(self, name: int, value: float) -> None: ...

        def get(self, name: int) -> float:
            return 10.0 if name == cv2.CAP_PROP_FPS else -1.0

        def grab(self) -> bool:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return True

        def retrieve(self):
            return True, picture((48, 64))[..., ::-1].copy()

        def release(self) -> None: ...

    out = tmp_path / "out"
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert start("0", out) == 0
    assert "Stopped after 2 frames." in capsys.readouterr().err  # two more were under way
    (video,) = [name for name in files(out) if name != "dpt_run.json"]
    assert video.startswith("video/camera0_")
    monkeypatch.undo()
    assert len(list(VideoReader(out / video))) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere out", 2, "nowhere does not exist: expected a picture, a video or a folder"),
        ("in out -p scale.source:=ground", 2, "scale.source is ground, but must be auto or"),
        ("in out -p devise:=cpu", 2, "Unknown parameter 'devise' (did you mean 'device'?)"),
        ("in out --network dpt_hybrid_nyu --network dpt_hybrid_kitti", 2, "both predict depth"),
        ("in out --network dpt_hybrid_midas", 1, "No weights of dpt_hybrid_midas are on this"),
        ("in out --outputs labels -p label_network:=none", 1, "The networks have no labels"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    words, code, message, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("DPT_ROS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", "a.png")
    assert main(words.split()) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_opencv_4_and_5_are_silenced_each_in_its_way(tmp_path, monkeypatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    monkeypatch.delattr(cv2.utils, "logging", raising=False)  # as in OpenCV 4
    assert start(tmp_path / "nowhere", tmp_path / "out") == 2
    assert levels == [0]


def test_a_run_without_any_result_has_failed(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    assert start(tmp_path / "a.png", tmp_path / "out") == 1


def test_the_folder_says_what_it_was_made_with(tmp_path) -> None:
    folder, out = write(tmp_path / "in", "a.png"), tmp_path / "out"
    assert start(folder, out, "--outputs", "png") == 0
    record = json.loads((out / "dpt_run.json").read_text())
    assert record["networks"] == ["dpt_hybrid_embedded", "dpt_hybrid_embedded"]
    assert record["parameters"]["input_width"] == 96
    assert record["torch"] == torch.__version__
    (out / "dpt_run.json").write_text("{")
    assert start(folder, out, "--outputs", "png") == 1
    assert start(folder, out, "--outputs", "png", "--overwrite") == 0


TASKS = {
    "nyu": ("dpt_hybrid_nyu", "depth_hybrid", ("--absolute-depth",)),
    "kitti": ("dpt_hybrid_kitti", "depth_hybrid", ("--absolute-depth", "--kitti-crop")),
    "ade": ("dpt_hybrid_ade20k", "seg_hybrid", ()),
    "midas": ("dpt_hybrid_midas", "depth_hybrid", ()),
}


@pytest.mark.parametrize("case", reference_cases("e2e_"))
def test_files_hold_what_the_published_scripts_write(case, tmp_path) -> None:
    arrays, meta = load_case(case)
    network, state, options = TASKS[meta["task"]]
    weights, out = tmp_path / "weights.pt", tmp_path / "out"
    torch.save(golden_state(state), weights)
    photo = golden_photo(meta["seed"], *meta["photo_shape"][:2])
    (tmp_path / "a.png").write_bytes(encoded(photo, "PNG"))
    words = [tmp_path / "a.png", out, "--network", network, "--weights", weights, *options]
    assert main([str(word) for word in words]) == 0
    weights.unlink()
    if meta["task"] == "ade":
        labels = np.asarray(Image.open(out / "labels" / "a.png"))
        close = np.unpackbits(arrays["close"])[: labels.size].reshape(labels.shape).astype(bool)
        np.testing.assert_array_equal(labels[~close], arrays["labels"][~close])
        return
    share = 3e-4 if meta["task"] == "kitti" else 5e-5
    pfm = cv2.imread(str(out / "depth" / "a.pfm"), cv2.IMREAD_UNCHANGED)
    assert np.abs(pfm[::4, ::4] - arrays["prediction"]).max() <= share * meta["max"]
    png = np.asarray(Image.open(out / "depth" / "a.png")).astype(int)
    counts = 3e-4 * meta["max"] if meta["task"] == "kitti" else 4
    assert np.abs(png[::4, ::4] - arrays["png16"]).max() <= counts
