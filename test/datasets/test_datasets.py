# SPDX-License-Identifier: Apache-2.0
"""Readers of datasets, on tiny files of the published layouts."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_ros.datasets import DatasetError, list_datasets, open_dataset
from dpt_ros.world import CLASSES, KINDS, World

SHAPE = (6, 8)


def picture(path: Path, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Writes a picture without loss (whatever the name's ending says) and gives its pixels."""
    rgb = np.random.default_rng(len(path.name)).integers(0, 256, (*shape, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
    return rgb


def gray(path: Path, values: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)
    return values


def depth_png(path: Path, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    values = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape) * 100
    return gray(path, values)


def test_the_world_gives_what_it_renders() -> None:
    dataset = open_dataset("world", worlds=4, frames=2, width=48, height=32)
    assert len(dataset) == 8
    assert dataset.class_names == CLASSES
    sample = dataset[-1]
    seed, frame = (int(part) for part in sample.name.split("-")[1:])
    view = World(KINDS[seed % 3], seed, 48, 32).frame(frame)
    assert seed == 1_000_003
    assert np.array_equal(sample.rgb, view.rgb)
    assert np.array_equal(sample.depth, view.depth)
    assert np.array_equal(sample.labels, view.labels)
    assert sample.truth is None
    assert dataset[-1].name == dataset[7].name
    with pytest.raises(IndexError):
        dataset[8]


def test_frames_of_a_video_of_the_world_follow_each_other() -> None:
    dataset = open_dataset("world", worlds=2, frames=3, width=32, height=24, video=True, step=2)
    stamps = [sample.stamp_ns for sample in dataset]
    assert np.diff(stamps[:3]) == pytest.approx(1e9 / 15, abs=2)
    assert len({sample.sequence for sample in dataset}) == 2
    assert dataset[1].truth is not None
    assert dataset[1].truth.flow_valid.mean() > 0.5


def test_training_and_test_worlds_are_different_ones() -> None:
    one, other = (open_dataset("world", split=s, worlds=50)[::250] for s in ("train", "test"))
    assert one[0].name != other[0].name


def matlab(folder: Path) -> np.ndarray:
    """Three pictures of NYU Depth V2 as MATLAB stores them, and the split."""
    h5py, io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (3, 3, SHAPE[1], SHAPE[0]), np.uint8)
    depths = rng.uniform(1, 9, (3, SHAPE[1], SHAPE[0])).astype(np.float32)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"] = images, depths
        file["rawDepths"] = np.where(depths > 5, 0, depths)
    splits = {"trainNdxs": [[2]], "testNdxs": [[1], [3]]}
    io.savemat(folder / "splits.mat", splits)
    return images


def test_nyu_reads_the_published_mat_file(tmp_path: Path) -> None:
    images = matlab(tmp_path)
    raw, filled = (open_dataset("nyu", tmp_path, depth=kind)[1] for kind in ("raw", "filled"))
    assert len(open_dataset("nyu", tmp_path)) == 2
    assert open_dataset("nyu", tmp_path)[:1].variant == ".mat file, raw depth"  # type: ignore[attr-defined]
    assert len(open_dataset("nyu", tmp_path, "train")) == 1
    assert raw.name == "0003"
    assert np.array_equal(raw.rgb, images[2].transpose(2, 1, 0))
    assert raw.depth is not None
    assert filled.depth is not None
    assert np.isfinite(filled.depth).all()
    assert np.array_equal(np.isnan(raw.depth), filled.depth > 5)
    known = np.isfinite(raw.depth)
    assert raw.inverse is not None
    assert raw.inverse[known] == pytest.approx(1 / filled.depth[known])


def test_nyu_reads_the_extracted_folder_in_the_order_of_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "official_splits" / "test" / "bathroom"
    for number in (45, 46):
        rgb = picture(folder / f"rgb_{number:05d}.jpg")
        stored = depth_png(folder / f"sync_depth_{number:05d}.png")
    assert [s.name for s in open_dataset("nyu", tmp_path)] == [
        "bathroom/rgb_00045.jpg",
        "bathroom/rgb_00046.jpg",
    ]
    lines = "bathroom/rgb_00046.jpg bathroom/sync_depth_00046.png 518.8579\n"
    (tmp_path / "nyudepthv2_test_files_with_gt.txt").write_text(lines)
    dataset = open_dataset("nyu", tmp_path)
    assert len(dataset) == 1
    sample = dataset[0]
    assert np.array_equal(sample.rgb, rgb)
    assert sample.depth is not None
    assert np.isnan(sample.depth[0, 0])
    assert sample.depth.ravel()[1:] == pytest.approx(stored.ravel()[1:] / 1000)


DRIVE = "2011_09_26_drive_0002_sync"


def kitti(folder: Path) -> np.ndarray:
    date = folder / "2011_09_26"
    for number in (5, 69):
        rgb = picture(date / DRIVE / "image_02" / "data" / f"{number:010d}.png")
    truth = folder / "data_depth_annotated" / "val" / DRIVE / "proj_depth/groundtruth/image_02"
    depth_png(truth / "0000000069.png")
    p = [700.0, 0, 4, 1, 0, 710, 3, 2, 0, 0, 1, 0]
    line = "P_rect_02: " + " ".join(f"{value:e}" for value in p)
    (date / "calib_cam_to_cam.txt").write_text(f"corner_dist: 1e-1\n{line}\n")
    return rgb


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "eigen_test_files_with_gt.txt",
            f"2011_09_26/{DRIVE}/image_02/data/0000000005.png None 721.5377\n"
            f"2011_09_26/{DRIVE}/image_02/data/0000000069.png {DRIVE}/proj_depth/groundtruth/"
            "image_02/0000000069.png 721.5377\n",
        ),
        ("test_files.txt", f"2011_09_26/{DRIVE} 5 l\n2011_09_26/{DRIVE} 0000000069 l\n"),
    ],
)
def test_kitti_reads_both_kinds_of_lists(tmp_path: Path, name: str, lines: str) -> None:
    rgb = kitti(tmp_path)
    (tmp_path / name).write_text(lines)
    dataset = open_dataset("kitti", tmp_path, official_val=True)
    assert len(dataset) == 1
    assert "1 of the 2 listed images" in dataset.notes[0]
    sample = dataset[0]
    assert np.array_equal(sample.rgb, rgb)
    assert sample.depth is not None
    assert np.isnan(sample.depth[0, 0])
    assert sample.depth[0, 1] == pytest.approx(100 / 256)
    assert sample.camera is not None
    assert (sample.camera.fx, sample.camera.fy, sample.camera.cx) == (700, 710, 4)
    with pytest.raises(DatasetError, match=r"None of the 2 images .* has a depth map"):
        open_dataset("kitti", tmp_path, depth_root=str(tmp_path / "2011_09_26"))


