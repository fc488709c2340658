# SPDX-License-Identifier: Apache-2.0
"""The documentation builds as a site, and what it names is there."""

import re
from dataclasses import fields

import pytest
from helpers.places import ROOT as REPO
from mkdocs.commands.build import build
from mkdocs.config import load_config

from dpt_ros.engine.settings import Settings, parameter_name

PAGES = sorted((REPO / "docs").glob("*.md"))
TOP = [REPO / "README.md", REPO / "CONTRIBUTING.md"]


def test_the_site_builds_without_a_broken_link_or_a_page_that_nobody_finds(tmp_path):
    config = load_config(str(REPO / "mkdocs.yml"), site_dir=str(tmp_path))
    assert config.strict
    build(config)
    pages = list(tmp_path.glob("**/index.html"))
    assert len(pages) == len(PAGES)
    # The theme's style cuts off long table cells; ours, which comes last, lets them wrap.
    assert "white-space: normal" in (tmp_path / "site.css").read_text("utf-8")
    for page in pages:
        assert re.findall(r'href="([^"]+\.css)"', page.read_text("utf-8"))[-1].endswith("site.css")


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=lambda page: page.name)
def test_files_that_a_page_links_or_names_exist(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), link
    # Inside of dpt_ros/ a name may begin with the room.
    rooms = [path.name for path in (REPO / "dpt_ros").iterdir() if path.is_dir()]
    named = re.findall(r"`(([\w-]+)/[\w./-]+\.\w+)(?:::\w+)?`", text)
    for name, folder in named:
        if folder in ("dpt_ros", "config", "launch", "scripts", "test", "docs"):
            assert (REPO / name).exists(), name
        elif folder in rooms:
            assert list((REPO / "dpt_ros").glob(f"**/{name}")), name


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=lambda page: page.name)
def test_parameters_and_programs_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    parameters = {parameter_name(field) for field in fields(Settings)}
    groups = {name.partition(".")[0] for name in parameters if "." in name}
    named = re.findall(rf"`((?:{'|'.join(sorted(groups))})\.(?!py\b)\w+)", text)
    assert set(named) <= parameters
    programs = set(re.findall(r'"(dpt_\w+)": "dpt_ros', (REPO / "setup.py").read_text("utf-8")))
    commands = re.findall(
        r"(?:^|`|run dpt_ros )(dpt_[a-z_]+)(?= --| [A-Z]| -)", text, re.MULTILINE
    )
    assert set(commands) <= programs
