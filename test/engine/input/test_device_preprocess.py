# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.places import ROOT, TEST
from helpers.plain_torch import plain_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dpt_ros.engine.input import device_preprocess
from dpt_ros.engine.input.device_preprocess import DeviceInput, cubic_taps, rgb
from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.input.preprocess import network_input, to_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of normalised values near 2, computed in float32: 3e-4 of a grey level.
TOLERANCE = 5e-6
DIFFERENT_FORMATS = list({form: name for name, form in ENCODINGS.items()}.values())
ONE_OF_EACH_KIND = ["bgra8", "mono16", "32FC3", "uyvy", "nv12", "nv24", "bayer_grbg16"]


def camera_pixels(encoding: str, height: int, width: int, seed: int, batch: int = 1) -> np.ndarray:
    """(batch, ...) pixels of any value that the encoding can hold, flat and extreme ones too."""
    form = ENCODINGS[encoding]
    shape = (batch, int(height * form.planes), width) + ((form.channels,) if form.channels else ())
    random = np.random.default_rng(seed)
    if form.dtype == np.float32:
        pixels = random.uniform(-0.2, 1.2, shape).astype(np.float32)
        pixels[random.random(shape) < 0.1] = random.choice([np.nan, np.inf, -np.inf])
        return pixels
    top = np.iinfo(form.dtype).max
    if seed % 3 == 0:
        return random.choice(np.array([0, top], form.dtype), shape)
    return random.integers(0, top + 1, shape, form.dtype)


def host_tensor(pixels: np.ndarray) -> torch.Tensor:
    """As the runner uploads them: uint16 as int16 of the same bits."""
    return torch.from_numpy(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels)


