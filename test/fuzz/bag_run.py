# SPDX-License-Identifier: Apache-2.0
"""Bags through dpt_bag, damaged in any way, as input and as output of a run that was interrupted.

Everything of dpt_bag is the real one but for the networks, in whose place is what answers at once.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from helpers import bags
from nav_msgs.msg import Odometry
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionMode, Reader, StoragePlugin, Writer
from sensor_msgs.msg import PointCloud2

from dpt_ros.bag import run as bag_run
from dpt_ros.bag.files import METADATA
from dpt_ros.bag.job import Job, Result
from dpt_ros.bag.reader import BagError, BagReader
from dpt_ros.bag.writer import joined
from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages import image as messages
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message, jpeg_message
from fuzz.choices import Choices
from fuzz.properties import Broken, bounded, refusal, sentence

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
_SHARED = "/dev/shm" if Path("/dev/shm").is_dir() else None
_CAMERA = CameraModel(4, 3, 4.0, 4.0, 1.5, 1.0)
_MOST_PIXELS = 100_000  # what large pictures cost, the target ``compressed`` looks at
_INFORMATION = "rosbag2_bagfile_information"
_PART = "out/out_0.mcap"  # what a run that was ended had finished

# Texts for a value of YAML or JSON, values for a cell of a table.
_WORDS = (
    b"", b"0", b"-1", b"9223372036854775807", b"99999999999999999999", b"1.5", b".inf", b".nan",
    b"null", b"true", b"x", b"[]", b"{}", b"[0]", b"{a: b}", b'"\\0"', b'"\\ud800"', b"'\n'",
    b"..", b"'" + b"x" * 300 + b"'", b"[" * 2000, b"&a [*a]", b"!!python/name:os.system", b"\xff",
    b"sensor_msgs/msg/Image", b"nav_msgs/msg/Odometry",
)  # fmt: skip
_CELLS = (
    None, 0, -1, 1 << 40, (1 << 63) - 1, -(1 << 63), 1.5, float("inf"), "", "x", "\n" * 300, b"",
    b"\xff", b"\x28\xb5\x2f\xfd", "sensor_msgs/msg/Image", "/image",
)  # fmt: skip
_TABLES = ("messages", "topics", "message_definitions", "schema")

Files = dict[str, bytes]  # by path


class _Ticket:
    def __init__(self, prediction: Prediction) -> None:
        self._prediction = prediction

    def wait(self) -> list[Prediction]:
        return [self._prediction]

    def release(self) -> None:
        pass


class _Runner:
    """Answers with one pixel that depends on all frames so far, as the filter's answers do."""

    in_flight, max_batch = 2, 1

    def __init__(self, *_: Any) -> None:
        self._past = 0

    def start(
        self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings
    ) -> _Ticket:
        (frame,) = frames
        self._past = zlib.crc32(np.ascontiguousarray(frame.pixels), self._past)
        return _Ticket(Prediction(frame, np.full((1, 1), self._past % 1000, np.float32)))

    def reset(self) -> None:
        self._past = 0

    def state_dict(self) -> dict[str, Any]:
        return {"past": torch.tensor(self._past)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._past = int(state["past"]) if state else 0


_NETWORK: Any = SimpleNamespace(spec=SimpleNamespace(name="none", invert=True, shift=0.0))
_NETWORKS = Networks(
    _NETWORK, None, torch.device("cpu"), "fp32", (), np.zeros((256, 3), np.uint8), False, ()
)


def _convert(
    source: Path,
    out: Path,
    with_input: bool = True,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Result:
    job = Job(source, out, Settings(), with_input=with_input, file_frames=2)
    with ExitStack() as instead:
        for owner, name, value in (
            (bag_run, "networks_for", lambda settings: _NETWORKS),
            (bag_run, "make_runner", _Runner),
            (messages, "MAX_COMPRESSED_PIXELS", _MOST_PIXELS),
        ):
            instead.enter_context(patch.object(owner, name, value))
        return bag_run.convert(job, warn, progress)


# What is damaged


def _records(first: int = 0, jpeg: bool = False) -> Iterator[tuple[int, str, Any]]:
    """Three frames of a tiny camera with everything beside them."""
    if not first:
        yield bags.FIRST, "/tf_static", _frames()
    for k in range(first, first + 3):
        stamp = bags.FIRST + k * bags.STEP
        header = bags.header(stamp)
        odom = Odometry(header=bags.header(stamp, "odom"), child_frame_id="camera")
        odom.pose.pose.orientation.w = 1.0
        yield stamp, "/odom", odom
        scan = bags.scan(stamp, 2.0)
        scan.ranges = scan.ranges[::8]
        yield stamp + 1, "/anchors/scan", scan
        yield stamp + 2, "/anchors/points", PointCloud2(header=header)
        depth = np.full((2, 2), k, np.float32)
        yield stamp + 3, "/anchors/depth", image_message(depth, "32FC1", header)
        yield stamp + 4, "/anchors/camera_info", camera_info_message(_CAMERA, header)
        yield stamp + 5, "/camera_info", camera_info_message(_CAMERA, header)
        pixels = np.full((3, 4, 3), 40 * k, np.uint8)
        if jpeg:
            yield stamp + 6, "/image/compressed", jpeg_message(pixels, header)
        else:
            yield stamp + 6, "/image", image_message(pixels, "rgb8", header)


def _frames() -> Any:
    """Where the laser sits; as rosbags has it, because tf2_msgs may not be installed."""
    kinds = {name.rpartition("/")[2]: kind for name, kind in bags.TYPES.types.items()}
    header = kinds["Header"](kinds["Time"](0, 0), "camera")
    place, rotation = kinds["Vector3"](0.0, 0.0, 0.0), kinds["Quaternion"](0.0, 0.0, 0.0, 1.0)
    pose = kinds["Transform"](place, rotation)
    return kinds["TFMessage"]([kinds["TransformStamped"](header, "laser", pose)])


def _read(folder: Path) -> Files:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@lru_cache
def _scenes() -> tuple[list[Files], dict[int, Files]]:
    """Files of whole bags of every kind and of runs that were ended; what these come to."""
    kinds: list[tuple[StoragePlugin, CompressionMode | None, bool]] = [
        (MCAP, None, False),
        (SQLITE, None, False),
        (MCAP, CompressionMode.STORAGE, True),
        (SQLITE, CompressionMode.MESSAGE, True),
        (MCAP, CompressionMode.FILE, False),
    ]
    scenes: list[Files] = []
    complete: dict[int, Files] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, (plugin, packed, jpeg) in enumerate(kinds):
            root = Path(temporary, str(number))
            bags.write(root / "in", _records(jpeg=jpeg), plugin, packed)
            scenes.append(_read(root))
        parts = [bags.write(Path(temporary, f"in_{k}"), _records(3 * k)) for k in range(2)]
        abouts = [yaml.safe_load((part / METADATA).read_text())[_INFORMATION] for part in parts]
        # The second has no /tf_static, but all parts of a bag name the same topics.
        first = abouts[0]["topics_with_message_count"][0]
        abouts[1]["topics_with_message_count"].insert(0, {**first, "message_count": 0})
        split = {
            f"in/{part.name}.mcap": (part / f"{part.name}.mcap").read_bytes() for part in parts
        }
        about = yaml.safe_dump({_INFORMATION: joined(*abouts)}).encode()
        scenes.append({**split, f"in/{METADATA}": about})
        for scene in scenes[:2]:
            root = Path(temporary, str(len(scenes)))
            _write(root, scene)
            with suppress(bags.Interrupted):
                _convert(root / "in", root / "out", progress=bags.interrupt(3))
            scenes.append(_read(root))
            _convert(root / "in", root / "out")
            complete[len(scenes) - 1] = _read(root)
    return [*scenes, complete[len(scenes) - 1]], complete


_FINISHED = -1
_COPIED = (_FINISHED, 0, 1, 6, 7, 8)  # where the input is copied, which takes twice as long


def _damaged(choices: Choices) -> tuple[int, Files]:
    """A number of a scene and its files, some of them damaged or gone."""
    scenes, _ = _scenes()
    number = choices.integer(0, len(scenes) - 1)
    files = dict(scenes[number])
    while choices.any_left and files:
        name = choices.pick(sorted(files))
        content = choices.pick(_EDITS)(files.pop(name), choices)
        if content is not None:
            files[name] = content
    return number, files


def _some(content: bytes, choices: Choices) -> bytes:
    """Some bytes in the place of others."""
    at, gone = choices.integer(0, len(content)), choices.integer(0, 64)
    return content[:at] + choices.take(choices.integer(0, 16)) + content[at + gone :]


def _bits(content: bytes, choices: Choices) -> bytes:
    at, flipped = choices.integer(0, len(content)), choices.take(1)[0]
    return content[:at] + bytes(b ^ flipped for b in content[at : at + 1]) + content[at + 1 :]


def _cut(content: bytes, choices: Choices) -> bytes:
    return content[: choices.integer(0, len(content))]


def _number(content: bytes, choices: Choices) -> bytes:
    """An extreme number of two, four or eight bytes."""
    at, size = choices.integer(0, len(content)), choices.pick((2, 4, 8))
    high = 1 << (8 * size - 1)
    value = choices.pick((0, 1, 255, high - 1, high, 2 * high - 1))
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


def _word(content: bytes, choices: Choices) -> bytes:
    """Another value for a key, or another entry of a list."""
    values = list(re.finditer(rb"(?<=[:-] )\S[^\n]*", content))
    if not values:
        return content
    value = values[choices.integer(0, len(values) - 1)]
    return content[: value.start()] + choices.pick(_WORDS) + content[value.end() :]


def _cell(content: bytes, choices: Choices) -> bytes:
    """Another value in a table, if it is a database."""
    table, number, value = choices.pick(_TABLES), choices.integer(0, 40), choices.pick(_CELLS)
    with tempfile.NamedTemporaryFile(dir=_SHARED) as file:
        path = Path(file.name)
        path.write_bytes(content)
        try:
            with closing(sqlite3.connect(path)) as database, database:
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                rows = [row[0] for row in database.execute(f"SELECT rowid FROM {table}")]
                if columns and rows:
                    change = f"UPDATE {table} SET {choices.pick(columns)}=? WHERE rowid=?"
                    database.execute(change, (value, rows[number % len(rows)]))
        except sqlite3.Error:
            return content
        return path.read_bytes()


def _gone(content: bytes, choices: Choices) -> None:
    return None


_EDITS: tuple[Callable[[bytes, Choices], bytes | None], ...] = (
    _some,
    _bits,
    _cut,
    _number,
    _word,
    _cell,
    _gone,
)


# The target


def seeds() -> list[bytes]:
    """Each scene as it is and with damage of half the kinds; small bags and texts as they are."""
    found = []
    for number in range(len(_scenes()[0])):
        found.append(bytes([ord("e"), number]))
        for edit in range(number % 2, len(_EDITS), 2):
            found.append(bytes([ord("e"), number, edit + number, edit, 150 - edit, 3, 8, 1]))
    for plugin, kind in ((MCAP, b"f"), (SQLITE, b"d")):
        found.append(kind + _small(plugin))
    found.append(b"y" + yaml.safe_dump({_INFORMATION: _ABOUT}).encode())
    found += [b"o" + text for text in (b"{}", b'{"finished": true}', b'{"notes": 5}', b"[[[[")]
    parameters = ("input_width: 64", "cameras: [front]\n    front: {max_range: 5.0}", "[" * 9)
    found += [f"p/**:\n  ros__parameters:\n    {text}\n".encode() for text in parameters]
    found += [b"g" + text for text in (b"input_width:=64", b"x.y:=[", b"cameras:=2020-99-99")]
    return [*found, b"pother:\n  ros__parameters:\n    input_width: 64\n", b"p\0", b"p- /**"]


_ABOUT = {
    "relative_file_paths": ["in_0.mcap"],
    "topics_with_message_count": [
        {
            "topic_metadata": {"name": "/image", "type": "sensor_msgs/msg/Image"},
            "message_count": 3,
        }
    ],
}


def _small(plugin: StoragePlugin) -> bytes:
    """A bag file with one image and without definitions."""
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder, "in"), version=9, storage_plugin=plugin) as writer:
            connection = writer.add_connection(
                "/image", "sensor_msgs/msg/Image", msgdef="", rihs01="RIHS01_"
            )
            message = image_message(np.zeros((1, 1, 3), np.uint8), "rgb8", bags.header(1))
            writer.write(connection, 5, serialize_message(message))
        (path,) = (path for path in Path(folder, "in").iterdir() if path.name != METADATA)
        if plugin == SQLITE:
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("PRAGMA page_size=512")
                database.execute("VACUUM")
        return path.read_bytes()


