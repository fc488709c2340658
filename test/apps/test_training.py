# SPDX-License-Identifier: Apache-2.0
"""Parts of dpt_train: starting networks, training pictures, files that say what they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dpt_ros.apps.train.measure import class_weights
from dpt_ros.apps.train.networks import load_encoder, starting_network, with_taps
from dpt_ros.apps.train.pictures import Augmentation, Batches, Picture, stream
from dpt_ros.apps.train.recipe import PRESETS, Recipe
from dpt_ros.data import class_id_table, class_names
from dpt_ros.datasets import Dataset, Sample
from dpt_ros.datasets.world import RenderedWorld
from dpt_ros.engine.inference.predict import predict_image
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.settings import Settings
from dpt_ros.model import DPT, create_model, model_spec, save_checkpoint
from dpt_ros.model.describe import describe
from dpt_ros.model.zoo import EMBEDDED, EMBEDDED_NAME, HYBRID, ZOO
from dpt_ros.world import CLASSES


def test_a_new_set_of_classes_gets_a_new_head_that_the_node_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = Shapes()
    depth = replace(model_spec(EMBEDDED_NAME), tasks=("depth",), batch_norm=True)
    torch.manual_seed(1)
    model = DPT(depth)
    save_checkpoint(model, tmp_path / "depth.safetensors", torch.float32)
    recipe = Recipe(
        tmp_path, weights=str(tmp_path / "depth.safetensors"), train="both", auxiliary=0.2
    )
    start, notes = starting_network(recipe, [shapes])
    assert class_names(start.spec.class_names) == ("round", "square")
    assert any("label head is new: 2 classes" in note for note in notes)
    assert any("label_head.conv" in note and "depth" not in note for note in notes)
    assert torch.equal(start.depth_head.conv1.weight, model.depth_head.conv1.weight)
    assert start.auxiliary_head is not None

    file = tmp_path / "both.safetensors"
    save_checkpoint(start, file)
    (tmp_path / "classes.json").unlink()  # the file is enough
    settings = Settings(
        depth_network=EMBEDDED_NAME,
        depth_weights=str(file),
        label_network=EMBEDDED_NAME,
        label_weights=str(file),
    )
    networks = load_networks(settings)
    assert networks.depth is networks.labels
    assert networks.class_names == ("round", "square")
    assert len({tuple(networks.palette[k]) for k in (0, 1, 2)}) == 3
    assert networks.metric

    with pytest.raises(ValueError, match=r"holds a dpt_hybrid_embedded"):
        create_model("dpt_hybrid_nyu", file)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("network", {"geometry": {}}),
        ("network", {"tasks": ["depth", "smell"]}),
        ("network", {"num_classes": 3}),
        ("network", {"width": 1}),
        ("network", []),
        ("classes", [{"name": "one", "color": [1, 2, 3]}]),
        ("classes", "[" * 100_000),
        ("model", "dpt_tiny"),
    ],
)
def test_a_file_that_describes_what_cannot_be_is_refused(
    key: str, change: object, tmp_path: Path
) -> None:
    said = describe(ZOO[EMBEDDED_NAME])
    good = json.loads(said["network"])
    if isinstance(change, str):
        said[key] = change
    else:
        said[key] = json.dumps(good | change if isinstance(change, dict) else change)
    file = tmp_path / "bad.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata=said)
    with pytest.raises(ValueError, match=r"bad\.safetensors (describes|names)"):
        create_model(EMBEDDED_NAME, file)


class Shapes(Dataset):
    """Two classes, by name not in any list, and sparse relative inverse depth."""

    name = "shapes"
    class_names = ("round", "square")

    def __init__(self, metric: bool = True) -> None:
        self.metric = metric

    def __len__(self) -> int:
        return 6

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        height, width = 40 + 8 * (index % 2), 72
        depth = rng.uniform(1, 5, (height, width)).astype(np.float32)
        depth[rng.random(depth.shape) < 0.5] = np.nan
        return Sample(
            str(index),
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            depth=depth if self.metric else None,
            inverse=1 / depth,
            labels=rng.integers(0, 3, (height, width), dtype=np.uint8),
        )


@pytest.mark.parametrize(("scale", "shift"), [(0.3, 0.25), (3.0, -0.5)])
def test_a_relative_network_becomes_metric_by_the_average_alignment(
    tmp_path: Path, scale: float, shift: float
) -> None:
    torch.manual_seed(2)
    spec = replace(model_spec(EMBEDDED_NAME), tasks=("depth",), shift=0.0, invert=False, focal=0.0)
    model = DPT(spec).eval()
    save_checkpoint(model, tmp_path / "relative.safetensors", torch.float32)

    class Scaled(Shapes):
        """Truth that is the network's own answer, scaled and shifted."""

        def read(self, index: int) -> Sample:
            sample = super().read(index)
            inverse = scale * predict_image(model, sample.rgb)["depth"] + shift
            return replace(sample, depth=1 / inverse, inverse=inverse, labels=None)

    truth = Scaled()
    assert min(sample.inverse.min() for sample in truth) > 0.05
    recipe = Recipe(tmp_path, weights=str(tmp_path / "relative.safetensors"), metric=True)
    start, _ = starting_network(recipe, [truth])
    assert start.spec.invert
    assert start.depth_head.scale == start.spec.scale == pytest.approx(scale, rel=0.05)
    assert start.spec.shift == pytest.approx(max(shift, 1 / 50), rel=0.05)
    depth = predict_image(start, truth[0].rgb)["depth"]
    assert np.median(np.abs(depth / truth[0].depth - 1)) < 0.03
    with pytest.raises(ValueError, match="no depth in metres"):
        starting_network(replace(recipe, model=EMBEDDED_NAME), [Shapes(metric=False)])


