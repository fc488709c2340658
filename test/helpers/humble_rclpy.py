# SPDX-License-Identifier: Apache-2.0
"""``humble_rclpy.py -m MODULE ARGUMENTS``: MODULE with an rclpy without newer names.

What Humble's rclpy does not have is taken from the installed one: methods are deleted, modules and
names cannot be imported by our code, newer keyword arguments are refused from it, and a callback
of a subscription gets the message alone.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import runpy
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# For the helpers, and dpt_ros where it is not installed: pytest's paths do not hold here.
sys.path[:0] = [str(folder) for folder in Path(__file__).parents[1:3]]

from helpers.rclpy_names import Names, humble  # noqa: E402


def hide() -> None:
    """Make the rclpy of this process look like Humble's to dpt_ros."""
    names = humble()
    used = _used_by_rclpy() - {"CallbackType"}
    _call_with_messages_alone()
    for name, members in names.items():
        if name.startswith("rclpy.impl"):  # its logger looks at who calls it
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for cls in (c for c in vars(module).values() if inspect.isclass(c)):
            if cls.__module__ == name and cls.__name__ in members and not issubclass(cls, Enum):
                _strip(cls, members, used)
    builtins.__import__ = _importing(names, builtins.__import__)


def _ours(depth: int) -> bool:
    """Whether code of dpt_ros calls the function that asks."""
    about = sys._getframe(depth + 1).f_globals
    spec = about.get("__spec__")
    return (spec.name if spec else about.get("__name__", "")).startswith("dpt_ros")


def _call_with_messages_alone() -> None:
    from rclpy import executors
    from rclpy.subscription import Subscription

    types = Subscription.CallbackType
    executors.Subscription = SimpleNamespace(CallbackType=types)

    def set_callback(self: Any, callback: Callable) -> None:
        self._callback, self._callback_type = callback, types.MessageOnly

    Subscription.callback = property(lambda self: self._callback, set_callback)


def _used_by_rclpy() -> set[str]:
    """Attributes that rclpy itself reads or sets, which it cannot do without."""
    import rclpy

    files = Path(rclpy.__file__).parent.rglob("*.py")
    trees = [ast.parse(path.read_text()) for path in files]
    return {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def _strip(cls: type, members: dict[str, list[str]], used: set[str]) -> None:
    for name, value in list(vars(cls).items()):
        known = members.get(f"{cls.__name__}.{name}")
        if known is None and not name.startswith("_") and name not in used:
            delattr(cls, name)
        elif known is not None and inspect.isfunction(value):
            # Humble's QoSProfile takes its properties by **options, which have no names there.
            newer = {
                word
                for word in inspect.signature(value).parameters
                if word not in ("self", *known) and f"{cls.__name__}.{word}" not in members
            }
            if newer:
                setattr(cls, name, _refusing(value, newer))


def _refusing(function: Callable, newer: set[str]) -> Callable:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if (given := newer & options.keys()) and _ours(1):
            raise TypeError(f"{function.__qualname__}() has no {', '.join(given)} on Humble")
        return function(*arguments, **options)

    about = inspect.signature(function)
    kept = [p for name, p in about.parameters.items() if name not in newer]
    call.__signature__ = about.replace(parameters=kept)
    return call


def _importing(names: Names, original: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    def load(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        if name.partition(".")[0] == "rclpy" and level == 0 and _ours(1):
            if name not in names:
                raise ModuleNotFoundError(f"No module named {name!r} on Humble")
            for word in fromlist or ():
                if word not in names[name] and f"{name}.{word}" not in names:
                    raise ImportError(f"cannot import name {word!r} from {name!r} on Humble")
        return original(name, globals, locals, fromlist, level)

    return load


if __name__ == "__main__":
    hide()
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
