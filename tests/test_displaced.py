"""Keys and values of tokens that come from other places: whole streams, and pans of one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from tests import tiny
from tests.recorded_graphs import record
from tests.test_fused import BLOCKS, RandomMask, run
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.rotary import rotary_table, rotate
from stillframe.backbones.wan import rotary_axes
from stillframe.engine import planning, stream
from stillframe.kernels import placing
from stillframe.kernels.rows import FP8, Sources
from stillframe.recovery import RecoverySetup, find_recovery
from stillframe.tokens.grid import Grid, Plan, plan_tokens
from stillframe.tokens.source import SourceBlock

Origins = Callable[[Tensor, int], Tensor | None]


def anywhere(keep: Tensor, number: int) -> Tensor | None:
    """Half of the tokens come from anywhere; in every fourth block all stand."""
    n = keep.shape[2]
    generator = torch.Generator().manual_seed(number)
    moved = torch.randint(n, keep.shape, generator=generator)
    stands = torch.rand(keep.shape, generator=generator) < 0.5
    return None if number % 4 == 3 else torch.where(stands, torch.arange(n), moved)


def held(keep: Tensor, _: int) -> Tensor | None:
    return torch.arange(keep.shape[2]).expand(keep.shape)


@pytest.fixture(name="displace")
def displace_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[Origins], None]:
    """Gives every block of the streams to come origins, by its number."""

    def displace(origins: Origins) -> None:
        number = 0

        def planned(keep: Tensor, origin: Tensor | None = None) -> Plan:
            nonlocal number
            number = (number + 1) % BLOCKS
            return plan_tokens(keep, origins(keep, number))

        for module in (stream, planning):
            monkeypatch.setattr(module, "plan_tokens", planned)

    return displace


RUNS = [
    ("aligned", "exact"), ("aligned", "fp8"), ("clean", "exact"), ("noisy", "exact"),
]  # fmt: skip


def each_place_alone(*given: Any, plain: Any = placing.place_reference) -> None:
    """As a kernel that has a program for every place: one reads what another wrote before."""
    sources: Sources = given[5]
    for place in torch.randperm(sources.new.shape[1]).tolist():
        others = torch.arange(sources.new.shape[1]) != place
        alone = Sources(*(x.masked_fill(others, -1) for x in sources))
        plain(*given[:5], alone, *given[6:])


@pytest.mark.parametrize(("recovery", "store"), RUNS)
def test_fused_equals_reference_where_tokens_move(
    recovery: str, store: str, displace: Callable[[Origins], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, method = tiny.pipeline(position_limit=10), RandomMask(recovery=recovery)
    given: dict[str, Any] = {"sigmas": (0.9, 0.5), "store": store}
    still = run(pipe, method, "reference", **given)
    displace(anywhere)
    reference = run(pipe, method, "reference", **given)
    assert (reference - still).abs().max() > 0.01
    monkeypatch.setattr(placing, "place_reference", each_place_alone)
    fused = run(pipe, method, "fused", **given)
    if store == "exact":
        torch.testing.assert_close(fused, reference, atol=2e-5, rtol=0)
    else:  # a rounding that falls the other way is worth one step of the format at most
        exact = run(pipe, method, "reference", sigmas=(0.9, 0.5), store="exact")
        assert (fused - reference).abs().mean() < 0.05 * (exact - reference).abs().mean()


@pytest.mark.parametrize("execution", ["reference", "fused"])
@pytest.mark.parametrize(("recovery", "store"), [*RUNS, ("none", "exact")])
def test_what_is_held_everywhere_is_what_never_moves(
    recovery: str, store: str, execution: str, displace: Callable[[Origins], None]
) -> None:
    pipe, method = tiny.pipeline(), RandomMask(recovery=recovery)
    still = run(pipe, method, execution, sigmas=(0.9, 0.5), store=store)
    displace(held)
    assert torch.equal(run(pipe, method, execution, sigmas=(0.9, 0.5), store=store), still)


@pytest.mark.parametrize("store", ["exact", "fp8"])
def test_graphs_serve_blocks_that_move_and_blocks_that_stand(
    store: str, displace: Callable[[Origins], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, method = tiny.pipeline(), RandomMask(recovery="aligned")
    # of the last three blocks, all of one length, the second moves
    displace(lambda keep, number: anywhere(keep, number) if number == BLOCKS - 1 else None)
    plain = run(pipe, method, "fused", sigmas=(0.9, 0.5), store=store)
    recordings = record(monkeypatch)
    assert torch.equal(run(pipe, method, "fused", sigmas=(0.9, 0.5), store=store), plain)
    # every second pass of the whole block and of those two, and all passes of the last, where the
    # store's entries stand elsewhere than their tokens
    assert recordings.replays == 1 + 1 + 1 + 3


LAYERS, STEPS, HEADS, DIM, P = 2, 2, 2, 24, 8
GRID = Grid(3, 3, 5)


class Stream:
    """The engine's attention over random projections.

    Attributes:
        projected: keys and values of a block's computed tokens by (step, layer), (2, B, K, ...).
    """

    def __init__(self, recovery: str, batch: int, store: torch.dtype = torch.float32) -> None:
        shape = CacheShape(LAYERS, batch, GRID, HEADS, DIM, 0, 6)
        cpu, exact = torch.device("cpu"), torch.float32
        self.cache = KeyValueCache(shape, cpu, exact)
        setup = RecoverySetup(shape, STEPS, cpu, exact, 0.3, 0.2, store)
        self.recovery = find_recovery(recovery)(setup)
        self.rope = WanRotaryPosEmbed(DIM, (1, 2, 2), 64)
        rotary = partial(rotary_table, rotary_axes(self.rope))
        self.attention = BlockAttention(self.cache, rotary, self.recovery, 64)
        self.projected: dict[tuple[int | None, int], Tensor] = {}

    def begin(self, plan: Plan) -> bool:
        """Begin a block of looks that say nothing; whether there is something to compute."""
        if plan.nothing:
            self.attention.skip_block(plan)
            return False
        tokens = torch.randn(*plan.keep.shape, P)
        self.recovery.observe(SourceBlock(tokens, tokens[:, 0], tokens[:, 0], GRID), plan)
        self.attention.begin_block(plan)
        return True

    def passes(self, plan: Plan) -> Iterator[tuple[int | None, int]]:
        """Run all passes of a block; pauses after each layer of each."""
        for step in (*range(STEPS), None):
            self.attention.step = step
            for layer in range(LAYERS):
                query, *pair = torch.randn(3, len(plan.keep), max(plan.counts), HEADS, DIM)
                self.projected[step, layer] = torch.stack(pair)
                self.attention.attend(layer, query, *pair)
                yield step, layer
        self.attention.end_block()

    def block(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values that attention read of the block."""
        rows = self.cache.block_rows
        return self.cache.keys(layer)[:, :rows], self.cache.values(layer)[:, :rows]


