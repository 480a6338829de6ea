"""The lean path against the stock one: the same blocks, masks and noise, in float32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from tests import tiny
from torch import Tensor

from stillframe.change import SourceBlock
from stillframe.engine import EditStream
from stillframe.lean import LeanBlocks, LeanTransformer, bucket_lengths, lean_twin, unsupported
from stillframe.methods import Method, Selector
from stillframe.methods.full import Full
from stillframe.methods.prune import InterFramePruning
from stillframe.methods.tomesd import TokenMergingDiffusion
from stillframe.pipeline import CausalWanPipeline

BLOCKS = 7


@dataclass(frozen=True)
class RandomMask(Method):
    """Masks from nowhere: every share of kept tokens, none and all among them."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "for tests"
    tau2: float = 5.0

    def selector(self) -> Selector:
        generator = torch.Generator().manual_seed(3)
        shares = iter([0.4, 0.0, 1.0, 0.1, 0.7, 0.5, 0.3, 0.2, 0.9])

        def select(source: SourceBlock) -> Tensor:
            grid = source.grid
            shape = (source.tokens.shape[0], grid.frames, grid.height, grid.width)
            return torch.rand(shape, generator=generator) < next(shares)

        return select


class _Quantised(torch.nn.Linear):
    """Stands for any layer that computes in its own way."""


def run(pipe: CausalWanPipeline, method: Method, execution: str, **settings: Any) -> Tensor:
    """Latents in, frames out: blocks of source that drift, and jump at some places."""
    generator = torch.Generator().manual_seed(5)
    stream = pipe.stream("oil", method=method, generator=generator, execution=execution, **settings)
    return edited(stream, BLOCKS)


def edited(stream: EditStream, blocks: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(1, tiny.CHANNELS, 3, 8, 12, generator=generator)
    frames = []
    for _ in range(blocks):
        latents = latents + 0.1 * torch.randn(latents.shape, generator=generator)
        frames.append(stream.edit_block(latents))
    return torch.cat(frames, 1)


METHODS = [
    Full(),
    RandomMask(recovery="aligned"),
    RandomMask(recovery="aligned", tau2=0.12),
    RandomMask(recovery="clean"),
    RandomMask(recovery="noisy"),
    RandomMask(recovery="none"),
    InterFramePruning(tau1=0.3),
    TokenMergingDiffusion(rate=0.3),
]


@pytest.mark.parametrize("source", [False, True], ids=["sdedit", "source"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_lean_equals_stock(method: Method, source: bool) -> None:
    pipe = tiny.pipeline(source=source, position_limit=10)
    stock = run(pipe, method, "stock", sigmas=(0.9, 0.5))
    lean = run(pipe, method, "lean", sigmas=(0.9, 0.5))
    torch.testing.assert_close(lean, stock, atol=2e-5, rtol=0)


def test_lean_equals_stock_with_an_fp8_store() -> None:
    pipe = tiny.pipeline()
    method = RandomMask(recovery="aligned")
    stock = run(pipe, method, "stock", sigmas=(0.9, 0.5), store="fp8")
    lean = run(pipe, method, "lean", sigmas=(0.9, 0.5), store="fp8")
    exact = run(pipe, method, "stock", sigmas=(0.9, 0.5), store="exact")
    # a rounding that falls the other way is worth one step of the format at most
    assert (lean - stock).abs().mean() < 0.05 * (exact - stock).abs().mean()


@pytest.mark.parametrize("window", [3, 4, 9])
def test_lean_equals_stock_for_any_window(window: int) -> None:
    for sink in (0, 2):
        pipe = tiny.pipeline(window_frames=window, sink_frames=sink, position_limit=12)
        method = RandomMask(recovery="aligned")
        stock = run(pipe, method, "stock", sigmas=(0.8,))
        lean = run(pipe, method, "lean", sigmas=(0.8,))
        torch.testing.assert_close(lean, stock, atol=2e-5, rtol=0)


def test_lean_serves_what_it_says() -> None:
    """Counts the blocks that ran lean: the equality above must not be stock against stock."""
    pipe = tiny.pipeline()
    for method, expected in ((METHODS[0], 7), (METHODS[1], 6), (METHODS[3], 6), (METHODS[4], 0)):
        ran = 0
        plain = LeanBlocks.denoise

        def counted(self: LeanBlocks, *args: Any, plain: Any = plain) -> Tensor:
            nonlocal ran
            ran += 1
            return plain(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LeanBlocks, "denoise", counted)
            run(pipe, method, "lean", sigmas=(0.8,))
        assert ran == expected, method


def test_a_new_prompt_and_method_reach_the_lean_path() -> None:
    outputs = []
    for execution in ("stock", "lean"):
        pipe = tiny.pipeline()
        generator = torch.Generator().manual_seed(5)
        stream = pipe.stream("oil", generator=generator, execution=execution, sigmas=(0.9, 0.4))
        first = edited(stream, 3)
        stream.set_text(pipe.text("a sepia night"))
        second = edited(stream, 2)
        stream.update(method=RandomMask(recovery="clean"))
        outputs.append(torch.cat([first, second, edited(stream, 3)], 1))
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-5, rtol=0)


def test_weights_are_held_once_and_the_stock_model_stays_what_it_was() -> None:
    pipe = tiny.pipeline()
    model = pipe.transformer
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    twin = lean_twin(pipe.denoiser)
    assert lean_twin(pipe.denoiser) is twin
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], atol=0, rtol=0)
    attn = model.blocks[0].attn1
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (attn.to_q, attn.to_v)}
    assert len(storages) == 1
    attn.to_q.weight.data = attn.to_q.weight.data.clone()
    assert lean_twin(pipe.denoiser) is not twin


def test_what_cannot_be_run_lean_is_said() -> None:
    model = tiny.transformer()
    assert unsupported(model) is None
    model.blocks[0].attn1.fuse_projections()
    assert unsupported(model) == "its projections are fused already"
    other = tiny.transformer()
    other.blocks[1].ffn.net[2] = _Quantised(64, tiny.HEADS * tiny.HEAD_DIM)
    assert unsupported(other) == "its projections are not plain linear layers"


def test_models_without_the_second_norm() -> None:
    model = tiny.transformer()
    for block in model.blocks:
        block.norm2 = torch.nn.Identity()
    pipe = CausalWanPipeline(**{**tiny.parts(), "transformer": model}, text_length=12)
    stock = run(pipe, Full(), "stock", sigmas=(0.8,))
    assert isinstance(lean_twin(pipe.denoiser), LeanTransformer)
    torch.testing.assert_close(run(pipe, Full(), "lean", sigmas=(0.8,)), stock, atol=2e-5, rtol=0)


@pytest.mark.parametrize("tokens", [1, 63, 390, 1170, 4680, 10920])
def test_buckets_waste_little(tokens: int) -> None:
    lengths = bucket_lengths(tokens)
    assert lengths[-1] == tokens
    assert all(a < b for a, b in pairwise(lengths))
    padded = [next(n for n in lengths if n >= k) for k in range(1, tokens + 1)]
    assert len(lengths) <= 74
    if tokens >= 4680:
        used = range(tokens // 4, tokens + 1)
        assert sum(padded[k - 1] - k for k in used) <= 0.04 * sum(used)
