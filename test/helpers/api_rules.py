# SPDX-License-Identifier: Apache-2.0
"""What a change of the public API asks of the version and of CHANGELOG.rst: pure functions.

An API is a dictionary of entries, name to detail: ``dpt_bag --storage`` to ``default mcap``.
"""

from __future__ import annotations

import re

Api = dict[str, str]
PENDING = "Forthcoming"


def to_text(api: Api) -> str:
    """The lines of a frozen file."""
    return "".join(f"{name}  {detail}".rstrip() + "\n" for name, detail in api.items())


def from_text(text: str) -> Api:
    """The entries of a frozen file, without its comments."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: detail for name, _, detail in (line.partition("  ") for line in lines)}


def sections(changelog: str) -> dict[str, str]:
    """The text of each section of CHANGELOG.rst by its heading: a version or "Forthcoming"."""
    heading = r"^(Forthcoming|\d+\.\d+\.\d+)(?: \(\d{4}-\d\d-\d\d\))?\n-+\n"
    parts = re.split(heading, changelog, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def changes(old: Api, new: Api) -> tuple[set[str], set[str]]:
    """The names whose change breaks a user (removed, altered, newly required), and the others
    (added). What belongs to an added or removed name is left out: the options of a command."""
    added, removed = new.keys() - old.keys(), old.keys() - new.keys()
    altered = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    inner = {n for names in (added, removed) for n in names if _is_inside(n, names)}
    required = {name for name in added if new[name].endswith("required")}
    breaking = (removed | altered | required) - inner
    return breaking, added - breaking - inner


def _is_inside(name: str, names: set[str]) -> bool:
    return any(name.startswith(tuple(f"{other}{end}" for end in " .(")) for other in names)


def problems(old_version: str, old: Api, version: str, new: Api, changelog: str) -> list[str]:
    """Why the API may not be what it is, a sentence each.

    Args:
        old_version: at which the API was frozen.
        old: the frozen API.
        version: of package.xml.
        new: the API of the code.
        changelog: the text of CHANGELOG.rst.
    """
    breaking, added = changes(old, new)
    released = version != old_version
    section = version if released else PENDING
    found = []
    text = sections(changelog).get(section)
    if text is None and (released or breaking or added):
        found.append(f"CHANGELOG.rst has no section {section}.")
    for name in sorted(breaking | added):
        if missing := [word for word in words(name) if word not in (text or "")]:
            found.append(f"{name} changed: name {', '.join(missing)} in CHANGELOG.rst, {section}.")
    if released:
        least = least_version(old_version, breaking, added)
        if numbers(version) < numbers(least):
            found.append(
                f"Version {version} comes after {old_version}, but must be {least} or later."
            )
    return found


def words(name: str) -> list[str]:
    """What CHANGELOG.rst must contain of a name: ``create_model`` and ``weights`` for
    ``dpt_ros.model.create_model(weights)``."""
    parts = [part for part in re.split(r"[ ()=]+", name) if part]
    return [part.rpartition(".")[2] if part.startswith("dpt_ros.") else part for part in parts]


def least_version(old: str, breaking: set[str], added: set[str]) -> str:
    """The version that semver asks for after a change: major, minor or patch."""
    major, minor, patch = numbers(old)
    if breaking:
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if added else f"{major}.{minor}.{patch + 1}"


def numbers(version: str) -> tuple[int, int, int]:
    """The three numbers of a version."""
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch
