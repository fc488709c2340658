# SPDX-License-Identifier: Apache-2.0
"""README's code blocks do what they say, and every command of README and docs exists.

A block is run as it stands, in a folder that looks like the checkout after ``scripts/demo``. The
comment ``<!-- not run: needs ... -->`` in front of a block exempts it; its commands are checked
like all others.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml
from helpers.places import ROOT as REPO

from dpt_ros.apps import train
from dpt_ros.apps.demo.bag import write_camera_bag
from dpt_ros.engine.settings import Settings, parameter_name

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
SETUP = (REPO / "setup.py").read_text("utf-8")
PROGRAMS = set(re.findall(r'"(dpt_\w+)": "dpt_ros', SETUP))
EXTRAS = set(re.findall(r'"([\w-]+)":', SETUP.partition("extras_require")[2].partition("}")[0]))
# Most options of dpt_train are made from the fields of its Recipe.
TRAIN = {option for action in train._parser()._actions for option in action.option_strings}
SOURCES = "\n".join(path.read_text("utf-8") for path in (REPO / "dpt_ros").rglob("*.py"))
LAUNCH = {path.name: path.read_text("utf-8") for path in (REPO / "launch").glob("*.py")}
PARAMETERS = {parameter_name(field) for field in fields(Settings)}
# Commands that are not this project's.
FOREIGN = {
    *("apt", "cd", "colcon", "curl", "export", "git", "mkdir", "pip", "rerun", "ros2", "rosdep"),
    *("docker", "rviz2", "source", "ssh", "torchrun", "touch", "trtexec"),
}
ROS_OPTIONS = {"--ros-args", "--enclave", "--params-file"}
REASONS = {"a download", "a GPU", "a ROS install", "a screen", "a dataset", "an hour", "minutes"}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    not_run: str  # why, or empty

    def __str__(self) -> str:
        return self.text.strip().splitlines()[0]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that have a language."""
    fence = re.compile(
        r"(?:^<!-- not run: needs (?P<why>[^\n]+) -->\n)?"
        r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    found = fence.finditer(page.read_text("utf-8"))
    return [Block(match["language"], match["text"], match["why"] or "") for match in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every simple command of a shell text, without what is assigned before it."""
    for line in text.replace("\\\n", " ").splitlines():
        # Quotes and comments are shlex's; a separator is a word of its own in our pages.
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in ("&&", "||", "|", ";", "&"):
                while words and (words[0] == "sudo" or re.match(r"\w+=", words[0])):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def inline_commands(text: str) -> Iterator[str]:
    """Inline code that calls a program of ours."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        first = code.split()[0] if code.split() else ""
        if first in PROGRAMS or first.startswith("scripts/") or code.startswith("ros2 launch dpt"):
            yield code


def wrong(words: list[str]) -> str:
    """What does not exist in a command, or nothing."""
    name, *rest = words
    if name == "ros2" and rest[0] in ("run", "launch") and rest[1] == "dpt_ros":
        kind, _, name, *rest = rest
        if kind == "launch":
            return wrong_launch(name, rest)
    if name in PROGRAMS:
        return wrong_arguments(name, rest)
    if Path(name).name in ("python", "python3"):
        if rest[0] == "-m":
            return "" if importlib.util.find_spec(rest[1]) else f"no module {rest[1]}"
        return "" if rest[0] == "-c" or (REPO / rest[0]).is_file() else f"no file {rest[0]}"
    if name == "pip":
        extras = {extra for word in rest for extra in re.findall(r"\[([\w,-]+)\]", word)}
        unknown = {part for extra in extras for part in extra.split(",")} - EXTRAS
        return f"no extra {unknown}" if unknown else ""
    if "/" in name:
        return "" if (REPO / name).is_file() else f"no file {name}"
    return "" if name in FOREIGN else f"unknown command {name}"


def wrong_launch(file: str, arguments: list[str]) -> str:
    if file not in LAUNCH:
        return f"no launch file {file}"
    known = set(re.findall(r'^    \(\s*"(\w+)",', "\n".join(LAUNCH.values()), re.MULTILINE))
    for argument in arguments:
        name, is_argument, value = argument.partition(":=")
        if is_argument and name not in known:
            return f"no launch argument {name}"
        if name in PARAMETERS and value != "...":
            Settings.parse({name: yaml.safe_load(value)})
    return ""


def wrong_arguments(program: str, arguments: list[str]) -> str:
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "-p" and program in ("dpt_node", "dpt_bag", "dpt_run"):
            name, _, value = word.partition(":=")
            if name not in PARAMETERS:
                return f"no parameter {name}"
            Settings.parse({name: yaml.safe_load(value)})
        option = word.replace("--no-", "--", 1)
        if program == "dpt_train" and word in TRAIN:
            continue
        if word.startswith("--") and word not in ROS_OPTIONS and f'"{option}"' not in SOURCES:
            return f"no option {word}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_and_takes_these_arguments(page):
    text = page.read_text("utf-8")
    shell = [block.text for block in blocks(page) if block.language == "bash"]
    for code in [*shell, *inline_commands(text)]:
        for words in commands(code):
            assert not wrong(words), f"{' '.join(words)}: {wrong(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_asks_an_index_for_a_package_that_it_does_not_have(page):
    assert not re.search(r"pip install\s+[\"']?dpt_ros", page.read_text("utf-8"))


def test_a_wrong_command_is_found():
    for code in (
        "dpt_nod --help",
        "scripts/dmo",
        "dpt_bag in out --fastest",
        "ros2 launch dpt_ros dpt.launch.py imag:=/camera/image",
        "ros2 run dpt_ros dpt_nod",
        "dpt_node --ros-args -p depth_netwrk:=auto",
        "pip install '.[viev]'",
        "python3 -m colcn build",
    ):
        assert any(wrong(words) for words in commands(code)), code
    with pytest.raises(ValueError, match="smoothing"):
        list(map(wrong, commands("dpt_node --ros-args -p smoothing.strength:=7")))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkout's docs and a camera's bag where the demo leaves one."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "docs").symlink_to(REPO / "docs")
    write_camera_bag(folder / "demo_out" / "camera", [("room", 9001)], 2, 10.0)
    return folder


def test_a_block_of_the_readme_that_is_not_run_says_what_it_needs():
    for block in blocks(REPO / "README.md"):
        assert not block.not_run or block.not_run.split(" and ")[0] in REASONS, block


@pytest.mark.parametrize(
    "block", [block for block in blocks(REPO / "README.md") if not block.not_run], ids=str
)
def test_a_block_of_the_readme_runs_as_it_stands(block: Block, checkout):
    before = set(checkout.iterdir())
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = {"python": [sys.executable, "-c"], "bash": shell}[block.language]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, block.text],
        cwd=checkout,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(checkout.iterdir()) > before, "It leaves nothing to look at."
