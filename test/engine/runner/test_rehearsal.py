# SPDX-License-Identifier: Apache-2.0
"""Every mode of the GPU path, rehearsed on the CPU, gives every frame as the host runner does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers.gpu_rehearsal import (
    Kernels,
    RehearsalStreams,
    RehearsedNetwork,
    rehearsal,
)
from helpers.lenses import lens, pinhole
from helpers.networks import embedded_networks
from helpers.runner_frames import (
    ALL,
    DEFAULT,
    HEIGHT,
    PERIOD,
    WIDTH,
    cloud,
    moving_picture,
    run,
    same_video,
    video_frame,
)

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.encodings import ENCODINGS, picture_size
from dpt_ros.engine.output.fused_depth import NETWORK, SENSOR
from dpt_ros.engine.output.label_groups import LabelGroups
from dpt_ros.engine.output.postprocess import resize_depth
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.maps import max_pool3x3

FRAMES = 5  # two launched one by one, then the graph


@pytest.fixture(scope="module")
def host_networks() -> Networks:
    return embedded_networks()


@pytest.fixture(scope="module")
def gpu_networks() -> dict[bool, Networks]:
    return {shared: embedded_networks(RehearsedNetwork, shared) for shared in (True, False)}


@pytest.fixture
def rehearsed() -> Iterator[Kernels]:
    with rehearsal() as made:
        yield made


def rehearse(
    host: Networks,
    gpu: Networks,
    kernels: Kernels,
    batches: Sequence[Sequence[Frame]],
    outputs: OutputRequest = ALL,
    settings: Settings = DEFAULT,
    notes: Sequence[str] = (),
) -> StreamRunner:
    """Take batches through both runners and compare every frame."""
    said: list[str] = []
    streams = StreamRunner(gpu, settings, RehearsalStreams(kernels), said.append)
    plain = HostRunner(host, settings)
    for batch in batches:
        with kernels.paused():
            expected = [run(plain, [one], outputs, settings)[0] for one in batch]
        actual = run(streams, batch, outputs, settings)
        for mine, theirs in zip(actual, expected, strict=True):
            same_video(mine, theirs)
    assert len(said) == len(notes), said
    for found, part in zip(said, notes, strict=True):
        assert part in found
    return streams


def scan(number: int) -> Anchors:
    """What a level scan sees of a room, some centimetres off."""
    u = np.arange(4, 60, 2, dtype=np.float32)
    metres = (2.0 + 0.02 * u + 0.01 * (number % 3)).astype(np.float32)
    v = np.full_like(u, 30.0)
    return Anchors(u, v, metres, 10**9 + number * PERIOD, WIDTH, HEIGHT)


SETTINGS = {
    "default": DEFAULT,
    "smoothing off": replace(DEFAULT, smoothing_strength=0.0),
    "smoothing and scale off": replace(DEFAULT, smoothing_strength=0.0, scale_source="none"),
    "no graphs": replace(DEFAULT, cuda_graphs=False),
    "no graphs, smoothing and scale off": replace(
        DEFAULT, cuda_graphs=False, smoothing_strength=0.0, scale_source="none"
    ),
    "ground": replace(DEFAULT, scale_source="ground", scale_camera_height=1.2),
    "output of the network's size": replace(DEFAULT, output_size="network"),
    "points of every third pixel": replace(DEFAULT, points_stride=3),
    "points beyond range": replace(DEFAULT, points_far=30.0, max_range=3.0),
    "points not filtered": replace(DEFAULT, points_max_incidence=90.0),
}


def test_opencv_gets_no_maps_in_a_rehearsal(rehearsed, monkeypatch):
    monkeypatch.setattr(cv2, "dilate", None)
    monkeypatch.setattr(cv2, "resize", None)
    maps = torch.rand(1, 8, 9)
    assert max_pool3x3(maps).shape == (1, 8, 9)
    assert resize_depth(maps, (16, 18), exact=False).shape == (1, 16, 18)


def test_a_replay_that_would_use_other_memory_than_its_capture_is_found(rehearsed):
    class Counter:
        total = torch.zeros(2)

        def work(self) -> None:
            self.total += torch.ones(2)

    counter = Counter()
    replay = RehearsalStreams(rehearsed).capture(counter.work)
    assert counter.total.tolist() == [0, 0]  # a capture computes nothing
    replay()
    assert counter.total.tolist() == [1, 1]
    counter.total = torch.zeros(2)
    with pytest.raises(AssertionError, match="would not use this memory"):
        replay()


@pytest.mark.parametrize("shared", [True, False], ids=["one network", "two networks"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_mode_gives_every_frame(host_networks, gpu_networks, rehearsed, name, shared):
    batches = [[video_frame(k)] for k in range(FRAMES)]
    settings = SETTINGS[name]
    rehearse(host_networks, gpu_networks[shared], rehearsed, batches, settings=settings)
    assert rehearsed.calls["classify_kernel"] > 0


@pytest.mark.parametrize("anchors", [scan, cloud])
@pytest.mark.parametrize("graphs", [True, False])
def test_anchors_give_the_metres_of_the_host(
    host_networks, gpu_networks, rehearsed, anchors, graphs
):
    batches = [[video_frame(k, anchors=anchors(k) if k != 3 else None)] for k in range(6)]
    settings = replace(DEFAULT, cuda_graphs=graphs)
    rehearse(host_networks, gpu_networks[True], rehearsed, batches, settings=settings)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_cameras_that_come_and_go_keep_their_own_past(
    host_networks, gpu_networks, rehearsed, strength
):
    names = ("front", "rear", "left", "right")
    groups = [names[: 1 + k % 4] for k in range(8)] + [names[k % 4 :] for k in range(8)]
    batches = [
        [
            video_frame(k, source, anchors=cloud(k) if source == "rear" else None)
            for source in group
        ]
        for k, group in enumerate(groups)
    ]
    settings = replace(DEFAULT, smoothing_strength=strength)
    rehearse(host_networks, gpu_networks[True], rehearsed, batches, settings=settings)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_goes_through(host_networks, gpu_networks, rehearsed, encoding):
    form = ENCODINGS[encoding]
    rows = int(HEIGHT * form.planes)
    shape = (rows, WIDTH, form.channels) if form.channels else (rows, WIDTH)
    smooth = np.random.default_rng(3).random((rows // 8 + 1, WIDTH // 8 + 1, *shape[2:]))
    pixels = np.kron(smooth, np.ones((8, 8, *([1] * (len(shape) - 2)))))[:rows, :WIDTH]
    most = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[form.dtype]
    pixels = (pixels * most).astype(form.dtype)
    assert picture_size(pixels.shape, encoding) == (HEIGHT, WIDTH)
    batches = [[video_frame(k, pixels=pixels, encoding=encoding)] for k in range(4)]
    settings = SETTINGS["smoothing off"]
    rehearse(host_networks, gpu_networks[True], rehearsed, batches, settings=settings)


@pytest.mark.parametrize("wider", [1.0, 1.6])
@pytest.mark.parametrize("encoding", ["rgb8", "bayer_rggb8"])
def test_a_lens_is_straightened_on_the_device(
    host_networks, gpu_networks, rehearsed, encoding, wider
):
    changes = {
        "lens": lens("plumb_bob", WIDTH, HEIGHT),
        "camera": pinhole("plumb_bob", WIDTH, HEIGHT, wider),
        "encoding": encoding,
    }
    batches = []
    for k in range(FRAMES):
        pixels = moving_picture(k) if encoding == "rgb8" else moving_picture(k)[..., 0].copy()
        names = ("front", "rear")
        batches.append(
            [video_frame(k, one, pixels=pixels, anchors=cloud(k), **changes) for one in names]
        )
    rehearse(host_networks, gpu_networks[True], rehearsed, batches)
    assert rehearsed.calls["rectify_kernel"] == FRAMES + 1  # and one that is only captured


def measured(camera: CameraModel) -> np.ndarray:
    """What a depth camera sees of ``cloud``'s scene: a hole, a mirror."""
    v, u = np.indices((camera.height, camera.width), np.float32)
    metres = 1.5 + 3.0 * (1 - v / camera.height) + 0.01 * u
    metres[20:30, 10:30], metres[5:15, 40:60] = np.nan, 9.0
    return metres.astype(np.float32)


