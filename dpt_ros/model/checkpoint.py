# SPDX-License-Identifier: Apache-2.0
"""Any published file -> state dict of our DPT. The only place that knows foreign key names."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dpt_ros.model.dpt import DPT
from dpt_ros.model.encoder import PlainConv2dSame

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

LISTED = 8
"""Keys that an error message names of each kind; the error's attributes hold all of them."""

# isl-org/DPT and MiDaS v3. The rules are applied in turn, each to what the ones before it left.
_OFFICIAL: Rules = (
    (r"^pretrained\.model\.patch_embed\.backbone\.", "encoder.resnet."),
    (r"^pretrained\.model\.patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^pretrained\.model\.", "encoder."),
    (r"^pretrained\.act_postprocess(\d)\.", lambda m: f"reassemble.{int(m[1]) - 1}."),
    (r"^(reassemble\.\d)\.0\.project\.0\.", r"\1.read.project."),
    (r"^(reassemble\.\d)\.3\.", r"\1.project."),
    (r"^(reassemble\.\d)\.4\.", r"\1.resample."),
    (r"^scratch\.layer(\d)_rn\.", lambda m: f"reassemble.{int(m[1]) - 1}.out."),
    (r"^scratch\.refinenet(\d)\.", lambda m: f"fusion.{int(m[1]) - 1}."),
    (r"^(fusion\.\d)\.out_conv\.", r"\1.out."),
    (r"^(fusion\.\d)\.resConfUnit1\.", r"\1.skip_unit."),
    (r"^(fusion\.\d)\.resConfUnit2\.", r"\1.unit."),
    (r"^(fusion\..*)\.bn(\d)\.", r"\1.norm\2."),
    (r"^scratch\.output_conv\.", "head."),
    (r"^auxlayer\.", "auxiliary_head."),
)
_OFFICIAL_UNUSED = (
    "pretrained.model.norm.",
    "pretrained.model.head.",
    "scratch.refinenet4.resConfUnit1.",
)

# transformers' DPTForDepthEstimation and DPTForSemanticSegmentation.
_HUGGING_FACE: Rules = (
    (r"^dpt\.embeddings\.backbone\.bit\.embedder\.convolution\.", "encoder.resnet.stem.conv."),
    (r"^dpt\.embeddings\.backbone\.bit\.embedder\.norm\.", "encoder.resnet.stem.norm."),
    (r"^dpt\.embeddings\.backbone\.bit\.encoder\.", "encoder.resnet."),
    (r"^(encoder\.resnet\.stages\.\d+)\.layers\.", r"\1.blocks."),
    (r"^dpt\.embeddings\.(patch_embeddings\.)?projection\.", "encoder.patch_embed."),
    (r"^dpt\.embeddings\.cls_token$", "encoder.cls_token"),
    (r"^dpt\.embeddings\.position_embeddings$", "encoder.pos_embed"),
    (r"^dpt\.encoder\.layer\.", "encoder.blocks."),
    (r"^(encoder\.blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(encoder\.blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(encoder\.blocks\.\d+)\.attention\.attention\.", r"\1.attn."),
    (r"^(encoder\.blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(encoder\.blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(encoder\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^neck\.reassemble_stage\.readout_projects\.(\d)\.0\.", r"reassemble.\1.read.project."),
    (r"^neck\.reassemble_stage\.layers\.(\d)\.projection\.", r"reassemble.\1.project."),
    (r"^neck\.reassemble_stage\.layers\.(\d)\.resize\.", r"reassemble.\1.resample."),
    (r"^neck\.convs\.(\d)\.", r"reassemble.\1.out."),
    (r"^neck\.fusion_stage\.layers\.(\d)\.", lambda m: f"fusion.{3 - int(m[1])}."),
    (r"^(fusion\.\d)\.projection\.", r"\1.out."),
    (r"^(fusion\.\d)\.residual_layer1\.", r"\1.skip_unit."),
    (r"^(fusion\.\d)\.residual_layer2\.", r"\1.unit."),
    (r"^(fusion\..*)\.convolution(\d)\.", r"\1.conv\2."),
    (r"^(fusion\..*)\.batch_norm(\d)\.", r"\1.norm\2."),
    (r"^head\.head\.", "head."),
    (r"^auxiliary_head\.head\.", "auxiliary_head."),
)
_HUGGING_FACE_UNUSED = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")

# Both number the layers of their heads; which layer a number means depends on the task.
_DEPTH_HEAD: Rules = (
    (r"^head\.0\.", "depth_head.conv1."),
    (r"^head\.2\.", "depth_head.conv2."),
    (r"^head\.4\.", "depth_head.conv3."),
)
_LABEL_HEAD: Rules = (
    (r"^head\.", "label_head."),
    (r"^(label_head|auxiliary_head)\.0\.", r"\1.conv."),
    (r"^(label_head|auxiliary_head)\.1\.", r"\1.norm."),
    (r"^(label_head|auxiliary_head)\.4\.", r"\1.classify."),
)

# What the readers were seen to raise on files with random bytes.
_DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

_ATTENTION = re.compile(r"\.attn\.(query|key|value)\.(weight|bias)$")


