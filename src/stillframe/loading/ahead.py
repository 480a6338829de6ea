"""A model's kernels compiled while its weights are read: which those are, and when it begins.

The process that `compile_ahead` starts runs this module. It builds the model without its weights,
with two layers, and has it edit some blocks without computing anything (``kernels.rehearsal``): one
whole, then some of which a third changes. Kernels come in the order in which an edit needs them.
Other methods than the usual one, generation, and controls are not looked at: what kernels they have
of their own is compiled when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.footprint import unread_transformer
from stillframe.backbones.meter import typed
from stillframe.config import EditConfig
from stillframe.controls import Controls
from stillframe.controls.refresh import Refresh
from stillframe.engine.stream import EditStream
from stillframe.kernels.attention import Cut, attend
from stillframe.kernels.compiling import Ahead, serve
from stillframe.kernels.rehearsal import Card, Launch, rehearsed
from stillframe.loading.assemble import Source, Task, autoencoder_config, bare_pipeline
from stillframe.loading.recipes import load_recipes

if TYPE_CHECKING:
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["compile_ahead", "rehearse", "unread_pipeline"]

_LAYERS = 2  # the second one begins otherwise than the first; others are like it
_PRUNED = 3  # blocks of which a part is computed, before another prompt and after it
_PARTS = range(2, 9)  # that attention may be cut into, see `attention`
_CUT_FROM = 9, 0  # capability from which it is


def compile_ahead(source: Source, dtype: torch.dtype, task: Task, device: torch.device) -> None:
    """Begin to compile what a task needs, in processes of their own, if the device is a GPU."""
    if device.type != "cuda" or task.generate:
        return
    card = Card.of(device)
    given = {
        "card": list(card),
        "name": source.name,
        "base": source.base,
        "recipe": source.recipe is not None,
        "vae": source.vae,
        "dtype": str(dtype).removeprefix("torch."),
        "task": asdict(task) | {"prompts": []},
    }
    Ahead.start(__spec__.name, given)


def rehearse(
    pipe: CausalWanPipeline,
    task: Task,
    card: Card,
    note: Callable[[Launch], None],
    on_block: Callable[[int], None] = lambda _: None,
) -> None:
    """Find what editing launches, computing nothing; see `rehearsed`.

    Args:
        pipe: a model on the CPU, whose weights do not matter.
        task: size of the video, recovery, store, cache and motion.
        card: to run on.
        note: is told of each kernel.
        on_block: called before each block with its number.
    """
    motion = "full" if task.motion else "off"
    config = EditConfig(
        method=f"prune:recovery={task.recovery},motion={motion}",
        control=Controls(Refresh(3)),  # a third of each block
        store=task.store,
        cache=task.cache,
        execution="fused",
    )
    shape = 1, pipe.config.text_length, pipe.transformer.config.text_dim
    embeds = torch.zeros(shape, dtype=pipe.denoiser.dtype)
    with torch.inference_mode(), rehearsed(card, note):
        stream = pipe.stream(prompt_embeds=embeds, config=config)
        seen = pipe.config.window_frames + pipe.config.sink_frames
        blocks = -(-seen // pipe.timeline.block_frames)
        for number in range(blocks + 2 * _PRUNED):
            on_block(number)
            if number == blocks + _PRUNED:
                stream.set_text(pipe.text(None, embeds))
            _push(stream, pipe.timeline.taken_by(number), task)
        on_block(blocks + 2 * _PRUNED)
        if card.capability >= _CUT_FROM and pipe.denoiser.dtype != torch.float32:
            _join(pipe)


def _push(stream: EditStream, count: int, task: Task) -> None:
    stream.push(torch.zeros(1, count, 3, task.height, task.width, dtype=torch.uint8))


def _join(pipe: CausalWanPipeline) -> None:
    """Attention in as many parts as there may be; how many, lengths decide."""
    heads, dtype = pipe.denoiser.heads, pipe.denoiser.dtype
    for parts in _PARTS:
        rows = torch.zeros(128 * parts, heads * pipe.denoiser.head_dim, dtype=dtype)
        x = rows.unflatten(1, (heads, -1))
        attend(x[:128], x, x, Cut(0, parts), [])


def unread_pipeline(source: Source, dtype: torch.dtype, task: Task) -> CausalWanPipeline:
    """A model of zeros, with two layers, from its configuration alone.

    Raises:
        ModelError: the configuration is not on disk, or another model's.
    """
    config = {**source.config("transformer"), "num_layers": _LAYERS}
    vae_config, kind = autoencoder_config(source)
    family = TinyVideoAutoencoder if kind == "tiny" else AutoencoderKLWan
    vae: nn.Module = family.from_config(vae_config)
    transformer = unread_transformer(config, dtype, task.weights)
    return bare_pipeline(source, transformer, typed(vae, dtype))


def _find(given: dict[str, Any], card: Card, note: Callable[[Launch], None]) -> None:
    recipe = load_recipes()[given["name"]] if given["recipe"] else None
    source = Source(given["name"], given["base"], recipe, given["vae"])
    task = Task(**given["task"])
    pipe = unread_pipeline(source, getattr(torch, given["dtype"]), task)
    rehearse(pipe, task, card, note)


if __name__ == "__main__":
    serve(_find)
