"""Weight files of published models, as their authors wrote them, into diffusers' transformer.

A training run's checkpoint holds more than a model: several networks side by side, wrappers' names
inside parameters' names, the original code's own naming. Nothing in a file is trusted: no pickled
code is run, and every tensor must be one that the model has, in its shape.

This file knows weights only: not where files come from, nor what a model is used for.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillframe.backbones.finite import check_finite, check_model
from stillframe.backbones.wan import empty_transformer
from stillframe.errors import ModelError

__all__ = [
    "check_tensors",
    "load_transformer",
    "merge_lora",
    "pick_weights",
    "read_file",
    "strip_prefixes",
    "to_diffusers",
    "weights_in",
]

State = dict[str, Tensor]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")

# wrappers of sharded, checkpointed and compiled training, anywhere in a name
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# what the model was called where it was trained, at a name's start
_OUTER = re.compile(r"^(?:module\.|model\.|net\.|diffusion_model\.)+")

# what torch says of anything in a pickle beyond tensors and plain containers
_CODE = re.compile(r"unsupported (?:global|class)|unrecognized function|allowlisted", re.IGNORECASE)


def read_file(path: Path) -> dict[str, Any]:
    """What a weight file holds; tensors on the CPU, mapped from disk where the format allows it.

    Args:
        path: ``.safetensors``, or a file of ``torch.save`` (``.pt``, ``.pth``, ``.bin`` or
            ``.ckpt``), of which nothing but tensors and plain containers is read.

    Raises:
        ModelError: it is missing, truncated, of another kind, or contains pickled code.
    """
    if not os.path.isfile(path):
        raise ModelError(f"weight file {path} is not there")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise ModelError(f"weight file {path} cannot be read: {error.strerror}") from error
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"weight file {path} is truncated or no safetensors file: {_short(error)}"
            ) from error
    if path.suffix not in _PICKLED:
        known = ", ".join((".safetensors", *_PICKLED))
        raise ModelError(f"weight file {path} is of an unknown kind; known are {known}")
    content = _unpickle(path, mmap=zipped)  # only the newer format can be mapped
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ModelError(f"weight file {path} holds a {kind} where named tensors were expected")
    return dict(content)


def _unpickle(path: Path, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():  # of odd files, which the error below is about
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file fails in every way there is
        if _CODE.search(str(error)):
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f" ({named[1]})" if named else ""
            raise ModelError(
                f"weight file {path} was refused: it contains pickled code{what}, not only weights"
            ) from error
        size = f"{path.stat().st_size:,} bytes"
        raise ModelError(
            f"weight file {path} ({size}) is truncated or not a weight file"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200]


def pick_weights(content: Mapping[str, Any], keys: Sequence[str], path: Path) -> State:
    """One network's tensors out of a file's content.

    Args:
        content: from `read_file`.
        keys: top-level entries that may hold the network, best first; empty if ``content`` itself
            is the network, "" in the end if it may be.
        path: for messages.

    Raises:
        ModelError: none of the entries is there, or what is there is not named tensors.
    """
    found: Any = content
    if keys:
        key = next((key for key in keys if key in content or not key), None)
        if key is None:
            there = ", ".join(map(str, list(content)[:3]))
            instead = f"its first entries are {there}" if there else "it is empty"
            raise ModelError(f"weight file {path} has no {' or '.join(keys)}; {instead}")
        found = content[key] if key else content
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"weight file {path} holds no named tensors where the model should be")
    for name, value in found.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ModelError(
                f"weight file {path} holds a {type(value).__name__} at {name!r}, not a named tensor"
            )
    return dict(found)


def weights_in(path: Path, keys: Sequence[str] | None = ()) -> str:
    """What tensors a weight file has, in words: how many, in which entry, of which kinds.

    Args:
        path: see `read_file`.
        keys: see `pick_weights`; None for all tensors of a low-rank update.

    Raises:
        ModelError: see `read_file` and `pick_weights`.
    """
    content, entry = read_file(path), ""
    if keys is None:
        inner = [value for value in content.values() if isinstance(value, Mapping)] or [content]
        content = {name: value for part in inner for name, value in part.items()}
    else:
        entry = next((f" in {key}" for key in keys if key in content), "")
        content = dict(pick_weights(content, keys, path))
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors})
    return f"{len(tensors)} tensors{entry}, {' and '.join(kinds)}"


def strip_prefixes(state: Mapping[str, Tensor], what: str = "the file") -> State:
    """``state`` with the names that the model itself gave, free of what training put around it.

    Args:
        state: weights.
        what: the name of the weights, for the message.

    Raises:
        ModelError: two tensors end up with one name.
    """
    plain: State = {}
    for name, value in state.items():
        short = _OUTER.sub("", _WRAPPERS.sub("", name))
        if short in plain:
            raise ModelError(f"{what} has {short} twice, once as {name}")
        plain[short] = value
    return plain


def to_diffusers(state: Mapping[str, Tensor], what: str = "the file") -> State:
    """Names of the original Wan code to diffusers' names; diffusers' own stay as they are.

    Args:
        state: weights, free of prefixes.
        what: the name of the weights, for the message.

    Raises:
        ModelError: tensors end up with one name.
    """
    if any(name.startswith("condition_embedder.") for name in state):
        return dict(state)
    converted: State = convert_wan_transformer_to_diffusers(dict(state))
    if lost := len(state) - len(converted):
        raise ModelError(f"{what} has {lost} of its {len(state)} tensors twice, by different names")
    return converted


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not exactly those of a model.

    Args:
        state: what there is.
        expected: what the model has (may be on the meta device).
        what: the name of the weights, for the message.

    Raises:
        ModelError: names the first tensor that is missing, unexpected, of another shape, or not of
            plain floating-point numbers (quantised ones mean something else).
    """
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"lacks {len(missing)} of {len(expected)} tensors, first {missing[0]}")
        if unexpected:
            parts.append(f"has {len(unexpected)} that the model has not, first {unexpected[0]}")
        raise ModelError(f"{what} {' and '.join(parts)}")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            here, there = ("x".join(map(str, t.shape)) for t in (state[name], value))
            raise ModelError(f"{what} has {name} in shape {here} where the model has {there}")
        if not state[name].is_floating_point() or state[name].layout != torch.strided:
            kind = f"{state[name].dtype}, {state[name].layout}".replace("torch.", "")
            raise ModelError(f"{what} has {name} as ({kind}) where plain numbers were expected")


