"""Fused execution against the reference: the same blocks, masks and noise, in float32 on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from tests import tiny
from torch import Tensor
from torch.nn.attention import SDPBackend

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.backbones.fused.blocks import FusedBlocks
from stillframe.backbones.fused.lengths import bucket_lengths
from stillframe.backbones.fused.transformer import unsupported
from stillframe.detection.capture import SteppedMask
from stillframe.detection.latents import CausalMask, MaskShape, RankedMask
from stillframe.engine.stream import EditStream
from stillframe.kernels.attention import Cut, attend, best_cut
from stillframe.kernels.linear import Linear8
from stillframe.kernels.norms import quantise
from stillframe.methods import Method, Selector
from stillframe.methods.full import Full
from stillframe.methods.prune import InterFramePruning
from stillframe.methods.tomesd import TokenMergingDiffusion
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid
from stillframe.tokens.schedule import Pass
from stillframe.tokens.source import SourceBlock

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
def test_fused_equals_reference(method: Method, source: bool) -> None:
    pipe = tiny.pipeline(source=source, position_limit=10)
    reference = run(pipe, method, "reference", sigmas=(0.9, 0.5))
    fused = run(pipe, method, "fused", sigmas=(0.9, 0.5))
    torch.testing.assert_close(fused, reference, atol=2e-5, rtol=0)


def test_fused_equals_reference_with_an_fp8_store() -> None:
    pipe = tiny.pipeline()
    method = RandomMask(recovery="aligned")
    reference = run(pipe, method, "reference", sigmas=(0.9, 0.5), store="fp8")
    fused = run(pipe, method, "fused", sigmas=(0.9, 0.5), store="fp8")
    exact = run(pipe, method, "reference", sigmas=(0.9, 0.5), store="exact")
    # a rounding that falls the other way is worth one step of the format at most
    assert (fused - reference).abs().mean() < 0.05 * (exact - reference).abs().mean()


def test_products_in_fp8_are_near_the_exact_ones() -> None:
    pipe = tiny.pipeline()
    for method in (Full(), RandomMask(recovery="aligned")):
        exact = run(pipe, method, "fused", sigmas=(0.9, 0.5))
        fp8 = run(pipe, method, "fused", sigmas=(0.9, 0.5), products="fp8")
        difference = ((fp8 - exact).norm() / exact.norm()).item()
        # not nothing, and no more than a few roundings of 3 bits
        assert 1e-5 < difference < 0.03, difference


def test_products_in_fp8_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"compute capability 9\.0, not cpu"):
        tiny.pipeline().stream("oil", products="fp8")
    with pytest.raises(ValueError, match="products are"):
        tiny.pipeline().stream("oil", products="int4")


def test_a_product_in_fp8_of_what_fp8_holds_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)

    def held(rows: int, columns: int) -> Tensor:
        x = torch.randint(-7, 8, (rows, columns), generator=generator) * 64.0
        x[:, 0] = 448.0  # so that the scale is a power of 2
        return x * 2.0 ** torch.randint(-9, 9, (rows, 1), generator=generator)

    x, weight, bias = held(5, 32), held(48, 32), torch.randn(48, generator=generator)
    product = Linear8(weight, bias)(quantise(x))
    torch.testing.assert_close(product, torch.nn.functional.linear(x, weight, bias))
    with pytest.raises(ValueError, match="multiples of 16"):
        Linear8(weight[:, :20], bias)


@pytest.mark.parametrize("cut", [Cut(0, 2), Cut(128, 4), Cut(256, 8)], ids=repr)
def test_attention_in_parts_is_attention(cut: Cut) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, 3, 16, generator=generator) for n in (300, 64, 64))
    kernels = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    whole = attend(query, 3 * key, value, Cut(300, 1), kernels)
    torch.testing.assert_close(attend(query, 3 * key, value, cut, kernels), whole)
    last = query[-1:], 3 * key, value
    torch.testing.assert_close(attend(*last, Cut(1, 1), kernels), whole[-1:])


@pytest.mark.parametrize("processors", [1, 108, 132])
@pytest.mark.parametrize("heads", [12, 40])
def test_cuts_divide_evenly_and_are_made_where_a_card_would_idle(
    heads: int, processors: int
) -> None:
    for queries in range(1, 5000, 37):
        cut = best_cut(queries, 10920, heads, processors)
        assert 0 <= cut.whole <= queries
        assert 10920 % cut.parts == 0
        assert (cut.parts == 1) == (cut.whole == queries)
        if processors == 1:
            assert cut.parts == 1  # nothing idles
    if processors == 132 and heads == 12:
        assert best_cut(512, 10920, heads, processors).parts > 1
        assert best_cut(2816, 10920, heads, processors).parts == 1  # two full rounds
        assert best_cut(512, 512, heads, processors).parts == 1


@pytest.mark.parametrize(
    "select",
    [
        lambda: CausalMask(0.1, 0.2),
        lambda: CausalMask(0.1, 0.2, shape=MaskShape(smoothing="none", majority=False)),
        lambda: RankedMask(0.4, 0.1, 0.2, 0.2),
    ],
    ids=["papers'", "plain", "ranked"],
)
def test_a_mask_in_steps_is_the_mask(select: Any) -> None:
    """With memory handed in and out as copies, which is how a graph has it."""

    def copying(step: Any) -> Any:
        def run(given: Tensor, memory: list[Tensor] | None) -> Any:
            keep, after = step(given, None if memory is None else [x.clone() for x in memory])
            return keep, [x.clone() for x in after]

        return run

    plain, stepped = select(), SteppedMask(select(), copying)
    grid, generator = Grid(3, 6, 8), torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 12, 48, 16, generator=generator)
    tokens[:, 3:] = tokens[:, 2:3] + 0.1 * tokens[:, 3:]
    shares = []
    for i in range(0, 12, 3):
        before = tokens[:, max(i - 1, 0)]
        block = SourceBlock(tokens[:, i : i + 3], before, before, grid)
        keep = stepped(block)
        assert torch.equal(keep, plain(block))
        shares.append(keep.float().mean().item())
    assert min(shares) < 1
    assert max(shares) > 0


@pytest.mark.parametrize("window", [3, 4, 9])
def test_fused_equals_reference_for_any_window(window: int) -> None:
    for sink in (0, 2):
        pipe = tiny.pipeline(window_frames=window, sink_frames=sink, position_limit=12)
        method = RandomMask(recovery="aligned")
        reference = run(pipe, method, "reference", sigmas=(0.8,))
        fused = run(pipe, method, "fused", sigmas=(0.8,))
        torch.testing.assert_close(fused, reference, atol=2e-5, rtol=0)


def test_fused_serves_what_it_says() -> None:
    """Counts the blocks that ran fused: the equality above must not be of a path with itself."""
    pipe = tiny.pipeline()
    for method, expected in (
        (METHODS[0], 7),
        (METHODS[1], 6),
        (METHODS[3], 6),
        (METHODS[4], 6),
        (METHODS[5], 1),
    ):
        ran = 0
        plain = FusedBlocks.denoise

        def counted(self: FusedBlocks, *args: Any, plain: Any = plain) -> Tensor:
            nonlocal ran
            ran += 1
            return plain(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FusedBlocks, "denoise", counted)
            run(pipe, method, "fused", sigmas=(0.8,))
        assert ran == expected, method


def test_a_new_prompt_and_method_reach_the_fused_path() -> None:
    outputs = []
    for execution in ("reference", "fused"):
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
    fused = pipe.denoiser.fused_transformer()
    assert pipe.denoiser.fused_transformer() is fused
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], atol=0, rtol=0)
    attn = model.blocks[0].attn1
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (attn.to_q, attn.to_v)}
    assert len(storages) == 1
    attn.to_q.weight.data = attn.to_q.weight.data.clone()
    assert pipe.denoiser.fused_transformer() is not fused


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
    reference = run(pipe, Full(), "reference", sigmas=(0.8,))
    torch.testing.assert_close(
        run(pipe, Full(), "fused", sigmas=(0.8,)), reference, atol=2e-5, rtol=0
    )


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


#: What published models do otherwise than Self Forcing, beside their numbers.
TRAITS: dict[str, dict[str, Any]] = {
    "told": {"told": (0.85, 0.4)},
    "source at another level": {"source_noise": 0.95},
    "source not normalised": {"source_scale": ((0.1, -0.2, 0.3, 0.0), (2.0, 1.5, 2.5, 1.0))},
    "longer first block": {
        "first": (Pass(1.0, 1.0, 1.0), Pass(0.8, 0.7, 0.8), Pass(0.4, 0.4, 0.4))
    },
    "context without sink": {"context_sink": False},
    "context noised": {"context_noise": 0.3},
    "sink an average": {"sink_frames": 3, "sink_average": 0.9},
    "another prompt recomputes": {"recompute_context": True, "window_frames": 9},
}


@pytest.mark.parametrize("trait", TRAITS)
@pytest.mark.parametrize("recovery", ["aligned", "clean"])
def test_fused_equals_reference_for_what_models_do_otherwise(trait: str, recovery: str) -> None:
    fused, reference = (
        of_traits(execution, recovery, **TRAITS[trait]) for execution in ("fused", "reference")
    )
    torch.testing.assert_close(fused, reference, atol=2e-5, rtol=0)
    frame_counts = {k: v for k, v in TRAITS[trait].items() if k.endswith("_frames")}
    usual = of_no_traits(recovery, **frame_counts)
    assert (reference - usual).abs().max() > 1e-4


def of_traits(execution: str, recovery: str, **traits: Any) -> Tensor:
    """Frames of a stream whose model has these traits, with another prompt on its way."""
    pipe = tiny.pipeline(position_limit=10)
    latents = torch.randn(9, 1, tiny.CHANNELS, 3, 8, 12, generator=torch.Generator().manual_seed(6))
    settings = replace(pipe.settings(sigmas=(0.9, 0.5), execution=execution), **traits)
    stream = EditStream(
        pipe.denoiser,
        open_autoencoder(pipe.vae, 3),
        pipe.text("oil"),
        RandomMask(recovery=recovery),
        settings,
        torch.Generator().manual_seed(5),
    )
    out = [stream.edit_block(x) for x in latents[:5]]
    stream.set_text(pipe.text("sepia"))
    return torch.cat([*out, *(stream.edit_block(x) for x in latents[5:])], 1)


@cache
def of_no_traits(recovery: str, **frame_counts: int) -> Tensor:
    """What most of the traits are compared with."""
    return of_traits("reference", recovery, **frame_counts)