def test_kitti_reads_the_selection_of_352_rows(tmp_path: Path) -> None:
    folder = tmp_path / "depth_selection" / "val_selection_cropped"
    name = f"{DRIVE}_{{}}_0000000005_image_02.png"
    picture(folder / "image" / name.format("image"))
    depth_png(folder / "groundtruth_depth" / name.format("groundtruth_depth"))
    assert len(open_dataset("kitti", tmp_path, selection=True)) == 1
    assert open_dataset("kitti", tmp_path, selection=True)[0].depth is not None


def test_eth3d_reads_raw_floats_beside_the_pictures(tmp_path: Path) -> None:
    rgb = picture(tmp_path / "office" / "images" / "dslr_images" / "DSC_0219.JPG")
    depth = np.linspace(1, 20, 48, dtype="<f4").reshape(SHAPE)
    depth[0] = np.inf
    path = tmp_path / "office" / "ground_truth_depth" / "dslr_images" / "DSC_0219.JPG"
    path.parent.mkdir(parents=True)
    depth.tofile(path)
    sample = open_dataset("eth3d", tmp_path)[0]
    assert sample.name == "office/DSC_0219.JPG"
    assert np.array_equal(sample.rgb, rgb)
    assert sample.depth is not None
    assert np.isnan(sample.depth[0]).all()
    assert np.array_equal(sample.depth[1:], depth[1:])
    depth[:3].tofile(path)
    with pytest.raises(DatasetError, match="holds 24 values, but its image has 8x6 pixels"):
        open_dataset("eth3d", tmp_path)[0]


