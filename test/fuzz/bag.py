# SPDX-License-Identifier: Apache-2.0
"""Bags of any bytes, mcap and sqlite3, through the bag player with nobody listening."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from dpt_ros.bag import player as bag_player
from dpt_ros.bag.reader import BagError, BagReader
from fuzz.properties import Broken, bounded, refusal

_SPLIT = b"\n---split---\n"
_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


class _Publisher:
    def __init__(self, kind: type) -> None:
        if not hasattr(kind, "get_fields_and_field_types"):
            raise Broken(f"{kind} is no message.")

    def publish(self, msg: bytes) -> None:
        if not isinstance(msg, bytes):
            raise Broken(f"{type(msg)} was published.")

    def wait_for_all_acked(self, timeout: object) -> None:
        pass


_NODE = SimpleNamespace(
    create_publisher=lambda kind, *_: _Publisher(kind),
    context=SimpleNamespace(ok=lambda: True),
    get_namespace=lambda: "/",
)


def seeds() -> list[bytes]:
    """One message in an mcap file, plain and compressed, and in a sqlite3 folder."""
    files = []
    store = get_typestore(Stores.ROS2_HUMBLE)
    with tempfile.TemporaryDirectory() as folder:
        for name, plugin in (("m", StoragePlugin.MCAP), ("s", StoragePlugin.SQLITE3)):
            path = Path(folder) / name
            with Writer(path, version=9, storage_plugin=plugin) as writer:
                connection = writer.add_connection(
                    "/image", "std_msgs/msg/String", typestore=store
                )
                writer.write(connection, 5, b"\0\1\0\0\2\0\0\0a\0")
            metadata = (path / "metadata.yaml").read_bytes()
            if name == "m":
                (storage,) = path.glob("*.mcap")
                files += [b"f" + storage.read_bytes(), metadata_first(b"m", metadata, storage)]
            else:
                (storage,) = path.glob("*.db3")
                with sqlite3.connect(storage, isolation_level=None) as database:
                    database.execute("PRAGMA page_size=512")
                    database.execute("VACUUM")
                files.append(metadata_first(b"s", metadata, storage))
    return files


def metadata_first(kind: bytes, metadata: bytes, storage: Path) -> bytes:
    """A bag's folder as one input."""
    return kind + metadata + _SPLIT + storage.read_bytes()


def one_input(data: bytes) -> None:
    folder = Path(_FOLDER.name)
    if data[:1] in (b"m", b"s"):
        metadata, _, storage = data[1:].partition(_SPLIT)
        path = folder / data[:1].decode()
        path.mkdir(exist_ok=True)
        (path / "metadata.yaml").write_bytes(metadata)
        (path / f"{path.name}{'.mcap' if path.name == 'm' else '.db3'}").write_bytes(storage)
    else:
        path = folder / "file.mcap"
        path.write_bytes(data[1:])
    nobody_waits = patch.object(bag_player, "_wait_for_subscriber")
    with bounded(len(data)), refusal(BagError), nobody_waits:
        bag_player.play(_NODE, BagReader(path), ["image"], rate=1e300)
