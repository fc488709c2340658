# SPDX-License-Identifier: Apache-2.0
"""docs.ros.org gets the pages of the site and the API of the public packages (docs/conf.py).

Sphinx itself is not among the tests' packages: ``scripts/docs api`` runs it.
"""

import importlib.util
import re
from types import SimpleNamespace

import pytest
import yaml
from helpers.places import ROOT

DOCS = ROOT / "docs"
API = (DOCS / "api.rst").read_text("utf-8")


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_table_of_contents_of_both_sites(conf):
    source = [(DOCS / "index.md").read_text("utf-8")]
    conf.add_contents(SimpleNamespace(srcdir=DOCS), "index", source)
    listed = re.findall(r"^.+ <(\w+)>$", source[0].partition("```{toctree}")[2], re.MULTILINE)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"} | {"api"}
    assert sorted(listed) == sorted(pages)


def test_the_pages_of_the_site_are_listed_once(conf):
    assert "INHERIT: docs/nav.yml" in (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "\nnav:" not in (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = yaml.safe_load((DOCS / "nav.yml").read_text("utf-8"))["nav"]
    captions = re.findall(r":caption: (.+)", "\n".join(conf.contents(nav)))
    assert captions == [next(iter(entry)) for entry in nav if str not in map(type, entry.values())]


def test_every_public_package_has_its_api_page(conf):
    documented = re.findall(r"^\.\. automodule:: dpt_ros\.([\w.]+)$", API, re.MULTILINE)
    public = {
        path.parent.name
        for path in (ROOT / "dpt_ros").glob("*/__init__.py")
        if "\n__all__ =" in path.read_text("utf-8")
    }
    assert public | {"metrics"} == set(conf.PACKAGES)
    assert {name.partition(".")[0] for name in documented} == set(conf.PACKAGES)
    # A package without names of its own is documented by its modules.
    metrics = {path.stem for path in (ROOT / "dpt_ros/metrics").glob("[a-z]*.py")}
    assert {name.partition(".")[2] for name in documented if "." in name} == metrics


def test_rosdoc2_reads_the_folder_of_the_site():
    assert "<rosdoc2>rosdoc2.yaml</rosdoc2>" in (ROOT / "package.xml").read_text("utf-8")
    about, settings = yaml.safe_load_all((ROOT / "rosdoc2.yaml").read_text("utf-8"))
    assert about == {"type": "rosdoc2 config", "version": 1}
    assert settings["builders"][0]["sphinx"]["sphinx_sourcedir"] == "docs"