@pytest.mark.parametrize("source", ["depth", "fused"])
@pytest.mark.parametrize("graphs", [True, False])
def test_what_a_depth_camera_sees_is_fused_on_the_device(
    host_networks, gpu_networks, rehearsed, graphs, source
):
    batches = []
    for k in range(FRAMES):
        seen = {"anchors": cloud(k), "sense": measured if k != 3 else None}
        batches.append([video_frame(k, "front", **seen), video_frame(k, "rear", anchors=cloud(k))])
    settings = replace(DEFAULT, cuda_graphs=graphs, points_source=source)
    outputs = replace(ALL, fused=True)
    streams = rehearse(host_networks, gpu_networks[True], rehearsed, batches, outputs, settings)
    found = run(streams, batches[-1], outputs, settings)
    assert [set(np.unique(one.fused_origin)) for one in found] == [{SENSOR, NETWORK}, {NETWORK}]
    assert rehearsed.calls["select_kernel"] >= FRAMES


@pytest.mark.parametrize("size", [(100, 160), (37, 51)])
def test_pictures_of_other_sizes_are_resized_both_ways(
    host_networks, gpu_networks, rehearsed, size
):
    camera = CameraModel(size[1], size[0], 150.0, 150.0, size[1] / 2, size[0] / 2)
    batches = [[video_frame(k, pixels=moving_picture(k, *size), camera=camera)] for k in range(4)]
    # The host rounds a resized picture to 8 bits, the device does not.
    outputs = OutputRequest(labels=True, confidence=False)
    rehearse(host_networks, gpu_networks[False], rehearsed, batches, outputs)