def test_tum_pairs_pictures_with_the_nearest_depth(tmp_path: Path) -> None:
    folder = tmp_path / "rgbd_dataset_freiburg3_walking_xyz"
    for name in ("rgb/1.00.png", "rgb/1.03.png", "rgb/2.00.png"):
        picture(folder / name)
    stored = depth_png(folder / "depth/1.01.png")
    depth_png(folder / "depth/1.035.png")
    (folder / "rgb.txt").write_text(
        "# color images\n# timestamp filename\n1.00 rgb/1.00.png\n1.03 rgb/1.03.png\n"
        "2.00 rgb/2.00.png\n"
    )
    (folder / "depth.txt").write_text("# depth\n1.01 depth/1.01.png\n1.035 depth/1.035.png\n")
    dataset = open_dataset("tum", tmp_path)
    assert [s.stamp_ns for s in dataset] == [1_000_000_000, 1_030_000_000]
    assert {s.sequence for s in dataset} == {folder.name}
    depth = dataset[0].depth
    assert depth is not None
    assert depth.ravel()[1:] == pytest.approx(stored.ravel()[1:] / 5000)
    assert len(open_dataset("tum", folder, every=2)) == 1
    with pytest.raises(DatasetError, match="whose name contains 'desk'"):
        open_dataset("tum", tmp_path, match="desk")


def test_sintel_reads_its_depth_and_camera_files(tmp_path: Path) -> None:
    training = tmp_path / "training"
    rgb = picture(training / "final" / "alley_1" / "frame_0002.png")
    depth = np.linspace(1, 90, 48, dtype="<f4").reshape(SHAPE)
    head = struct.pack("<fii", 202021.25, SHAPE[1], SHAPE[0])
    path = training / "depth" / "alley_1" / "frame_0002.dpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(head + depth.tobytes())
    camera = training / "camdata_left" / "alley_1" / "frame_0002.cam"
    camera.parent.mkdir(parents=True)
    k = np.array([[1120, 0, 4], [0, 1121, 3], [0, 0, 1.0]])
    camera.write_bytes(struct.pack("<f", 202021.25) + k.tobytes() + np.eye(3, 4).tobytes())
    sample = open_dataset("sintel", tmp_path)[0]
    assert np.array_equal(sample.rgb, rgb)
    assert sample.depth is not None
    assert np.array_equal(sample.depth, depth)
    assert sample.camera is not None
    assert (sample.camera.fx, sample.camera.fy) == (1120, 1121)
    assert sample.sequence == "alley_1"
    with pytest.raises(DatasetError, match="the clean images of Sintel"):
        open_dataset("sintel", tmp_path, render="clean")
    path.write_bytes(b"PIEH" + head[4:])
    with pytest.raises(DatasetError, match="declares 8x6 pixels in 12 bytes"):
        open_dataset("sintel", tmp_path)[0]
    path.write_bytes(b"none")
    with pytest.raises(DatasetError, match=r"is not a \.dpt file of Sintel"):
        open_dataset("sintel", tmp_path)[0]


def test_diw_counts_pixels_from_one_and_knows_which_point_is_nearer(tmp_path: Path) -> None:
    rgb = picture(tmp_path / "DIW_test" / "ab12.thumb")
    (tmp_path / "DIW_test.csv").write_text(
        "./DIW_test/ab12.thumb\n1,2,6,8,>,8,6\n./DIW_test/ab12.thumb\n3,3,7,9,<,8,6\n"
    )
    first, second = open_dataset("diw", tmp_path)
    assert np.array_equal(first.rgb, rgb)
    assert first.pairs is not None
    assert second.pairs is not None
    assert first.pairs.tolist() == [[0, 1, 5, 7, -1]]  # ">": the first point is farther
    assert second.pairs.tolist() == [[2, 2, 5, 7, 1]]
    (tmp_path / "DIW_test.csv").write_text("./DIW_test/ab12.thumb\n1,2,6,8,=,8,6\n")
    with pytest.raises(DatasetError, match="the relation > or <"):
        open_dataset("diw", tmp_path)[0]


