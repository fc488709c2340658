# SPDX-License-Identifier: Apache-2.0
"""Networks by name, and how their files get here: over a real HTTP server that can misbehave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.downloads import CONTENT, sha256
from helpers.places import ROOT
from hypothesis import given
from hypothesis import strategies as st

from dpt_ros.data import class_names, palette
from dpt_ros.model import (
    CheckpointError,
    DownloadError,
    cached_checkpoint,
    create_model,
    download,
    factory,
    list_models,
    model_spec,
)
from dpt_ros.model.zoo import ZOO, ModelSpec

EMBEDDED = "dpt_hybrid_embedded"


class Server(ThreadingHTTPServer):
    """Serves ``content`` under /weights.pt; each connection breaks after ``cut`` bytes if set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cut: int | None = None
        self.ranges = True
        self.requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers["Range"]
        server.requested.append(wanted)
        if self.path != "/weights.pt":
            self.send_error(404)
            return
        start, total = 0, len(server.content)
        if wanted and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pt"


@pytest.fixture
def small_row(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A row of the zoo with the embedded network's geometry and a file on the local server."""
    monkeypatch.setenv("DPT_ROS_CACHE", str(tmp_path / "cache"))
    torch.save(create_model(EMBEDDED, weights="random").state_dict(), tmp_path / "served.pt")
    server.content = (tmp_path / "served.pt").read_bytes()
    row = replace(ZOO[EMBEDDED], name="small", url=server.url, sha256=sha256(server.content))
    monkeypatch.setitem(factory.ZOO, "small", row)
    return row


def test_a_file_is_fetched_once_and_never_again(server: Server, path: Path) -> None:
    for _ in range(2):
        download.fetch(server.url, path, sha256(CONTENT)[:8])
        assert path.read_bytes() == CONTENT
    assert server.requested == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, path: Path) -> None:
    server.cut = len(CONTENT) // 2
    download.fetch(server.url, path, sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.requested == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_download_that_failed_goes_on_at_the_next_call(server: Server, path: Path) -> None:
    server.cut = 1000
    with pytest.raises(DownloadError, match=rf"ended after 3000 of {len(CONTENT)} bytes"):
        download.fetch(server.url, path, sha256(CONTENT))
    assert not path.exists()
    server.cut, server.requested = None, []
    download.fetch(server.url, path, sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.requested == ["bytes=3000-"]


def test_a_server_without_ranges_sends_all_again(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(CONTENT[:5000])
    server.ranges = False
    download.fetch(server.url, path, sha256(CONTENT))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"longer than the file"])
def test_a_part_that_has_all_bytes_or_more_ends_well(
    extra: bytes, server: Server, path: Path
) -> None:
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(CONTENT + extra)
    download.fetch(server.url, path, sha256(CONTENT))
    assert path.read_bytes() == CONTENT


def test_a_file_with_another_hash_is_thrown_away(server: Server, path: Path) -> None:
    with pytest.raises(DownloadError, match=f"has sha256 {sha256(CONTENT)}, but the published"):
        download.fetch(server.url, path, "12345678")
    assert list(path.parent.iterdir()) == []


def test_a_file_without_a_published_hash_is_reported(
    server: Server, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    download.fetch(server.url, path, "")
    assert "was not checked" in caplog.text
    assert sha256(CONTENT) in caplog.text


def test_a_file_that_is_not_there_is_a_sentence(server: Server, path: Path) -> None:
    with pytest.raises(DownloadError, match=r"could not be downloaded: Not Found\. Check"):
        download.fetch(server.url.replace("weights", "gone"), path, "")


def test_no_connection_is_a_sentence(server: Server, path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"Connection refused.*Check the network.*save it as"):
        download.fetch(url, path, "")
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="Set DPT_ROS_CACHE to a folder that can be written"):
        download.fetch(server.url, tmp_path / "cache" / "weights.pt", "")


def test_two_processes_download_the_same_file_once(server: Server, path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dpt_ros.model.download import fetch;"
        "fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", program, server.url, str(path), sha256(CONTENT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert path.read_bytes() == CONTENT
    assert server.requested == [None]


def test_a_network_is_downloaded_then_taken_from_the_cache(
    small_row: ModelSpec, server: Server
) -> None:
    assert cached_checkpoint("small") is None
    with pytest.raises(
        ValueError, match='No weights of small are on this machine; ask for "download"'
    ):
        create_model("small")
    first = create_model("small", weights="download")
    server.shutdown()
    assert cached_checkpoint("small") == download.cache_path(small_row)
    for weights in (None, "download", cached_checkpoint("small")):
        again = create_model("small", weights=weights)
        for key, value in first.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)


def test_networks_without_published_weights_cannot_be_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DownloadError, match="No weights of dpt_base_midas are published"):
        create_model("dpt_base_midas", weights="download")
    with pytest.raises(ValueError, match='ask for the path of a checkpoint, or "random"'):
        create_model("dpt_base_midas")


@given(st.text())
def test_only_names_of_the_zoo_are_known(name: str) -> None:
    if name in ZOO:
        return
    with pytest.raises(ValueError, match="Unknown network"):
        create_model(name, weights="random")


def test_a_mistyped_name_or_value_gets_close_matches() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*dpt_hybrid_midas"):
        create_model("dpt_hybrid_mida")
    with pytest.raises(
        ValueError, match=r"'readot' is not an override \(did you mean readout\?\)"
    ):
        create_model(EMBEDDED, weights="random", readot="add")
    with pytest.raises(ValueError, match=r"readout is 'projct' \(did you mean project\?\)"):
        create_model(EMBEDDED, weights="random", readout="projct")
    with pytest.raises(ValueError, match="weight_std is 'new', but must be one of timm, timm045"):
        create_model(EMBEDDED, weights="random", weight_std="new")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0, but must be 1 to 254"),
        ({"num_classes": 255}, "num_classes is 255, but must be 1 to 254"),
        ({"scale": 0.0}, "scale is 0.0 and shift"),
        ({"scale": float("nan")}, "scale is nan and shift"),
        ({"shift": -0.1}, "shift is -0.1"),
    ],
)
def test_values_that_cannot_be_are_refused(overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create_model(EMBEDDED, weights="random", **overrides)
    with pytest.raises(ValueError, match="predicts depth only"):
        model_spec("dpt_hybrid_nyu", auxiliary=True)


def test_overrides_change_the_network() -> None:
    model = create_model(
        EMBEDDED, weights="random", num_classes=4, scale=2.0, shift=0.5, readout="add"
    )
    outputs = model(torch.zeros(1, 3, 32, 48))
    assert outputs["labels"].shape == (1, 4, 32, 48)
    assert outputs["depth"].max() <= 2.0
    relative = create_model(EMBEDDED, weights="random", invert=False, shift=0.0)
    assert not relative.metric


@pytest.mark.parametrize("name", list_models())
def test_every_row_is_whole(name: str) -> None:
    spec = model_spec(name)
    assert spec.name == name
    assert spec.tasks
    assert spec.net_width % spec.multiple_of == 0 == spec.net_height % spec.multiple_of
    assert spec.url == "" or spec.url.startswith("https://")
    assert re.fullmatch("([0-9a-f]{8}|[0-9a-f]{64})?", spec.sha256)
    in_name = re.search(r"-([0-9a-f]{8})\.pt$", spec.url)
    if in_name:
        assert spec.sha256.startswith(in_name[1])
    assert spec.invert == (spec.shift > 0)
    if "labels" in spec.tasks:
        assert len(class_names(spec.class_names)) == spec.num_classes


def test_the_published_scales_are_those_of_the_paper_authors() -> None:
    rows = {
        name: (row.scale, row.shift, row.net_width, row.net_height) for name, row in ZOO.items()
    }
    assert rows["dpt_hybrid_nyu"] == (0.000305, 0.1378, 640, 480)
    assert rows["dpt_hybrid_kitti"] == (0.00006016, 0.00579, 1216, 352)
    assert rows["dpt_large_ade20k"] == (1.0, 0.0, 480, 480)
    assert rows["dpt_large_384"] == (1.0, 0.0, 384, 384)


def test_the_ade20k_classes_are_in_the_order_of_sceneparse150() -> None:
    names = class_names("labels_ade20k.json")
    assert len(names) == len(set(names)) == 150
    known = {1: "wall", 3: "sky", 4: "floor", 6: "ceiling", 10: "grass", 13: "person", 15: "door"}
    known |= {16: "table", 42: "box", 43: "column", 90: "television receiver", 150: "flag"}
    assert {index: names[index - 1] for index in known} == known
    colors = palette("labels_ade20k.json")
    assert colors[[0, 1, 2, 3, 13, 150]].tolist() == [
        [0, 0, 0],
        [120, 120, 120],
        [180, 120, 120],
        [6, 230, 230],
        [150, 5, 61],
        [92, 0, 255],
    ]
    assert set(class_names("labels_world.json")) <= set(names)


def test_the_embedded_network_comes_with_the_package() -> None:
    model = create_model(EMBEDDED)
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, 240, 320))
    assert outputs["depth"].max() <= 50.001
    with pytest.raises(CheckpointError):
        create_model(EMBEDDED, readout="ignore")
