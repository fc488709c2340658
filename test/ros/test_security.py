# SPDX-License-Identifier: Apache-2.0
"""The SROS2 policy names what the node opens and nothing else; downloads stay on https."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request
from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy")

from helpers.places import ROOT
from helpers.ros_processes import ros_domain

from dpt_ros.model import download
from dpt_ros.model.download import DownloadError, SecureRedirects, fetch

NODE = "/dpt"
# Opened only by request: parameters of the node, and of rclpy.
ON_REQUEST = {
    "publish": {"/depth/inverse"},
    "subscribe": {
        *("/image/compressed", "/image/ffmpeg", "/image/foxglove"),
        *("/tf", "/tf_static", "/clock"),
    },
}


def policy() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "config" / "sros2" / "policy.xml").getroot()


def allowed(permission: str) -> set[str]:
    """Full names of the topics or services with a permission."""
    names = [
        expression.text or ""
        for group in policy().find(".//profile") or ()
        if group.get(permission) == "ALLOW"
        for expression in group
    ]
    assert len(names) == len(set(names))
    return {name if name[0] == "/" else f"/{name.replace('~', NODE[1:])}" for name in names}


def documented() -> set[str]:
    """Topics that docs/topics.md lists."""
    text = (ROOT / "docs" / "topics.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+) \| \w+_msgs/", text, re.MULTILINE)
    return {f"/{name.lstrip('/')}" for cell in cells for name in re.findall("`([^`]+)`", cell)}


def test_the_policy_is_for_the_node_and_denies_nothing_it_could_allow() -> None:
    root = policy()
    assert (root.tag, root.get("version")) == ("policy", "0.2.0")
    profile = root.find(".//profile")
    assert profile is not None
    assert (profile.get("ns"), profile.get("node")) == ("/", NODE[1:])
    assert [e.get("path") for e in root.iter("enclave")] == [NODE]
    assert not any("*" in name for p in ("publish", "subscribe", "reply") for name in allowed(p))


def test_every_documented_topic_is_in_the_policy() -> None:
    assert len(documented()) > 15
    assert documented() <= allowed("publish") | allowed("subscribe")


def test_the_policy_names_what_a_running_node_opens_and_nothing_else() -> None:
    with ros_domain() as domain:
        domain.start_dpt()
        domain.wait_for_state("active")
        ours = domain.node
        opened = {
            "publish": ours.get_publisher_names_and_types_by_node,
            "subscribe": ours.get_subscriber_names_and_types_by_node,
            "reply": ours.get_service_names_and_types_by_node,
            "request": ours.get_client_names_and_types_by_node,
        }

        def missing() -> list[str]:
            return [
                f"{name} ({permission})"
                for permission, ask in opened.items()
                for name in allowed(permission) - ON_REQUEST.get(permission, set())
                if name not in {found for found, _ in ask(NODE[1:], "/")}
            ]

        # The name of a node arrives apart from its services, which have answered.
        domain.spin_until(lambda: NODE[1:] in ours.get_node_names(), 20)
        domain.spin_until(lambda: not missing(), 20)
        for permission, ask in opened.items():
            found = {name for name, _ in ask(NODE[1:], "/")}
            assert found <= allowed(permission), permission


@pytest.mark.parametrize("url", ["http://mirror.test/a.pt", "ftp://mirror.test/a.pt"])
def test_a_download_is_not_led_away_from_https(url: str) -> None:
    redirects, begin = SecureRedirects(), Request("https://example.test/a.pt")
    with pytest.raises(URLError, match=r"redirects to .*, which is not https"):
        redirects.redirect_request(begin, None, 302, "Found", {}, url)
    onward = redirects.redirect_request(begin, None, 302, "Found", {}, "https://mirror.test/a.pt")
    assert onward is not None
    assert onward.full_url == "https://mirror.test/a.pt"


class Endless(BaseHTTPRequestHandler):
    """Sends zeros until nobody takes them any more, and never says how many."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_without_end_is_given_up_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(download, "CHUNK", 1 << 16)
    with HTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(DownloadError, match="has more than 1 MB, which is no checkpoint"):
            fetch(f"http://127.0.0.1:{server.server_port}/a.pt", tmp_path / "a.pt", "")
        server.shutdown()
    assert not (tmp_path / "a.pt").exists()
    assert (tmp_path / "a.pt.part").stat().st_size == 0
