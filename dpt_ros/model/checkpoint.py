# SPDX-License-Identifier: Apache-2.0
"""Named tensors -> state dict of a DPT. The only module with foreign key names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from dpt_ros.model.checkpoint_file import CheckpointError, read_tensors, shown, without_wrapper
from dpt_ros.model.describe import describe
from dpt_ros.model.dpt import DPT
from dpt_ros.model.encoder import PlainConv2dSame

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

LISTED = 8
"""Most keys of each kind in an error message; the error's attributes hold all."""

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
_DEPTH_HEAD: Rules = ((r"^head\.([024])\.", lambda m: f"depth_head.conv{int(m[1]) // 2 + 1}."),)
_LABEL_HEAD: Rules = (
    (r"^head\.", "label_head."),
    (r"^(label_head|auxiliary_head)\.0\.", r"\1.conv."),
    (r"^(label_head|auxiliary_head)\.1\.", r"\1.norm."),
    (r"^(label_head|auxiliary_head)\.4\.", r"\1.classify."),
)

_ATTENTION = re.compile(r"\.attn\.(query|key|value)\.(weight|bias)$")


def load_checkpoint(model: DPT, path: Path) -> None:
    """Read a checkpoint file into ``model``, which may live on the meta device.

    Raises:
        CheckpointError: the file cannot be read, or its keys are not those of the network.
    """
    state = filter_state_dict(read_tensors(path), model, str(path))
    model.load_state_dict(state, strict=True, assign=True)


def load_parts(
    model: DPT, tensors: Mapping[str, Tensor], fresh: tuple[str, ...], name: str = "the checkpoint"
) -> tuple[str, ...]:
    """Copy a checkpoint of another network into ``model``, where the two match.

    Args:
        model: initialised, with memory.
        tensors: as for :func:`filter_state_dict`.
        fresh: prefixes of parameter names, such as "label_head."; parameters under them that the
            checkpoint lacks, or has in another shape, keep their initial weights, and surplus
            keys are dropped. Everything else must fit.
        name: of the tensors in messages.

    Returns:
        the names of the parameters that kept their initial weights.

    Raises:
        CheckpointError: as for :func:`filter_state_dict`.
    """
    own = model.state_dict()
    state = filter_state_dict(tensors, model, name, fresh)
    model.load_state_dict(own | state)
    return tuple(key for key in own if key not in state)


