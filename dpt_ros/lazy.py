# SPDX-License-Identifier: Apache-2.0
"""Names of a package that are imported when they are first used (PEP 562).

torch and OpenCV take seconds to import; a command that only prints its help needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for the ``__init__`` of a package.

    Args:
        package: full name of the package.
        modules: names that each module of the package defines, with blanks between them.
    """

    def get(name: str) -> Any:
        for module, names in modules.items():
            if name in names.split():
                return getattr(import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
