"""Changes to a loaded pipeline: low-rank updates, the attention kernel, less memory.

The first two are diffusers' (and peft's) own; here is how they are asked for and what may go wrong.
It does not know how models are found or loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillframe.backbones.finite import check_finite, check_model
from stillframe.backbones.footprint import offload_transformer, pack_transformer
from stillframe.errors import ModelError
from stillframe.kernels.linear import takes_fp8
from stillframe.loading.checkpoint import read_file

if TYPE_CHECKING:
    from stillframe.loading.assemble import Task
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "add_lora",
    "attention_backends",
    "check_attention",
    "check_offload",
    "parse_lora",
    "save_memory",
    "use_attention",
]


def parse_lora(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:SCALE`` as file and scale (1 where none is given).

    Raises:
        ValueError: the file is missing, or what follows the last colon is no number.
    """
    name, scale = text, 1.0
    before, colon, number = text.rpartition(":")
    if colon and not os.path.exists(text):
        try:
            name, scale = before, float(number)
        except ValueError as error:
            raise ValueError(f"--lora takes FILE or FILE:SCALE, got {text!r}") from error
    path = Path(name).expanduser()
    if not os.path.isfile(path):
        raise ValueError(f"LoRA file {path} is not there")
    return path, scale


def add_lora(pipe: CausalWanPipeline, path: Path, scale: float = 1.0) -> None:
    """Merge a low-rank update of the transformer into its weights.

    Args:
        pipe: on the device where the merging should be computed.
        path: a file in any layout that diffusers' Wan loader takes.
        scale: how much of it.

    Raises:
        ModelError: peft is not installed, the file cannot be read, or is not for this transformer.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ModelError("LoRA files need peft: pip install 'stillframe[lora]'") from error
    state = read_file(path)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    check_finite(tensors.items(), f"LoRA file {path}")
    try:
        pipe.load_lora_weights(dict(state), adapter_name="stillframe")
        if not any("lora_A" in name for name, _ in pipe.transformer.named_modules()):
            raise ModelError(f"LoRA file {path} updates no layer of the transformer")
        pipe.fuse_lora(components=["transformer"], lora_scale=scale)
        pipe.unload_lora_weights()
        # large numbers that are finite may not be so any more once they are multiplied
        check_model(pipe.transformer, f"the transformer with LoRA file {path} at scale {scale:g}")
    except ModelError:
        raise
    except Exception as error:  # peft and diffusers tell of wrong names and shapes in many ways
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"LoRA file {path} does not fit the transformer: {reason}") from error


def attention_backends() -> list[str]:
    """Names of the attention kernels that diffusers knows, installed or not."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    return sorted(name.value for name in AttentionBackendName)


def check_attention(name: str) -> None:
    """Refuse a name that diffusers does not know.

    Raises:
        ValueError: it does not.
    """
    known = attention_backends()
    if name not in known:
        raise ValueError(f"unknown attention {name!r}; known are {', '.join(known)}")


def use_attention(pipe: CausalWanPipeline, name: str) -> None:
    """Compute attention with one of diffusers' kernels.

    Raises:
        ValueError: there is no such kernel, or it is not installed.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    check_attention(name)
    everybody, _ = Registry.get_active_backend()
    try:
        pipe.transformer.set_attention_backend(name)
    except Exception as error:  # each kernel's package is missing in its own way
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"attention {name!r} cannot be used here: {reason}") from error
    finally:
        # diffusers makes the kernel of one model that of every model of the process as well
        Registry.set_active_backend(everybody)


def check_offload(device: torch.device) -> None:
    """Refuse to offload from anything but a GPU.

    Raises:
        ValueError: the device is none.
    """
    if device.type != "cuda":
        raise ValueError(f"weights are offloaded from a GPU, and the device is {device}")


def save_memory(pipe: CausalWanPipeline, task: Task, device: torch.device) -> None:
    """Have a pipeline do with as little memory as a task was planned with.

    Args:
        pipe: whose transformer is loaded and has all adapters merged.
        task: says in what format weights, keys and values are, what is seen, what is offloaded.
        device: where it will compute; what is not offloaded still has to be moved there.
    """
    chosen: dict[str, Any] = {
        name: value
        for name, value in (("store", task.store), ("cache", task.cache))
        if value != "auto"
    }
    if task.window is not None:
        chosen["generate_window_frames" if task.generate else "window_frames"] = task.window
    if task.weights == "fp8":
        pack_transformer(pipe.transformer, device)
        chosen["products"] = "fp8" if takes_fp8(device) else "exact"
    pipe.register_to_config(**chosen)
    offload_transformer(pipe.transformer, device, task.offloaded)