def save_checkpoint(model: DPT, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write ``model`` as safetensors to ``path``, in ``dtype``, as ``create_model`` reads them.

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
    safetensors.torch.save_file(state, path, metadata=describe(model.spec))


def filter_state_dict(
    tensors: Mapping[str, Tensor],
    model: DPT,
    name: str = "the checkpoint",
    fresh: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Rename, merge and check the tensors of any known file until they are ``model``'s own.

    Dropped by name are the unused parts of the published network: the final norm and the
    classifier of the transformer, the first residual unit of the deepest fusion stage, and the
    auxiliary head where ``model`` has none. The batch counters of batch norms may be absent. A
    prefix of all keys from a training tool ("module.", "_orig_mod.", "model.") is removed.

    Args:
        tensors: keys as in isl-org/DPT, transformers or dpt_ros.
        model: the network to load them into.
        name: of the tensors in messages.
        fresh: as for :func:`load_parts`.

    Returns:
        float32 copies (integer buffers keep their type), keys as in ``model.state_dict()``; those
        that ``load_parts`` keeps are left out.

    Raises:
        CheckpointError: keys are missing, left over, misshapen or not finite; lists them.
    """
    tensors = without_wrapper(tensors)
    rules, unused = _family(tensors)
    own = model.state_dict()
    sources: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    depth_file = model.depth_head is not None
    if fresh:
        # The file decides what the numbers mean: only label heads have a norm, layer 1.
        depth_file = not any(_rename(key, rules).startswith("head.1.") for key in tensors)
    for key, value in tensors.items():
        if key.startswith(unused):
            continue
        renamed = _rename(key, (*rules, *(_DEPTH_HEAD if depth_file else _LABEL_HEAD)))
        if renamed.startswith("auxiliary_head.") and model.auxiliary_head is None:
            continue
        state[renamed] = value
        sources[renamed] = key
    _merge_attention(state, sources, own)
    for key in own:
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, torch.zeros((), dtype=torch.int64))
    shapes = {key: value.shape for key, value in state.items()}
    wanted = {
        key: value
        for key, value in own.items()
        if not key.startswith(fresh) or shapes.get(key) == value.shape
    }
    for key in [key for key in state if key.startswith(fresh) and key not in wanted]:
        del state[key]
    _check(state, sources, wanted, f"{name} is not a checkpoint of {model.spec.name}")
    return {key: _own_copy(state[key], value) for key, value in wanted.items()}


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


def _merge_attention(
    state: dict[str, Tensor], sources: dict[str, str], own: Mapping[str, Tensor]
) -> None:
    """transformers keeps query, key and value apart; timm stacks their rows."""
    groups: dict[str, dict[str, str]] = {}
    for key in state:
        if match := _ATTENTION.search(key):
            groups.setdefault(_ATTENTION.sub(r".attn.qkv.\2", key), {})[match[1]] = key
    for merged, parts in groups.items():
        if set(parts) == {"query", "key", "value"}:
            keys = [parts["query"], parts["key"], parts["value"]]
            alike = len({state[key].shape for key in keys}) == 1
            fits = merged in own and 3 * state[keys[0]].numel() == own[merged].numel()
            # A file may claim any shape: no memory is allocated for another than the network's.
            if alike and fits and all(_is_plain(state[key], own[merged]) for key in keys):
                state[merged] = torch.cat([state.pop(key) for key in keys])
                sources[merged] = sources[keys[0]]


def _check(
    state: Mapping[str, Tensor],
    sources: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    message: str,
) -> None:
    missing = [key for key in wanted if key not in state]
    unexpected = [sources[key] for key in state if key not in wanted]
    common = [key for key in state if key in wanted]
    fitting = [
        key
        for key in common
        if state[key].shape == wanted[key].shape and _is_plain(state[key], wanted[key])
    ]
    misshapen = [key for key in common if key not in set(fitting)]
    not_finite = [
        sources[key]
        for key in fitting
        if state[key].is_floating_point() and not torch.isfinite(state[key].float()).all()
    ]
    if not (missing or unexpected or misshapen or not_finite):
        return
    shapes = [
        f"{shown(sources[key])} {_kind(state[key], wanted[key])}"
        f"{' without memory' if state[key].is_meta else ''} instead of"
        f" {_kind(wanted[key], state[key])}"
        for key in misshapen
    ]
    lists = {
        "missing": missing,
        "unexpected": [shown(key) for key in unexpected],
        "of another shape or type": shapes,
        "with NaN or infinity": [shown(key) for key in not_finite],
    }
    details = "; ".join(f"{len(v)} {k}: {_some(v)}" for k, v in lists.items() if v)
    raise CheckpointError(
        f"{message} and was not loaded: {details}. Choose the network that the file belongs to.",
        missing,
        unexpected,
        [sources[key] for key in misshapen],
        not_finite,
    )


def _is_plain(tensor: Tensor, own: Tensor) -> bool:
    """Whether it is dense, in memory, and convertible to the type of the network's ``own``."""
    return (
        tensor.layout == torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex())
        and tensor.is_floating_point() >= own.is_floating_point()
    )


def _kind(tensor: Tensor, other: Tensor) -> str:
    """Shape, and type and layout if the shapes are equal."""
    shape = str(tuple(tensor.shape))
    if tensor.shape != other.shape:
        return shape
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    return f"{shape} {tensor.dtype}{layout}"


def _some(keys: list[str]) -> str:
    rest = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _own_copy(tensor: Tensor, own: Tensor) -> Tensor:
    """A copy that does not depend on the mapped file."""
    dtype = torch.float32 if tensor.is_floating_point() else own.dtype
    return tensor.to(dtype, copy=True)