def test_ade20k_reads_pictures_and_labels(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    rgb = picture(root / "images" / "validation" / "ADE_val_00000001.jpg")
    path = root / "annotations" / "validation" / "ADE_val_00000001.png"
    labels = gray(path, np.arange(48, dtype=np.uint8).reshape(SHAPE))
    dataset = open_dataset("ade20k", tmp_path)
    assert dataset.class_names is not None
    assert len(dataset.class_names) == 150
    assert np.array_equal(dataset[0].rgb, rgb)
    assert np.array_equal(dataset[0].labels, labels)
    gray(path, np.full(SHAPE, 151, np.uint8))
    with pytest.raises(DatasetError, match=r"the class id 151, but ids must be 0\.\.150"):
        dataset[0]
    gray(path, np.zeros((5, 8), np.uint8))
    with pytest.raises(DatasetError, match="8x5 pixels, but its image has 8x6"):
        dataset[0]


def test_pascal_context_with_and_without_background(tmp_path: Path) -> None:
    from PIL import Image

    picture(tmp_path / "JPEGImages" / "2008_000002.jpg")
    listing = tmp_path / "ImageSets" / "SegmentationContext" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("2008_000002\n")
    labels = np.arange(48, dtype=np.uint8).reshape(SHAPE)
    file = Image.fromarray(labels)
    file = file.convert("P")
    file.putdata(labels.ravel().tolist())
    (tmp_path / "SegmentationClassContext").mkdir()
    file.save(tmp_path / "SegmentationClassContext" / "2008_000002.png")
    plain = open_dataset("pascal_context", tmp_path)
    assert plain.class_names is not None
    assert len(set(plain.class_names)) == 59
    assert np.array_equal(plain[0].labels, labels)
    with_background = open_dataset("pascal_context", tmp_path, background=True)
    assert with_background.class_names is not None
    assert with_background.class_names[59] == "background"
    assert with_background[0].labels is not None
    assert with_background[0].labels[0, 0] == 60


def test_every_missing_folder_is_named_in_a_sentence(tmp_path: Path) -> None:
    for name, line in list_datasets().items():
        assert line
        if name == "world":
            continue
        with pytest.raises(ValueError, match=f"{name} needs its folder"):
            open_dataset(name)
        with pytest.raises(DatasetError, match=r"The folder .*nowhere does not exist"):
            open_dataset(name, tmp_path / "nowhere")
        with pytest.raises(DatasetError, match=r"does not exist|Found none of|found in"):
            open_dataset(name, tmp_path)


def test_wrong_names_and_options_get_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown dataset 'nyu2' \(did you mean nyu\?\)"):
        open_dataset("nyu2")
    with pytest.raises(ValueError, match="Unknown option 'render' of the dataset nyu"):
        open_dataset("nyu", tmp_path, render="clean")
    with pytest.raises(ValueError, match="video is 1, but must be true or false"):
        open_dataset("world", video=1)
    assert open_dataset("world", worlds="2", frames="3", video="false")[5].sequence == ""
    with pytest.raises(ValueError, match="must be train or test"):
        open_dataset("world", split="val")
    with pytest.raises(ValueError, match="has no folder, but root is"):
        open_dataset("world", tmp_path)


@pytest.mark.parametrize("wrong", ["8 bits", "colour", "size", "no picture"])
def test_odd_depth_files_are_refused(tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "test" / "bathroom"
    picture(folder / "rgb_00001.jpg")
    path = folder / "sync_depth_00001.png"
    stored = depth_png(path)
    if wrong == "8 bits":
        gray(path, stored.astype(np.uint8))
    elif wrong == "colour":
        gray(path, np.dstack([stored] * 3))
    elif wrong == "size":
        depth_png(path, (3, 4))
    else:
        path.write_text("none")
    with pytest.raises(DatasetError, match=str(path)):
        open_dataset("nyu", tmp_path)[0]
