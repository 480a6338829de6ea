"""A transformer that is not Wan, through the engine, all methods and all recoveries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from torch import Tensor, nn

from stillframe.attention.block import Attend, BlockAttention, Provides
from stillframe.attention.cache import KeyValueCache
from stillframe.attention.rotary import rotary_table
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.backbones.base import Backbone, FusedPasses, TextCache
from stillframe.engine.stream import EditStream, StreamSettings
from stillframe.methods import Method, find_method, methods
from stillframe.methods.prune import InterFramePruning
from stillframe.recovery import recoveries

WIDTH = 24


class Toy(nn.Module):
    """Parallel attention and feed-forward branches, a prompt that is added, sigma as a scale."""

    latent_channels, takes_source, patch = tiny.CHANNELS, False, 2
    layers, heads, head_dim, positions = 2, 2, 12, 32
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        size = self.patch**2 * self.latent_channels
        self.embed, self.head = nn.Linear(size, WIDTH), nn.Linear(WIDTH, size)
        self.prompt = nn.Linear(tiny.TEXT_DIM, WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(self.layers))
        self.feed = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(self.layers))

    @property
    def transformer(self) -> nn.Module:
        return self

    def revision(self, *, read: bool = True) -> int:
        return 0

    def text(self, embeds: Tensor) -> TextCache:
        return TextCache((), (), embeds)

    def rotary(self, frames: Sequence[int], height: int, width: int) -> Tensor:
        angles = torch.outer(torch.arange(self.positions), 0.3 ** torch.arange(2.0))
        turns = torch.polar(torch.ones_like(angles), angles)
        return rotary_table((turns, turns, turns), frames, height, width)

    def block_attention(
        self, cache: KeyValueCache, recovery: Provides, limit: int, context_sink: bool
    ) -> BlockAttention:
        return BlockAttention(cache, self.rotary, recovery, limit, context_sink)

    @contextmanager
    def attached(self) -> Iterator[None]:
        yield

    def fused(self, attention: BlockAttention, *, fp8: bool) -> FusedPasses | None:
        return None

    def projected(self, layer: int, x: Tensor) -> tuple[Tensor, ...]:
        qkv: Tensor = self.qkv[layer](x)
        return qkv.unflatten(2, (3, self.heads, -1)).unbind(2)

    def keys(self, layer: int, x: Tensor) -> Tensor:
        return self.projected(layer, x)[1]

    def attention(self, layer: int, x: Tensor, attend: Attend) -> Tensor:
        return attend(*self.projected(layer, x)).flatten(2)

    def forward(
        self, tokens: Tensor, timestep: Tensor, text: TextCache, block: BlockAttention
    ) -> Tensor:
        hidden = self.embed(tokens) + self.prompt(text.embeds.mean(1, keepdim=True))
        hidden = hidden * (1 + timestep.view(-1, 1, 1) / 1000)
        for layer in range(self.layers):
            normed = F.layer_norm(hidden, (WIDTH,))

            keys, attention = partial(self.keys, layer, normed), partial(self.attention, layer)
            attended = block.run(layer, normed, keys, attention)
            hidden = hidden + attended + F.gelu(self.feed[layer](normed))
        return self.head(hidden)


def toy() -> Toy:
    torch.manual_seed(7)
    return Toy().eval().requires_grad_(False)


def edited(
    method: Method, sizes: Sequence[int] = (37,), batch: int = 1, **settings: Any
) -> tuple[Tensor, list[float]]:
    """Frames of a stream that is fed in pieces of some sizes, and what was computed of blocks."""
    backbone: Backbone = toy()
    shares: list[float] = []
    embeds = torch.randn(batch, 5, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(3))
    stream = EditStream(
        backbone,
        open_autoencoder(tiny.autoencoder(), 3),
        backbone.text(embeds),
        method,
        StreamSettings(sigmas=(0.8, 0.4), **settings),
        [torch.Generator().manual_seed(n) for n in range(batch)],
        lambda stats: shares.append(stats.kept_share),
    )
    pieces = tiny.clip(37, batch=batch).split_with_sizes(list(sizes), 1)
    parts = [*map(stream.push, pieces), stream.flush()]
    return torch.cat([part for part in parts if part is not None], 1), shares


# a mask is all that a recovery knows of a method: each of either, not each with each; a method that
# never prunes has nothing to recover
EVERY = [(name, "aligned" if kind.prunes else "none") for name, kind in methods().items()]
EVERY += [("prune", recovery) for recovery in recoveries() if recovery != "aligned"]


@pytest.mark.parametrize(("name", "recovery"), EVERY)
def test_a_stream_gives_what_a_file_does(name: str, recovery: str) -> None:
    method = find_method(name)(recovery=recovery)
    whole, shares = edited(method, batch=2)
    pieces, same = edited(method, (5, 1, 9, 22), batch=2)
    assert whole.shape == (2, 37, 3, 64, 96)
    assert whole.std() > 0.01
    assert torch.equal(whole, pieces)
    assert shares == same
    assert name == "full" or min(shares) < 1


@pytest.mark.parametrize("recovery", recoveries())
def test_with_everything_kept_it_is_the_full_method(recovery: str) -> None:
    kept, shares = edited(InterFramePruning(tau1=0.0, recovery=recovery))
    assert set(shares) == {1.0}
    assert torch.equal(kept, edited(find_method("full")())[0])


def test_without_fused_passes_it_runs_the_plain_way() -> None:
    method = find_method("prune")()
    reference = edited(method, execution="reference")[0]
    for execution in ("fused", "graphs", "auto"):
        assert torch.equal(edited(method, execution=execution)[0], reference)


def test_a_block_is_the_model_with_attention_written_out() -> None:
    """The first pass of a first block, from the definition: no cache, no plan."""
    model, latents = toy(), torch.randn(1, tiny.CHANNELS, 3, 4, 6)
    seen: list[tuple[Tensor, Tensor]] = []
    model.register_forward_hook(lambda _m, given, out: seen.append((given[0], out)))
    text = model.text(torch.randn(1, 5, tiny.TEXT_DIM))
    settings = StreamSettings(sigmas=(0.8,))
    coder = open_autoencoder(tiny.autoencoder(), 3)
    EditStream(model, coder, text, find_method("full")(), settings).edit_block(latents)

    class Whole:
        def run(self, layer: int, hidden: Tensor, keys: Any, attention: Any) -> Tensor:
            table = model.rotary(range(3), 2, 3)[None, :, None]
            return attention(hidden, lambda q, k, v: whole(q, k, v, table))

    def whole(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        q, k = (
            torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2))) * table).flatten(3)
            for x in (q, k)
        )
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 12**0.5).softmax(3)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v)

    given, out = seen[0]
    block: Any = Whole()
    expected = model.forward(given, torch.full((1,), 800.0), text, block)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