@pytest.mark.parametrize(
    ("more", "taps", "readout"),
    [
        ({"backbone": "small", "taps": "3,4,5,6", "readout": "add"}, ((), (2, 3, 4, 5)), "add"),
        ({"taps": "2,3,5,6"}, ((), (1, 2, 4, 5)), "project"),
        ({"readout": "ignore"}, ((0, 1), (2, 5)), "ignore"),
    ],
)
def test_the_networks_of_the_ablations_are_exported_and_run(
    tmp_path: Path, more: dict[str, str], taps: tuple, readout: str
) -> None:
    world = frames(2, 48, 64)
    model, _ = starting_network(Recipe(tmp_path, train="depth", **more), [world])
    assert (model.spec.geometry.stage_taps, model.spec.geometry.block_taps) == taps
    file = tmp_path / "ablation.safetensors"
    save_checkpoint(model, file, torch.float32)
    loaded = create_model(EMBEDDED_NAME, file)
    assert (loaded.spec.readout, loaded.spec.geometry) == (readout, model.spec.geometry)
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-4)
    settings = Settings(depth_network=EMBEDDED_NAME, depth_weights=str(file), label_network="none")
    assert load_networks(settings).metric


def test_taps_are_counted_as_in_the_papers_table() -> None:
    assert with_taps(HYBRID, "R0,R1,9,12") == HYBRID
    assert with_taps(HYBRID, "3,6,9,12").block_taps == (2, 5, 8, 11)
    assert with_taps(EMBEDDED, "R0,R1,3,6") == EMBEDDED


@pytest.mark.parametrize("taps", ["3,6,9", "3,6,9,13", "12,9,6,3", "R1,3,6,9", "R0,R1,R2,9", "a"])
def test_taps_that_cannot_be_are_refused(taps: str) -> None:
    with pytest.raises(ValueError, match="tap"):
        with_taps(HYBRID, taps)


