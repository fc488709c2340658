# SPDX-License-Identifier: Apache-2.0
"""Bad input: what the fuzzers reached and found, again and without them (see ``test/fuzz``)."""

from __future__ import annotations

import importlib
import io
import random
import struct
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy")

from fuzz import TARGETS
from fuzz.archive import kept_inputs, read_archive, write_archive
from fuzz.compressed import png
from fuzz.properties import Broken, bounded, repeated, sentence
from fuzz.run import FOUND, KEPT_BYTES
from sensor_msgs.msg import CompressedImage

from dpt_ros.model.checkpoint import CheckpointError, filter_state_dict, read_tensors
from dpt_ros.ros.messages.image import MessageError, compressed_file, give_bytes

pytestmark = pytest.mark.filterwarnings("ignore")


def module_of(target: str) -> ModuleType:
    return importlib.import_module(f"fuzz.{target}")


def known_inputs(target: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((FOUND / target).glob("*"))]
    return [*module_of(target).seeds(), *kept_inputs(target), *found]


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_reached_something_new_end_well_again(target: str) -> None:
    one_input = repeated(module_of(target).one_input)
    for data in known_inputs(target):
        one_input(data)


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_with_random_damage_end_well(target: str) -> None:
    one_input, inputs = repeated(module_of(target).one_input), known_inputs(target)
    number = random.Random(target)
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        data = bytearray(number.choice(inputs))
        for _ in range(number.randint(1, 4)):
            at = number.randrange(len(data) + 1)
            data[at : at + number.randint(0, 2)] = number.randbytes(number.randint(0, 3))
        one_input(bytes(data))


def test_the_kept_inputs_are_few_and_every_target_has_some() -> None:
    for target in TARGETS:
        assert 0 < sum(map(len, kept_inputs(target))) <= KEPT_BYTES, target


def test_an_archive_has_the_same_bytes_whenever_the_same_inputs_are_packed(tmp_path: Path) -> None:
    inputs = [b"one", b"", b"\0" * 100_000]
    for name, order in (("first", inputs), ("second", inputs[::-1])):
        write_archive(tmp_path / name, order)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert sorted(read_archive(tmp_path / "first")) == sorted(inputs)


@pytest.mark.parametrize(
    "text",
    ["Wrong", "two\nlines of a sentence.", "a long sentence" + " more" * 1000 + ".", "a b c d"],
)
def test_what_is_no_sentence_is_noticed(text: str) -> None:
    with pytest.raises(Broken):
        sentence(text)
    sentence("This one is right.")


def test_what_takes_too_long_or_too_much_is_noticed() -> None:
    with pytest.raises(Broken, match="of CPU time"), bounded(10, seconds=0.01):
        sum(range(2_000_000))
    with pytest.raises(Broken, match="more memory for 10 bytes"), bounded(10, megabytes=16):
        np.ones(2**23)


# What was found, one by one.


def message(content: bytes, stored_as: str = "") -> CompressedImage:
    made = CompressedImage(format=stored_as)
    give_bytes(made, np.frombuffer(content, np.uint8))
    return made


def refused(content: bytes) -> str:
    """The reason for which a compressed image is refused before it is decoded."""
    image = message(content)
    with pytest.raises(MessageError) as caught, bounded(len(content), seconds=0.3, megabytes=16):
        compressed_file(image)
    sentence(str(caught.value))
    return caught.value.reason


def test_a_png_chunk_that_claims_four_gigabytes_is_not_given_them() -> None:
    content = png(2, 2, bytes(14))
    at = content.find(b"IDAT") - 4
    assert refused(content[:at] + struct.pack(">I", 0xFFFF0000) + content[at + 4 :]) == "truncated"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def scans(count: int, side: int = 4000) -> bytes:
    """A progressive JPEG whose every scan passes over the whole picture with a hundred bytes."""
    frame = struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])
    content = b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64)) + segment(0xC2, frame)
    for table, symbol in ((0x00, 0x00), (0x10, 0xE0)):  # a DC difference of 0; 2^14 empty blocks
        content += segment(0xC4, bytes([table, 1] + [0] * 15 + [symbol]))
    content += segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(4)
    return content + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes(90)) * count + b"\xff\xd9"


def test_a_jpeg_with_thousands_of_scans_is_refused() -> None:
    assert refused(scans(2000)) == "too many scans"
    file = compressed_file(message(scans(9)))
    assert file.decode()[0].shape == (4000, 4000)


@pytest.mark.parametrize(
    "filling", [b"\xff", b"\xff\x00", b"\xff\xe0\x00\x00", b"\xff\xe0\x00\x02"]
)
def test_a_jpeg_of_nothing_but_markers_is_refused_at_once(filling: bytes) -> None:
    assert (
        refused(b"\xff\xd8\xff\xe0\x00\x02" + filling * (10_000_000 // len(filling)))
        == "truncated"
    )


def test_text_of_a_message_does_not_get_into_the_log_as_it_is() -> None:
    with pytest.raises(MessageError) as caught:
        compressed_file(message(b"nothing", "\x1b[2J\n[INFO] all is well " * 999))
    sentence(str(caught.value))


KEY = "depth_head.conv1.weight"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.full((1, 2, 1, 1), 1e300, dtype=torch.float64), "with NaN or infinity"),
        (torch.zeros((1, 2, 1, 1), dtype=torch.complex64), "complex64 instead of"),
        (torch.zeros((1, 2, 1, 1), dtype=torch.int32), "int32 instead of"),
        (torch.zeros((1, 2, 1, 1)).to_sparse(), "sparse_coo instead of"),
        (torch.zeros((1, 2, 1, 1), device="meta"), "without memory instead of"),
        (torch.zeros(1).expand(2**20, 2**20), r"\(1048576, 1048576\) instead of"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(
    wrong: torch.Tensor, words: str, tmp_path: Path
) -> None:
    model = module_of("checkpoint").Little()
    torch.save({**model.state_dict(), KEY: wrong}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=words) as refusal:
        filter_state_dict(read_tensors(tmp_path / "weights.pt"), model)
    assert [*refusal.value.misshapen, *refusal.value.not_finite] == [KEY]


def test_a_refused_program_is_named_without_advice_to_run_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": module_of("checkpoint").Program(eval, "1")}, buffer)
    (tmp_path / "evil.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"\(it asks for eval\)") as caught:
        read_tensors(tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)