def one_input(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind in (b"p", b"g"):
        _parameters(rest, kind == b"p")
        return
    (whole, *_), _ = _scenes()
    source, number = "in", _FINISHED
    if kind == b"y":
        files = {"in/in_0.mcap": whole["in/in.mcap"], f"in/{METADATA}": rest}
    elif kind == b"o":
        files = dict(_scenes()[0][_FINISHED])
        files[f"out/{METADATA}"] = _with_custom_data(files[f"out/{METADATA}"], rest)
    elif kind in (b"f", b"d"):
        source, number = ("in.mcap", _FINISHED) if kind == b"f" else ("in.db3", 2)
        files = {source: rest}
    else:
        number, files = _damaged(Choices(rest))
    with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
        _write(Path(folder), files)
        said: list[str] = []
        result = None
        with bounded(sum(map(len, files.values()))), refusal(BagError):
            copied = number in _COPIED
            result = _convert(Path(folder, source), Path(folder, "out"), copied, said.append)
        for text in (*said, *(result.problems if result else ())):
            # One of camera_info ends with a command, which a full stop would spoil.
            sentence(f"{text}." if " -r image:=" in text else text)
        _check(Path(folder), files, result, number)


def _with_custom_data(metadata: bytes, text: bytes) -> bytes:
    """The metadata of an output, with some values of what dpt_bag notes in it."""
    about = yaml.safe_load(metadata)
    custom = about[_INFORMATION]["custom_data"]
    try:
        custom["dpt_bag"] = json.dumps({**json.loads(custom["dpt_bag"]), **json.loads(text)})
    except (ValueError, TypeError, RecursionError):
        custom["dpt_bag"] = text.decode(errors="replace")
    return yaml.safe_dump(about).encode()


def _check(folder: Path, before: Files, result: Result | None, number: int) -> None:
    """What was there is there, and what is new is whole."""
    after = _read(folder)
    for name in (name for name in {**before, **after} if name.startswith("in")):
        if before.get(name) != after.get(name):
            raise Broken(f"{name}, which is input, was changed.")
    for name in after:
        if not result and name.startswith("out/out_") and before.get(name) != after[name]:
            with Reader(folder / name) as bag:
                for _ in bag.messages():
                    pass
    if result is None or result.outcome == "done before":
        return
    scenes, complete = _scenes()
    if _PART in before and before[_PART] != scenes[number].get(_PART):
        return  # a file that was finished is not read again
    if any("/.dpt_bag/" in name for name in after):
        raise Broken("A bag is said to be complete, but there is what is in the making.")
    reader = BagReader(folder / "out")
    for _ in reader.messages(list(reader.channels)):
        pass
    if reader.problems:
        raise Broken(f"What was written is no whole bag: {reader.problems}")
    if number in complete:
        same = all(before.get(k) == v for k, v in complete[number].items() if k.startswith("in/"))
        if same and after != complete[number]:
            raise Broken("After an interruption the bag became another one.")


def _parameters(text: bytes, file: bool) -> None:
    if not file:
        with bounded(len(text)), refusal(ValueError):
            read_settings(None, [text.decode(errors="replace")])
        return
    with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
        path = Path(folder, "dpt.yaml")
        path.write_bytes(text)
        with bounded(len(text)), refusal(ValueError):
            read_settings(path, [])
        if path.read_bytes() != text:
            raise Broken("The file of parameters was changed.")
