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
# index.rst, modules.rst, dpt_ros*.rst: rosdoc2's; index.md and api.rst take their place. README and
# CONTRIBUTING are written for the repository, and their links lead to its files.
exclude_patterns = ["index.rst", "modules.rst", "dpt_ros*.rst", "__readme_include.rst",
                    "standard_docs/original", "standard_docs/README.rst",
                    "standard_docs/CONTRIBUTING.rst"]  # fmt: skip
# JSON, shell sessions and message definitions with an ellipsis, which the highlighter refuses.
suppress_warnings = ["misc.highlighting_failure", "myst.xref_missing"]

# What package.xml gets from pip, and only on request: docs.ros.org builds without.
REQUIRED = ("safetensors", "timm", "torch", "torchvision")
PACKAGES = ("model", "engine", "run", "world", "datasets", "metrics")


def contents(nav):
    """The toctrees of a nav of MkDocs: one for its pages, one with a caption for each of its groups."""
    groups = {"": [entry for entry in nav if isinstance(next(iter(entry.values())), str)]}
    for entry in nav:
        for caption, pages in entry.items():
            if not isinstance(pages, str):
                groups[caption] = pages
    for caption, pages in groups.items():
        lines = [f"{title} <{page.removesuffix('.md')}>" for p in pages for title, page in p.items()]
        lines = [line for line in lines if not line.endswith("<index>")]
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
    """Names that are imported at their first use (PEP 562) are fetched, so that autodoc sees them."""
    from sphinx.ext.autodoc.mock import _MockObject, mock

    _MockObject.__or__ = _MockObject.__ror__ = lambda self, other: self  # Tensor | None
    with mock([name for name in REQUIRED if find_spec(name) is None]):
        for package in PACKAGES:
            module = import_module(f"dpt_ros.{package}")
            for name in getattr(module, "__all__", ()):
                setattr(module, name, getattr(module, name))
    app.connect("source-read", add_contents)