def test_timms_encoder_fits_into_ours() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import HybridEmbed

    torch.manual_seed(0)
    spec = model_spec(EMBEDDED_NAME)
    model = DPT(spec)
    ours = spec.geometry
    embed = partial(HybridEmbed, backbone=DPT(spec).encoder.resnet, img_size=(240, 320))
    theirs = VisionTransformer(
        img_size=(240, 320), embed_dim=ours.width, depth=ours.depth, num_heads=ours.heads,
        num_classes=7, embed_layer=lambda **sizes: embed(embed_dim=sizes["embed_dim"]),
    )  # fmt: skip
    before = model.fusion[0].out.weight.clone()
    load_encoder(model, theirs.state_dict(), "theirs")
    assert torch.equal(model.encoder.blocks[3].attn.qkv.weight, theirs.blocks[3].attn.qkv.weight)
    assert torch.equal(model.encoder.pos_embed, theirs.pos_embed)
    assert torch.equal(model.fusion[0].out.weight, before)
    with pytest.raises(ValueError, match="deit"):
        load_encoder(model, timm.create_model("deit_tiny_patch16_224").state_dict(), "deit")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_for_a_network_of_the_zoo(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    recipe = Recipe(tmp_path, **preset.values)
    spec = ZOO[recipe.model]
    assert set(spec.tasks) == {recipe.train}
    view = Augmentation.of(recipe, spec, [Shapes()])
    picture = Picture(
        np.zeros((375, 1242, 3), np.uint8),
        np.full((375, 1242), 0.05, np.float32),
        np.ones((375, 1242), np.uint8),
    )
    seen = view.apply(picture, np.random.default_rng(0))
    assert seen.labels.shape == recipe.crop[::-1]
    assert preset.paper.startswith("4.")


def frames(n: int, height: int, width: int) -> RenderedWorld:
    """The label of a pixel is 1 + its column modulo 10; its inverse depth is its column."""
    column = np.broadcast_to(np.arange(width), (n, height, width))
    return RenderedWorld(
        np.broadcast_to((column % 256)[..., None], (n, height, width, 3)).astype(np.uint8),
        column.astype(np.float16),
        (1 + column % 10).astype(np.uint8),
    )


def batches_of(world: RenderedWorld, size: int, multiple_of: int = 16, **more: int) -> Batches:
    spec = replace(ZOO[EMBEDDED_NAME], multiple_of=multiple_of)
    return Batches([world], spec, CLASSES, Augmentation(multiple_of), size, **more)


def test_batches_flip_and_crop_picture_depth_and_labels_together() -> None:
    batches = batches_of(frames(6, 400, 500), 3)
    directions = set()
    for k in range(4):
        batch = batches[k]
        assert batch.images.shape == (3, 3, 384, 384)
        assert batch.inverse.shape == (3, 384, 384)
        assert torch.equal(batch.labels, batch.inverse.long() % 10)
        step = batch.inverse[:, 0, 1] - batch.inverse[:, 0, 0]
        directions |= set(step.tolist())
    assert directions == {1.0, -1.0}


def test_an_epoch_shows_every_picture_once_in_a_new_order() -> None:
    batches = batches_of(frames(7, 48, 64), 2)
    epochs = [[i for k in range(3) for i in batches.chosen(3 * e + k)] for e in range(2)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_processes_share_the_batch_of_one_and_readers_keep_the_order() -> None:
    frame_set = frames(8, 48, 64)
    whole = [batches_of(frame_set, 4)[k] for k in range(5)]
    parts = [batches_of(frame_set, 4, rank=rank, processes=2) for rank in (0, 1)]
    coming = stream(batches_of(frame_set, 4), 1, 2, False)
    for k in range(1, 5):
        joined = [torch.cat(pair) for pair in zip(parts[0][k], parts[1][k], strict=True)]
        for mine, theirs, read in zip(joined, whole[k], next(coming), strict=True):
            assert torch.equal(mine, theirs)
            assert torch.equal(read, theirs)


def test_the_datasets_of_a_batch_are_drawn_evenly() -> None:
    worlds = [frames(n, 48, 64) for n in (4, 400)]
    batches = Batches(worlds, ZOO[EMBEDDED_NAME], CLASSES, Augmentation(16), 4)
    drawn = [source for k in range(200) for source, _ in batches.chosen(k)]
    assert 0.42 < np.mean(drawn) < 0.58


def test_truth_beyond_the_limit_and_beside_the_picture_is_unknown() -> None:
    view = Augmentation(16, crop=(32, 16), max_depth=10.0)
    inverse = np.array([[0.0, 0.05, 0.2, np.nan]] * 4, np.float32)
    picture = Picture(np.zeros((4, 4, 3), np.uint8), inverse, np.ones((4, 4), np.uint8))
    seen = view.apply(picture, np.random.default_rng(1))
    assert seen.rgb.shape == (16, 32, 3)
    assert sorted(set(seen.inverse[np.isfinite(seen.inverse)])) == [0.0, np.float32(0.2)]
    assert np.count_nonzero(np.isfinite(seen.inverse)) == 8
    assert seen.labels.sum() == 16


def test_crops_have_sizes_that_the_network_takes() -> None:
    assert batches_of(frames(2, 240, 330), 2, 32)[0].labels.shape == (2, 224, 320)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(ValueError, match="8 images"):
        batches_of(frames(3, 48, 64), 8)


def test_the_worlds_classes_are_found_by_name() -> None:
    assert class_id_table(CLASSES, class_names("labels_world.json"))[:12].tolist() == [
        *range(11),
        0,
    ]
    names = class_names("labels_ade20k.json")
    table = class_id_table(CLASSES, names)
    assert tuple(names[k - 1] for k in table[1:11]) == CLASSES
    assert table[255] == 0


def test_rare_classes_weigh_more_and_the_mean_over_pixels_is_one() -> None:
    weight = class_weights(np.array([90, 10]))
    assert weight[1] / weight[0] == pytest.approx(9**0.3, rel=1e-5)
    assert 0.9 * weight[0] + 0.1 * weight[1] == pytest.approx(1)
