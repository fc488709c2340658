# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files of any bytes: nothing in them is run, nothing wrong gets into a network."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import nn

from dpt_ros.model.checkpoint import CheckpointError, filter_state_dict, read_tensors
from fuzz.properties import Broken, bounded, refusal

_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_SUFFIXES = (".pt", ".safetensors")
_PROGRAMS = ("os.", "subprocess.", "pty.", "shutil.", "socket.", "ctypes.dlopen", "webbrowser.")
_reading = False
_done: list[str] = []


class Little(nn.Module):
    """What `filter_state_dict` looks at of a DPT, with few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = SimpleNamespace(name="little")
        self.auxiliary_head = None
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList([nn.Module()])
        self.encoder.blocks[0].attn = nn.Module()
        self.encoder.blocks[0].attn.qkv = nn.Linear(2, 6)
        self.depth_head = nn.Module()
        self.depth_head.conv1 = nn.Conv2d(2, 1, 1)
        self.norm = nn.BatchNorm2d(2)


class Program:
    """Unpickles to a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: while a file is read no program, network or other file is touched."""
    if not _reading:
        return
    # What is raised here the reader may take for damage of the file: it is noted as well.
    opens = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    evaluates = event == "exec" and args[0].co_filename == "<string>" and not _names_a_tuple()
    if opens or evaluates or (event.startswith(_PROGRAMS) and event not in _HARMLESS):
        _done.append(f"{event} {args!r:.200}")
        raise PermissionError(event)


def _names_a_tuple() -> bool:
    """Whether it is a namedtuple that evaluates: torch imports files while it reads."""
    return Path(sys._getframe(2).f_code.co_filename).parent.name == "collections"


_HARMLESS = ("os.listdir", "os.scandir")
sys.addaudithook(_watch)


def saved(content: Any, old: bool = False) -> bytes:
    """A .pt file."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    """Right files of each kind, wrong tensors, and programs in disguise."""
    state = Little().state_dict()
    halves = {key: value.half() for key, value in state.items() if value.is_floating_point()}
    wide = torch.zeros(1).expand(1 << 20, 1 << 20)
    key = "depth_head.conv1.weight"
    shape = state[key].shape
    wrong = [
        torch.full(shape, float("nan")),
        torch.full(shape, 1e300, dtype=torch.float64),
        torch.zeros(shape, dtype=torch.complex64),
        torch.zeros(shape, dtype=torch.int32),
        torch.zeros(shape).to_sparse(),
        torch.zeros(shape, device="meta"),
        wide,
    ]
    trained = {"model": state, "optimizer": {}}
    files = [saved(state), saved(state, old=True), saved(halves), saved(trained)]
    files += [saved({**state, key: value}) for value in wrong]
    apart = {f"encoder.blocks.0.attn.{k}.weight": wide for k in ("query", "key", "value")}
    files.append(saved({**state, **apart}))
    evil = [
        Program(os.system, "true"),
        Program(builtins.eval, "1"),
        Program(builtins.exec, "pass"),
        Program(subprocess.Popen, ["true"]),
        Program(builtins.open, os.devnull, "w"),
        Program(importlib.import_module, "antigravity"),
        Program(torch.load, os.devnull),
        Program(pickle.loads, pickle.dumps(1)),
    ]
    files += [saved({"weight": program}, old) for program in evil for old in (False, True)]
    files.append(pickle.dumps(evil[0]))
    found = [b"\0" + file for file in files]
    return [*found, b"\1" + safetensors.torch.save(state), b"\1" + safetensors.torch.save(halves)]


def one_input(data: bytes) -> None:
    global _reading
    path = Path(_FOLDER.name) / f"weights{_SUFFIXES[data[0] % 2 if data else 0]}"
    path.write_bytes(data[1:])
    model = Little()
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # of what torch imports first
    try:
        with bounded(len(data)), refusal(CheckpointError):
            _reading = True
            state = filter_state_dict(read_tensors(path), model, "weights.pt")
            _reading = False
            _see(state, model)
    finally:
        _reading, sys.dont_write_bytecode = False, written
        if _done:
            raise Broken(f"A checkpoint made Python do {_done}.")


def _see(state: dict[str, torch.Tensor], model: Little) -> None:
    for key, own in model.state_dict().items():
        value = state[key]
        same = (value.shape, value.dtype, value.device, value.layout)
        if same != (own.shape, own.dtype, own.device, own.layout):
            raise Broken(f"{key} is {same} instead of {own.shape}, {own.dtype}.")
        if not torch.isfinite(value).all():
            raise Broken(f"{key} is not finite.")
    model.load_state_dict(state, strict=True, assign=True)