def test_labels_in_groups_go_through(rehearsed):
    groups = LabelGroups.create(
        {"a": ["0", "3"], "b": ["1"]}, [str(k) for k in range(10)], np.zeros((256, 3), np.uint8)
    )
    parts = {"groups": groups.matrix(10), "class_names": groups.names}
    host, gpu = embedded_networks(**parts), embedded_networks(RehearsedNetwork, False, **parts)
    for count in (1, 3):
        batches = [[video_frame(k, str(c)) for c in range(count)] for k in range(FRAMES)]
        rehearse(host, gpu, rehearsed, batches)


@pytest.mark.parametrize(
    "outputs",
    [
        OutputRequest(),
        OutputRequest(labels=False),
        OutputRequest(depth=False),
        OutputRequest(depth=False, points=True),
    ],
)
def test_what_nobody_asks_for_may_be_left_out(host_networks, gpu_networks, rehearsed, outputs):
    batches = [[video_frame(k)] for k in range(FRAMES)]
    plain, settings = HostRunner(host_networks, DEFAULT), DEFAULT
    streams = StreamRunner(gpu_networks[False], DEFAULT, RehearsalStreams(rehearsed), print)
    for batch in batches:
        one = run(streams, batch, outputs, settings)[0]
        with rehearsed.paused():
            other = run(plain, batch, outputs, settings)[0]
        for name in ("depth", "labels", "points"):
            assert (getattr(one, name) is None) == (getattr(other, name) is None)


def test_a_network_that_cannot_be_compiled_runs_without(host_networks, rehearsed, monkeypatch):
    def refuse(*args: object, **options: object) -> object:
        def broken(*args: object) -> object:
            raise RuntimeError("Failed to find C compiler.")

        return broken

    monkeypatch.setattr(torch, "compile", refuse)
    gpu = embedded_networks(RehearsedNetwork, compiled=True)
    batches = [[video_frame(k)] for k in range(FRAMES)]
    notes = ["torch.compile fails for dpt_hybrid_embedded"]
    rehearse(host_networks, gpu, rehearsed, batches, notes=notes)


def test_three_frames_in_flight_do_not_write_over_each_other(
    host_networks, gpu_networks, rehearsed
):
    streams = StreamRunner(gpu_networks[True], DEFAULT, RehearsalStreams(rehearsed), print)
    plain = HostRunner(host_networks, DEFAULT)
    for first in range(0, 9, 3):
        batch = [video_frame(first + k) for k in range(3)]
        tickets = [streams.start([one], ALL, DEFAULT) for one in batch]
        for one, ticket in zip(batch, tickets, strict=True):
            with rehearsed.paused():
                expected = run(plain, [one], ALL, DEFAULT)[0]
            same_video(ticket.wait()[0], expected)
            ticket.release()