def _lora_pairs(lora: Mapping[str, Tensor], what: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(target weight's name, A (r, in), B (out, r)) of every adapted layer."""
    downs: State = {}
    ups: State = {}
    for name, value in lora.items():
        short = re.sub(r"^base_model\.model\.", "", name)
        match = re.fullmatch(r"(.+?)\.lora_(A|B|down|up)(?:\.\w+)?\.weight", short)
        if match is None:
            raise ModelError(f"{what} has {name}, which is no part of a low-rank update")
        side = downs if match[2] in ("A", "down") else ups
        target = f"{match[1]}.weight"
        if target in side:
            raise ModelError(f"{what} has two updates of {target}, the second one as {name}")
        if value.ndim != 2:
            raise ModelError(f"{what} has {name} in {value.ndim} dimensions, not in 2")
        side[target] = value
    downs, ups = strip_prefixes(downs, what), strip_prefixes(ups, what)
    if lone := set(downs) ^ set(ups):
        raise ModelError(f"{what} has only one half of the update of {min(lone)}")
    for target, down in downs.items():
        yield target, down, ups[target]


def merge_lora(state: State, lora: Mapping[str, Tensor], scale: float, what: str) -> State:
    """Weights with a low-rank update added: ``W + scale B A``, computed in float32.

    Args:
        state: weights, by the names that the update uses.
        lora: pairs ``<layer>.lora_A.weight`` (r, in) and ``<layer>.lora_B.weight`` (out, r).
        scale: alpha / r of its training, times how much of it is wanted.
        what: the name of the update, for messages.

    Raises:
        ModelError: a half is missing, or a layer is unknown or of another shape.
    """
    merged = dict(state)
    for target, down, up in _lora_pairs(lora, what):
        if target not in state:
            raise ModelError(f"{what} updates {target}, which the weights do not have")
        weight = state[target]
        if (up.shape[0], down.shape[1]) != weight.shape or up.shape[1] != down.shape[0]:
            raise ModelError(
                f"{what} updates {target} by {up.shape[0]}x{down.shape[1]} (rank {up.shape[1]} and "
                f"{down.shape[0]}), where the weights have {'x'.join(map(str, weight.shape))}"
            )
        update = scale * (up.float() @ down.float())
        merged[target] = (weight.float() + update).to(weight.dtype)
    return merged


def _cast(state: State, model: Any, dtype: torch.dtype) -> State:
    """In ``dtype``, but for the parts that diffusers keeps in float32 whatever is asked.

    Those few are copied, so that a conversion leaves nothing that is still mapped from the file.
    """
    exact = set(model._keep_in_fp32_modules or ()) if dtype != torch.float32 else set()
    return {
        name: value.to(torch.float32, copy=True)
        if exact & set(name.split("."))
        else value.to(dtype)
        for name, value in state.items()
    }


def _read_lora(path: Path) -> State:
    """The update in ``path``: LongLive's for its generator, the first one there is, or the file."""
    content = read_file(path)
    inner = [key for key, value in content.items() if isinstance(value, Mapping)]
    inner.sort(key=lambda key: key != "generator_lora")
    update = pick_weights(content, inner[:1], path)
    check_finite(update.items(), path.name)
    return update


def load_transformer(
    config: Mapping[str, Any],
    weights: Path,
    keys: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    lora: Path | None = None,
    lora_scale: float = 1.0,
) -> Any:
    """A ``WanTransformer3DModel`` with the weights of a published file.

    Args:
        config: the transformer's configuration, as in diffusers' ``transformer/config.json``.
        weights: the file.
        keys: see `pick_weights`.
        dtype: of the weights; diffusers' exceptions (norms, modulation) stay in float32.
        lora: a file with a low-rank update to merge, as LongLive publishes one.
        lora_scale: see `merge_lora`.

    Returns:
        the model on the CPU, in evaluation mode, without gradients.

    Raises:
        ModelError: see `read_file`, `check_tensors`, `merge_lora` and `check_finite`.
    """
    model = empty_transformer(config)
    what = weights.name
    state = strip_prefixes(pick_weights(read_file(weights), keys, weights), what)
    check_tensors(to_diffusers(state, what), model.state_dict(), what)
    if lora is not None:
        state = merge_lora(state, _read_lora(lora), lora_scale, lora.name)
    model.load_state_dict(_cast(to_diffusers(state), model, dtype), assign=True)
    check_model(model, what)
    return model.eval().requires_grad_(False)
