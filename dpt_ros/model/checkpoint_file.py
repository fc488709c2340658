# SPDX-License-Identifier: Apache-2.0
"""A file of weights -> named tensors; its format is detected by its contents, not its name."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dpt_ros.file_kinds import kind_of_file, read_json

_SHOWN = 120  # characters of a name out of a file that a message shows
_INDEX = ".index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin|\.pt)")

# Keys of the network in a training file, beside its optimizer, epoch and so on.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Put before every key by DistributedDataParallel, torch.compile and Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")


class CheckpointError(ValueError):
    """A file is not a checkpoint of the network it was given for.

    Args:
        message: for users.
        missing: parameters of the network that the file lacks.
        unexpected: keys of the file that the network has no place for.
        misshapen: keys whose shape or type is another one.
        not_finite: keys that hold NaN or infinity.
    """

    def __init__(
        self,
        message: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshapen: Iterable[str] = (),
        not_finite: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)
        self.not_finite = tuple(not_finite)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, as they are. No pickled code is executed.

    Of a training file those of its network are taken ("state_dict", "model_state_dict" or
    "model"). A file in parts (``model-00001-of-00003.safetensors``) is read whole, whether its
    index, one of its parts or their folder is given.

    Raises:
        CheckpointError: there is no such file, a part is missing, or it holds something else than
            tensors.
    """
    return {key: tensor for part in _parts(path) for key, tensor in _read(part).items()}


def without_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that training tools put before all keys."""
    keys = dict(zip(tensors, tensors, strict=True))
    while keys and (prefix := _common_prefix(keys.values())):
        keys = {key: short.removeprefix(prefix) for key, short in keys.items()}
    return {short: tensors[key] for key, short in keys.items()}


def _common_prefix(keys: Collection[str]) -> str:
    return next((p for p in _PREFIXES if all(key.startswith(p) for key in keys)), "")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of its header, and a JSON object."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def shown(text: str) -> str:
    """Text from a file, printable on one line of a log."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _parts(path: Path) -> list[Path]:
    """The files that hold a checkpoint, which all exist: itself, or all its parts."""
    if path.is_dir():
        for name in ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin",
                     f"pytorch_model.bin{_INDEX}"):  # fmt: skip
            if (path / name).is_file():
                return _parts(path / name)
        raise CheckpointError(
            f"The folder {path} holds no model.safetensors or pytorch_model.bin; give the path of"
            " a .pt, .bin or .safetensors file."
        )
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint file {path}; give the path of an existing .pt, .bin or "
            ".safetensors file."
        )
    parts = [path]
    if path.name.endswith(_INDEX):
        index = read_json(path)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
            raise CheckpointError(f'{path} is not the index of a checkpoint: no "weight_map".')
        # Only from the index's own folder, even if it names another.
        parts = sorted({path.with_name(Path(name).name) for name in files.values() if name})
    elif shard := _SHARD.fullmatch(path.name):
        parts = sorted(path.parent.glob(f"{shard[1]}-*-of-{shard[2]}{shard[3]}"))
        if len(parts) < int(shard[2]):
            raise CheckpointError(
                f"{path.name} is one of {int(shard[2])} parts of a checkpoint, but {len(parts)} of"
                f" them are in {path.parent}: put all parts there."
            )
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(
            f"{path} names parts that are not there: {shown(', '.join(missing))}; put them beside"
            " it."
        )
    return parts


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if is_safetensors(path):
            return safetensors.torch.load_file(path)
        with path.open("rb") as file:
            # With this suffix torch.load would read it as safetensors.
            misnamed = path.suffix == ".safetensors"
            content = torch.load(
                file if misnamed else path,
                map_location="cpu",
                weights_only=True,
                mmap=not misnamed and zipfile.is_zipfile(path),
            )
    except Exception as error:  # of any kind, on files with random bytes
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely: {_what(path, error)}."
        ) from error
    content = _unwrapped(content)
    if not _is_state(content):
        raise CheckpointError(
            f"{path} holds something else than named tensors; expected a state dict, or a "
            f"training file that has one under {', '.join(_WRAPPERS)}."
        )
    return dict(content)


def _unwrapped(content: Any) -> Any:
    for _ in range(2):
        if not isinstance(content, Mapping) or _is_state(content):
            return content
        content = next((content[name] for name in _WRAPPERS if name in content), content)
    return content


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _what(path: Path, error: BaseException) -> str:
    """Why a reader refused a file."""
    if kind := kind_of_file(path):
        more = "; the weights are beside it, in a .safetensors, .bin or .pt file"
        return f"it is {kind}{more if kind.startswith('JSON') else ''}"
    reason = _reason(error)
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return f"it is damaged, or no file of safetensors or PyTorch ({reason})"
    return (
        "it is damaged, or holds more than tensors, which is refused because such a file can run"
        f" any program ({reason})"
    )


def _reason(error: BaseException) -> str:
    """The reader's reason, without PyTorch's advice to load the file anyway."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return f"it asks for {shown(wanted[1])}"
    return shown((text or type(error).__name__).splitlines()[0])