class CheckpointError(ValueError):
    """A file is not a checkpoint of the network it was given for.

    Attributes:
        missing: parameters of the network that the file lacks.
        unexpected: keys of the file that the network has no place for.
        misshapen: keys whose shape is another one.
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


def load_checkpoint(model: DPT, path: Path) -> None:
    """Read a checkpoint file into ``model``, which may live on the meta device.

    Raises:
        CheckpointError: the file cannot be read, or its keys are not those of the network.
    """
    state = filter_state_dict(read_tensors(path), model, str(path))
    model.load_state_dict(state, strict=True, assign=True)


def save_checkpoint(model: DPT, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write ``model`` as safetensors that :func:`load_checkpoint` reads.

    Raises:
        CheckpointError: the weight standardisation is folded, so the file would be read wrongly.
    """
    if any(isinstance(module, PlainConv2dSame) for module in model.modules()):
        raise CheckpointError(
            "A network with folded weight standardisation cannot be saved, because loading would "
            "fold it again; create it with fold=False."
        )
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    safetensors.torch.save_file(state, path, metadata={"format": "pt", "model": model.spec.name})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file, as they are. No pickled code is executed.

    A training file, recognised by its "optimizer", gives the tensors of its "model".

    Raises:
        CheckpointError: there is no such file, or it holds something else than tensors.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint file {path}; give the path of an existing .pt, .bin or "
            ".safetensors file."
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except _DAMAGED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely: it is damaged, or holds more "
            f"than tensors, which is refused because such a file can run any program ({reason})."
        ) from error
    if isinstance(content, Mapping) and "optimizer" in content:
        content = content.get("model")
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise CheckpointError(
            f"{path} holds something else than named tensors; expected a state dict, or a "
            'training file with "optimizer" and "model".'
        )
    return dict(content)


def filter_state_dict(
    tensors: Mapping[str, Tensor], model: DPT, name: str = "the checkpoint"
) -> dict[str, Tensor]:
    """Rename, merge and check the tensors of any known file until they are ``model``'s own.

    What the published network has but never uses is dropped by name: the final norm and the
    classifier of the transformer, the first residual unit of the deepest fusion stage, and the
    auxiliary head where the network has none. The batch counters of batch norms, which no network
    here reads, may be absent. Nothing else is dropped, nothing is guessed.

    Args:
        tensors: keys as in isl-org/DPT, transformers, or our own.
        model: the network they are meant for.
        name: what messages call them.

    Returns:
        float32 copies (integer buffers keep their type), keys as in ``model.state_dict()``.

    Raises:
        CheckpointError: keys are missing, left over, misshapen or not finite; lists them.
    """
    rules, unused = _family(tensors)
    sources: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.startswith(unused):
            continue
        renamed = _rename(key, (*rules, *(_DEPTH_HEAD if model.depth_head else _LABEL_HEAD)))
        if renamed.startswith("auxiliary_head.") and model.auxiliary_head is None:
            continue
        state[renamed] = value
        sources[renamed] = key
    _merge_attention(state, sources)
    for key in model.state_dict():
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, torch.zeros((), dtype=torch.int64))
    _check(state, sources, model, name)
    return {key: _own_copy(state[key]) for key in model.state_dict()}


def _family(keys: Iterable[str]) -> tuple[Rules, tuple[str, ...]]:
    """The renaming rules and the prefixes of unused keys for the kind of file."""
    if any(key.startswith("pretrained.") for key in keys):
        return _OFFICIAL, _OFFICIAL_UNUSED
    if any(key.startswith("dpt.") for key in keys):
        return _HUGGING_FACE, _HUGGING_FACE_UNUSED
    return (), ()


def _rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _merge_attention(state: dict[str, Tensor], sources: dict[str, str]) -> None:
    """transformers keeps query, key and value apart; timm stacks their rows."""
    groups: dict[str, dict[str, str]] = {}
    for key in state:
        if match := _ATTENTION.search(key):
            groups.setdefault(_ATTENTION.sub(r".attn.qkv.\2", key), {})[match[1]] = key
    for merged, parts in groups.items():
        if set(parts) == {"query", "key", "value"}:
            keys = [parts["query"], parts["key"], parts["value"]]
            if len({state[key].shape for key in keys}) == 1:
                state[merged] = torch.cat([state.pop(key) for key in keys])
                sources[merged] = sources[keys[0]]


def _check(state: Mapping[str, Tensor], sources: Mapping[str, str], model: DPT, name: str) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [sources[key] for key in state if key not in wanted]
    common = [key for key in state if key in wanted]
    misshapen = [key for key in common if state[key].shape != wanted[key].shape]
    not_finite = [
        sources[key]
        for key in common
        if state[key].is_floating_point() and not torch.isfinite(state[key]).all()
    ]
    if not (missing or unexpected or misshapen or not_finite):
        return
    shapes = [
        f"{sources[key]} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in misshapen
    ]
    lists = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "with NaN or infinity": not_finite,
    }
    details = "; ".join(f"{len(v)} {k}: {_some(v)}" for k, v in lists.items() if v)
    raise CheckpointError(
        f"{name} is not a checkpoint of {model.spec.name} and was not loaded: {details}. "
        "Choose the network that the file belongs to.",
        missing,
        unexpected,
        [sources[key] for key in misshapen],
        not_finite,
    )


def _some(keys: list[str]) -> str:
    rest = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _own_copy(tensor: Tensor) -> Tensor:
    """Memory of our own, so that nothing depends on the mapped file any more."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True)
