# SPDX-License-Identifier: Apache-2.0
"""Sphinx on the pages of the site, and the API from the docstrings, for docs.ros.org (rosdoc2).

rosdoc2 copies this folder and adds files of its own, so nothing outside of it is read here.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import yaml

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
project = "dpt_ros"
html_theme = "sphinx_rtd_theme"
html_static_path = html_css_files = ["site.css"]
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# rosdoc2's index.rst, modules.rst and dpt_ros*.rst: index.md and api.rst take their place. README
# and CONTRIBUTING are written for the repository, and their links lead to its files.
exclude_patterns = ["index.rst", "modules.rst", "dpt_ros*.rst", "__readme_include.rst",
                    "standard_docs/original", "standard_docs/README.rst",
                    "standard_docs/CONTRIBUTING.rst"]  # fmt: skip
# JSON, shell sessions and message definitions with an ellipsis, which the highlighter refuses.
suppress_warnings = ["misc.highlighting_failure", "myst.xref_missing"]

# What package.xml gets from pip, and only on request: docs.ros.org builds without.
REQUIRED = ("safetensors", "timm", "torch", "torchvision")
PACKAGES = ("model", "engine", "run", "world", "datasets", "metrics")


def contents(nav):
    """The toctrees of a nav of MkDocs: one for its pages, one with a caption for each group."""
    entries = [pair for entry in nav for pair in entry.items()]
    groups = {"": [{title: page} for title, page in entries if isinstance(page, str)]}
    groups |= {title: pages for title, pages in entries if not isinstance(pages, str)}
    for caption, pages in groups.items():
        named = [pair for page in pages for pair in page.items() if pair[1] != "index.md"]
        lines = [f"{title} <{name.removesuffix('.md')}>" for title, name in named]
        options = [":hidden:", f":caption: {caption}"] if caption else [":hidden:"]
        yield "\n".join(["```{toctree}", *options, "", *lines, "```"])


def add_contents(app, name, source):
    """The first page gets the table of contents."""
    if name == "index":
        nav = yaml.safe_load((Path(app.srcdir) / "nav.yml").read_text("utf-8"))["nav"]
        about = [{"Standard documents": "standards"}]  # rosdoc2's
        extra = about if (Path(app.srcdir) / "standards.rst").exists() else []
        nav = [*nav, {"Python": [{"API": "api"}, *extra]}]
        source[0] = "\n\n".join([source[0], *contents(nav)])


def setup(app):
    """Fetches names that are imported at their first use (PEP 562): autodoc has to see them."""
    from sphinx.ext.autodoc.mock import _MockObject, mock

    _MockObject.__or__ = _MockObject.__ror__ = lambda self, other: self  # Tensor | None
    with mock([name for name in REQUIRED if find_spec(name) is None]):
        for package in PACKAGES:
            module = import_module(f"dpt_ros.{package}")
            for name in getattr(module, "__all__", ()):
                setattr(module, name, getattr(module, name))
    app.connect("source-read", add_contents)
