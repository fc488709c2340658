# SPDX-License-Identifier: Apache-2.0
"""The .lock files hold everything that an installation needs: it resolves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise

import pytest
from helpers.places import ROOT
from helpers.requirements import requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCRIPTS = ROOT / "scripts"
# What each package requires, as scripts/lock found it: {"name==version": [requirement, ...]}, with
# the requirements of its wheels for all Pythons together.
REQUIRES = json.loads((SCRIPTS / "requires.json").read_text())
# The first and a late release of each: markers may compare the third number.
PYTHONS = [f"3.{minor}.{patch}" for minor in (10, 11, 12, 13) for patch in (0, 20)]
LOCKS = {"requirements.lock": ("ros",), "requirements_test.lock": ("ros", "test")}


requirement_of = lru_cache(maxsize=None)(Requirement)


def machine(python: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }


def lines(lock: str) -> list[str]:
    return [line for line in (SCRIPTS / lock).read_text().splitlines() if line[:1].isalnum()]


def pins(lock: list[str], python: str) -> dict[str, str]:
    """Version by name of what is installed for a Python."""
    found = [requirement_of(line.rstrip(" \\")) for line in lock]
    here = [pin for pin in found if pin.marker is None or pin.marker.evaluate(machine(python))]
    assert len({pin.name for pin in here}) == len(here)
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in here}


def missing(wanted: list[str], extras: tuple[str, ...], lock: list[str], python: str) -> set[str]:
    """What is required, directly or not, and has no pin or one out of its range."""
    pinned, faults, seen = pins(lock, python), set(), set()

    def follow(by: str, requirements: list[str], extras: tuple[str, ...]) -> None:
        for line in requirements:
            requirement = requirement_of(line)
            marker, name = requirement.marker, canonicalize_name(requirement.name)
            places = [machine(python) | {"extra": extra} for extra in ("", *extras)]
            if marker is not None and not any(map(marker.evaluate, places)):
                continue
            version = pinned.get(name)
            if not version or not requirement.specifier.contains(version, prereleases=True):
                faults.add(f"{by} requires {line}, pinned is {version}")
            elif (name, key := tuple(sorted(requirement.extras))) not in seen:
                seen.add((name, key))
                pin = f"{name}=={version}"
                follow(pin, REQUIRES[pin], key)

    follow("dpt_ros", wanted, extras)
    for name, version in pinned.items():
        follow(f"{name}=={version}", REQUIRES[f"{name}=={version}"], ())
    return faults


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The requirements of setup.py."""
    return requirements(tmp_path_factory.mktemp("info"))


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_every_pinned_package_is_pinned(wanted, lock, python):
    assert len(pins(lines(lock), python)) > 100
    assert missing(wanted, LOCKS[lock], lines(lock), python) == set()


def test_a_pin_that_is_taken_out_is_missed(wanted):
    lock = lines("requirements_test.lock")
    # The second is asked for by an extra of coverage, the third by one of ours.
    for name in ("coverage", "tomli", "ros-rmw-fastrtps-cpp", "torch", "ros-std-msgs", "h11"):
        less = [line for line in lock if not line.startswith(f"{name}==")]
        faults = missing(wanted, ("ros", "test"), less, "3.10.0")
        assert any(f"requires {name}" in fault for fault in faults), name


def test_requires_json_is_of_these_locks():
    every = {
        f"{name}=={version}"
        for python in PYTHONS
        for name, version in pins(lines("requirements_test.lock"), python).items()
    }
    assert set(REQUIRES) == every, "run scripts/lock"


def installed() -> Iterator[tuple[str, list[str]]]:
    for pin in REQUIRES:
        name, _, version = pin.partition("==")
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if found.version == version:
            yield pin, found.requires or []


def test_requires_json_says_what_the_installed_packages_say():
    found = dict(installed())
    assert len(found) > 100
    for pin, requires in found.items():
        # An extra that no package asks for is left out.
        assert {line for line in requires if "extra ==" not in line} <= set(REQUIRES[pin]), pin


def test_every_pin_has_a_hash():
    for lock in (*LOCKS, "installer.lock"):
        text = (SCRIPTS / lock).read_text().splitlines()
        for line, following in pairwise(text):
            assert not line[:1].isalnum() or following.startswith("    --hash=sha256:"), line


def test_the_demo_is_part_of_the_tests_environment():
    for python in PYTHONS:
        demo, tests = (pins(lines(lock), python) for lock in LOCKS)
        assert demo.items() <= tests.items()