def device_input(
    encoding: str,
    pixels: np.ndarray,
    size: tuple[int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DeviceInput:
    return DeviceInput(encoding, pixels.shape[1:], size, MEAN, STD, device, dtype)


@st.composite
def frames(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    row = ENCODINGS[encoding]
    least = 3 if row.layout == "bayer" else 1
    height, width = draw(st.integers(least, 24)), draw(st.integers(least, 40))
    height, width = height * (1 + row.even_height), width * (1 + row.even_width)
    seed, batch = draw(st.integers(0, 2**32)), draw(st.integers(1, 2))
    return encoding, camera_pixels(encoding, height, width, seed, batch)


@settings(max_examples=300, deadline=None)
@given(frames())
def test_pixels_become_the_same_colours_as_on_the_host(frame):
    encoding, pixels = frame
    picture = rgb(host_tensor(pixels), encoding)
    expected = np.stack([to_rgb(one, encoding) for one in pixels])
    assert picture.dtype == torch.uint8
    assert picture.is_contiguous()
    # cv2.transform rounds in fixed point only where it has vector code.
    levels = 1 if encoding == "nv24" else 0
    np.testing.assert_allclose(picture.numpy().astype(int), expected.astype(int), 0, levels)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_a_picture_of_camera_size_has_the_same_colours_as_on_the_host(encoding):
    pixels = camera_pixels(encoding, 240, 322, 1)
    picture = rgb(host_tensor(pixels), encoding)[0]
    levels = 1 if encoding == "nv24" else 0
    expected = to_rgb(pixels[0], encoding).astype(int)
    np.testing.assert_allclose(picture.numpy().astype(int), expected, 0, levels)


@settings(max_examples=100, deadline=None)
@given(frames(), st.integers(1, 50), st.integers(1, 50))
def test_the_network_input_is_that_of_the_host(frame, height, width):
    encoding, pixels = frame
    made = device_input(encoding, pixels, (height, width))(host_tensor(pixels))
    assert made.shape == (len(pixels), 3, height, width)
    assert made.is_contiguous(memory_format=torch.channels_last)
    pictures = rgb(host_tensor(pixels), encoding).numpy()
    expected = torch.cat([network_input(one, (height, width), MEAN, STD) for one in pictures])
    torch.testing.assert_close(made, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("source", "target"),
    [((480, 640), (384, 512)), ((1080, 1920), (384, 672)), ((333, 777), (352, 416))],
)
def test_large_pictures_are_resized_at_the_published_positions(source, target):
    pixels = camera_pixels("rgb8", *source, seed=1)
    made = device_input("rgb8", pixels, target)(host_tensor(pixels))
    expected = network_input(pixels[0], target, MEAN, STD)
    torch.testing.assert_close(made, expected, rtol=0, atol=TOLERANCE)


def test_a_picture_of_the_right_size_is_normalised_exactly_as_on_the_host():
    pixels = camera_pixels("bgr8", 32, 64, seed=1, batch=2)
    made = device_input("bgr8", pixels, (32, 64))(host_tensor(pixels))
    for one, expected in zip(made, pixels, strict=True):
        expected = network_input(to_rgb(expected, "bgr8"), (32, 64), MEAN, STD)[0]
        torch.testing.assert_close(one, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float32_result(dtype):
    pixels = camera_pixels("nv12", 20, 30, seed=1)
    full = device_input("nv12", pixels, (32, 32))(host_tensor(pixels))
    half = device_input("nv12", pixels, (32, 32), dtype=dtype)(host_tensor(pixels))
    assert half.dtype == dtype
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, full.to(dtype))


@given(st.integers(1, 5000), st.integers(1, 700))
def test_cubic_weights_sum_to_one_and_taps_stay_inside(source, target):
    taps, weights = cubic_taps(source, target)
    assert taps.min() >= 0
    assert taps.max() < source
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)


def test_pixels_with_padded_rows_are_shared_and_read_through_their_stride():
    padded = camera_pixels("bgr8", 12, 40, seed=1)
    pixels = padded[:, :, :30]
    tensor = host_tensor(pixels)
    assert tensor.data_ptr() == padded.ctypes.data
    make = device_input("bgr8", pixels, (32, 32))
    assert torch.equal(make(tensor), make(host_tensor(pixels.copy())))


def test_16_bit_pixels_may_come_as_int16_or_uint16():
    pixels = np.array([[0, 1, 32768, 65535]], np.uint16)
    picture = rgb(host_tensor(pixels)[None], "mono16")
    assert picture[0, 0, :, 0].tolist() == [0, 0, 128, 255]
    assert torch.equal(rgb(torch.from_numpy(pixels)[None], "mono16"), picture)


def test_pixels_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"are torch.uint8, but mono16 needs torch.int16"):
        rgb(torch.zeros(1, 4, 4, dtype=torch.uint8), "mono16")


@pytest.mark.parametrize(
    ("encoding", "shape", "sentence"),
    [
        ("rgb9", (4, 4, 3), r"'rgb9' cannot be read; known are .*rgb8"),
        ("rgb8", (4, 4), r"have shape \(4, 4\), but rgb8 needs \(H, W, 3\)"),
        ("rgba8", (4, 4, 3), r"rgba8 needs \(H, W, 4\)"),
        ("mono8", (4, 4, 1), r"mono8 needs \(H, W\)"),
        ("mono8", (0, 4), r"not empty"),
        ("uyvy", (4, 5, 2), r"is 5 wide, but uyvy needs an even width"),
        ("nv12", (8, 4), r"have 8 rows, but nv12 needs a multiple of 3"),
        ("nv24", (8, 4), r"have 8 rows, but nv24 needs a multiple of 3"),
        ("bayer_rggb8", (2, 9), r"is 9x2, but bayer_rggb8 needs at least 3x3"),
    ],
)
def test_shapes_that_an_encoding_cannot_have_are_refused(encoding, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        DeviceInput(encoding, shape, (32, 32), MEAN, STD, "cpu")


def test_sizes_types_and_pixels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="both sides must be positive"):
        DeviceInput("mono8", (4, 4), (0, 32), MEAN, STD, "cpu")
    with pytest.raises(ValueError, match=r"is to be torch.int32"):
        DeviceInput("mono8", (4, 4), (32, 32), MEAN, STD, "cpu", torch.int32)
    make = DeviceInput("mono8", (4, 4), (32, 32), MEAN, STD, "cpu")
    with pytest.raises(ValueError, match=r"shape \(4, 4\) on cpu, but must be \(B, 4, 4\) on cpu"):
        make(torch.zeros(4, 4, dtype=torch.uint8))


class RecordedOperations(TorchDispatchMode):
    """Names of the operations that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("encoding", DIFFERENT_FORMATS)
def test_the_plain_path_reads_nothing_back_and_brings_nothing_from_the_host(encoding):
    pixels = camera_pixels(encoding, 12, 20, seed=1, batch=2)
    make, tensor = device_input(encoding, pixels, (32, 64)), host_tensor(pixels)
    with RecordedOperations() as recorded:
        make(tensor)
    # A tensor made of Python values, a scalar read, an index or a mask of unknown size.
    forbidden = {"lift_fresh", "_local_scalar_dense", "index", "nonzero", "masked_select", "equal"}
    assert recorded.names & forbidden == set()
    assert "index_select" in recorded.names


def kernel_differences() -> dict[str, float]:
    """Largest difference of the kernel, run by Triton's interpreter, from the plain path."""
    from dpt_ros.engine.input import triton_device_preprocess

    differences = {}
    cases = [(encoding, (10, 14)) for encoding in DIFFERENT_FORMATS]
    cases += [(encoding, (5, 9)) for encoding in ONE_OF_EACH_KIND] + [("mono8", (3, 70))]
    for encoding, size in cases:
        pixels = camera_pixels(encoding, 10, 14, seed=1, batch=2 if size == (5, 9) else 1)
        make, tensor = device_input(encoding, pixels, size), host_tensor(pixels)
        made = triton_device_preprocess.network_input(tensor, make)
        assert made.is_contiguous(memory_format=torch.channels_last)
        plain = device_preprocess.network_input(tensor, make)
        differences[f"{encoding} {size}"] = (made - plain).abs().max().item()
    return differences


def test_the_kernel_gives_the_values_of_the_plain_path_in_the_interpreter():
    pytest.importorskip("triton")
    path = os.pathsep.join([str(ROOT), str(TEST), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    differences = json.loads(run.stdout)
    assert len(differences) == len(DIFFERENT_FORMATS) + len(ONE_OF_EACH_KIND) + 1
    assert {name: d for name, d in differences.items() if d != 0} == {}


def test_the_kernel_compiles_for_every_gpu_generation(tmp_path, monkeypatch):
    pytest.importorskip("triton")

    from helpers.cubins import ARCHS, preprocess_cubins

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for arch in ARCHS:
        cubins = preprocess_cubins(arch, ["mono8"])
        assert set(cubins) == {"mono8 resize", "mono8 same"}
        assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())
    assert len(preprocess_cubins(87, ONE_OF_EACH_KIND)) == 2 * len(ONE_OF_EACH_KIND)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_the_kernel_gives_the_values_of_the_plain_path_on_a_gpu(encoding, dtype):
    pytest.importorskip("triton")
    host = camera_pixels(encoding, 480, 640, seed=1, batch=2)
    pixels = host_tensor(host).cuda()
    for size in ((384, 512), (480, 640), (33, 65)):
        make = device_input(encoding, host, size, "cuda", dtype)
        made = make(pixels)
        assert made.is_contiguous(memory_format=torch.channels_last)
        with plain_torch():
            assert torch.equal(made, make(pixels))
    on_host = device_input(encoding, host, (33, 65), dtype=dtype)(host_tensor(host))
    assert torch.equal(made.cpu(), on_host)


@pytest.mark.gpu
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("encoding", DIFFERENT_FORMATS)
def test_the_network_input_can_be_recorded_in_a_cuda_graph(encoding, plain):
    first, second = (camera_pixels(encoding, 48, 64, seed) for seed in (1, 2))
    pixels = host_tensor(first).cuda()
    make = device_input(encoding, first, (32, 64), "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with plain_torch() if plain else nullcontext():
        with torch.cuda.stream(stream):
            make(pixels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = make(pixels)
        pixels.copy_(host_tensor(second))
        graph.replay()
        assert torch.equal(made, make(pixels))


@pytest.mark.gpu
def test_pictures_of_one_pixel_and_of_odd_sizes_work_on_a_gpu():
    for height, width in ((1, 1), (3, 1001), (1001, 3)):
        host = camera_pixels("rgb8", height, width, seed=1)
        made = device_input("rgb8", host, (32, 96), "cuda")(host_tensor(host).cuda())
        expected = device_input("rgb8", host, (32, 96))(host_tensor(host))
        assert torch.equal(made.cpu(), expected)


if __name__ == "__main__":
    print(json.dumps(kernel_differences()))