@pytest.mark.parametrize("store", [torch.float32, FP8], ids=["exact", "fp8"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("skips", [0, 2])
@pytest.mark.parametrize("recovery", ["aligned", "clean", "noisy"])
def test_a_pan_of_a_place_a_frame_shows_the_tokens_it_was_computed_as(
    recovery: str, skips: int, batch: int, store: torch.dtype
) -> None:
    """The picture moves down and to the right by a place every frame, round and round: a token is
    the one of its diagonal that the first block computed last, wherever it is now."""
    h, w = GRID.height, GRID.width
    places = torch.arange(h * w).view(h, w)
    origin = places.roll((1, 1), (0, 1)).flatten().expand(batch, GRID.frames, -1)
    whole = plan_tokens(torch.ones(batch, GRID.frames, h * w, dtype=torch.bool))
    corner = torch.zeros_like(whole.keep)
    corner[..., 0] = True  # something has to be computed for there to be passes
    first, moving = Stream(recovery, batch, store), plan_tokens(corner, origin)
    assert first.begin(whole)
    for _ in first.passes(whole):
        pass
    computed = {at: x[:, :, -h * w :] for at, x in first.projected.items()}
    for _ in range(skips):
        assert not first.begin(plan_tokens(torch.zeros_like(corner), origin))
    start = first.cache.frames
    assert first.begin(moving)
    compared = 0
    for step, layer in first.passes(moving):
        keys, values = first.block(layer)
        for t in range(GRID.frames):
            # frames since the last of the first block
            since = skips * GRID.frames + t + 1
            was = places.roll((since, since), (0, 1)).flatten()
            fresh = corner_tokens(t)
            clean = step is None or recovery != "aligned"
            key, value = computed[None if clean else step, layer][:, :, was]
            if store == FP8 and not clean:
                key, value = (x.to(FP8).float() for x in (key, value))
            rows = slice(t * h * w, (t + 1) * h * w)
            table = tiny.stock_table(first.rope, [start + t], GRID)
            turned = tiny.stock_rotate(key, table)
            own = rotary_table(rotary_axes(first.rope), [start + t], h, w)
            assert torch.equal(values[:, rows][:, ~fresh], value[:, ~fresh])
            assert torch.equal(keys[:, rows][:, ~fresh], rotate(key, own)[:, ~fresh])
            torch.testing.assert_close(
                keys[:, rows][:, ~fresh], turned[:, ~fresh], rtol=0, atol=2e-6
            )
            compared += int((~fresh).sum())
    assert compared > LAYERS * (STEPS + 1) * h * w


def corner_tokens(t: int) -> Tensor:
    """(N,) bool: tokens of a frame that come from the corner computed in this block's frames."""
    fresh = torch.zeros(GRID.height, GRID.width, dtype=torch.bool)
    for i in range(t + 1):
        fresh[i, i] = True
    return fresh.flatten()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("recovery", ["aligned", "clean", "noisy"])
def test_a_skipped_block_that_moves_commits_displaced_rows(recovery: str, batch: int) -> None:
    run = Stream(recovery, batch)
    n = GRID.frame_tokens
    whole = plan_tokens(torch.ones(batch, GRID.frames, n, dtype=torch.bool))
    assert run.begin(whole)
    for _ in run.passes(whole):
        pass
    expected = {layer: run.projected[None, layer][:, :, -n:] for layer in range(LAYERS)}
    origin = torch.randint(n, whole.keep.shape)
    assert not run.begin(plan_tokens(~whole.keep, origin))
    frames = run.cache.stored()
    assert len(frames) == GRID.frames
    for layer in range(LAYERS):
        pair = expected[layer]
        for t, (_, rows) in enumerate(frames):
            index = origin[:, t].view(1, batch, n, 1, 1).expand_as(pair)
            pair = pair.gather(2, index)
            for bank, x in zip(run.cache.bank.rows(0, layer), pair, strict=True):
                assert torch.equal(bank[:, rows], x)


def test_origins_of_blocks_that_stood_are_forgotten() -> None:
    """After a block in which nothing moves, entries are chosen by what they look like again."""
    run, n = Stream("aligned", 1), GRID.frame_tokens
    keep = torch.ones(1, GRID.frames, n, dtype=torch.bool)
    some = keep.clone()
    some[..., 1:] = False
    origin = torch.randint(n, keep.shape)
    displaced = []
    for plan in (
        plan_tokens(keep), plan_tokens(some, origin), plan_tokens(some), plan_tokens(some),
    ):  # fmt: skip
        assert run.begin(plan)
        for _ in run.passes(plan):
            pass
        displaced.append(run.recovery.reuse(plan, run.cache).displaced)
    # the second block's content moved within it, so the third's left its place in the store
    assert displaced == [False, True, True, False]
