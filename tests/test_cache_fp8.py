"""Keys and values of earlier frames in FP8: what is kept, what attention reads of it, the error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_fused import METHODS, run
from tests.test_memory import SETTINGS, plan_tiny
from torch import Tensor

from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.rotary import rotary_table
from stillframe.backbones.wan import rotary_axes
from stillframe.kernels.rows import FP8
from stillframe.loading.load import load_pipeline
from stillframe.tokens.grid import Grid

CPU = torch.device("cpu")
GRID = Grid(2, 3, 4)


def held_in_fp8(*size: int) -> Tensor:
    return torch.randn(size).to(FP8).float()


@pytest.mark.parametrize("batch", [1, 2])
def test_what_fp8_holds_is_read_as_from_an_exact_cache(batch: int) -> None:
    shape = CacheShape(3, batch, GRID, tiny.HEADS, tiny.HEAD_DIM, 1, 5)
    caches = [KeyValueCache(shape, CPU, torch.float32, store=kept) for kept in (None, FP8)]
    axes = rotary_axes(tiny.transformer().rope)
    size = batch, GRID.tokens, tiny.HEADS, tiny.HEAD_DIM
    for block in range(4):
        for layer in range(3):
            keys, values = held_in_fp8(*size), held_in_fp8(*size)
            for cache in caches:
                cache.commit(layer, keys, values)
        for cache in caches:
            cache.advance()
        if block == 2:
            for cache in caches:
                cache.repeat_last(torch.randint(0, 12, (batch, 2, 12), generator=seeded()))
                cache.advance()
        own, packed = caches
        seen = slice(own.block_rows, own.visible_rows())
        table = rotary_table(axes, range(5, 5 + len(own.context())), GRID.height, GRID.width)
        for cache in caches:
            cache.place(table)
        for layer in (2, 0, 1):
            packed.open(layer)
            mine, other = packed.keys(layer)[:, seen], own.keys(layer)[:, seen]
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
            assert torch.equal(packed.values(layer)[:, seen], own.values(layer)[:, seen])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("method", METHODS)
def test_fused_passes_read_it_as_the_reference_does(method: Any) -> None:
    reference, fused = (
        run(tiny.pipeline(), method, execution, sigmas=(0.9, 0.4), cache="fp8")
        for execution in ("reference", "fused")
    )
    torch.testing.assert_close(fused, reference, atol=2e-5, rtol=0)
    exact = run(tiny.pipeline(), method, "fused", sigmas=(0.9, 0.4))
    assert not torch.equal(fused, exact)


@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_planned_as_it_is_held(batch: int) -> None:
    planned = {}
    for cache in ("exact", "fp8"):
        stream = tiny.pipeline().stream(["sepia"] * batch, sigmas=SETTINGS.sigmas, cache=cache)
        while not stream.blocks:
            stream.push(torch.rand(batch, 24, 3, 64, 96))
        settings = stream.settings
        plan = plan_tiny(settings=settings, batch=batch)
        assert stream.memory["cache"] == plan.cache
        planned[cache] = plan.cache
    # two layers in four bytes a number: one layer's rows, and committed ones in one byte each
    assert planned["fp8"] < 0.65 * planned["exact"]


@pytest.mark.slow
def test_its_error_is_small_beside_what_pruning_changes() -> None:
    """On the bundled model, after 5 blocks; docs/performance.md has the numbers."""
    clip = tiny.clip(57, 96, 160)

    def edit(**given: Any) -> Tensor:
        pipe = load_pipeline("tiny")
        done: Any = pipe(clip, "oil painting", seed=0, output_type="pt", **given)
        shown: Tensor = done.frames
        return shown

    whole = edit(method="full")
    error = (edit(method="full", cache="fp8") - whole).square().mean()
    pruned = (edit(method="prune") - whole).square().mean()
    assert 0 < error < 0.1 * pruned
