"""Every recovery against a loop over single tokens, written from the method's formulas.

The reference keeps committed frames and stores in dictionaries, one entry a token, rotates with
diffusers' own function, and computes attention over an explicit list of keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from tests.tiny import stock_rotate, stock_table
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.rotary import rotary_table
from stillframe.backbones.wan import rotary_axes
from stillframe.detection.latents import CausalMask, patch_distance
from stillframe.kernels.rows import FP8, packed, unpacked
from stillframe.recovery import RecoverySetup, find_recovery, recoveries
from stillframe.recovery.aligned import AlignedRecovery, provider_frames
from stillframe.tokens.grid import Grid, Plan, plan_tokens
from stillframe.tokens.restore import predecessor_rows, restore
from stillframe.tokens.source import SourceBlock

LAYERS, STEPS, HEADS, DIM, P = 2, 2, 2, 12, 8
TOLERANCE, TRIM = 0.3, 0.2
CPU = torch.device("cpu")

Pair = tuple[Tensor, Tensor]
Pass = tuple[int | None, int]


@dataclass
class Token:
    """A committed token, or an entry of the aligned store: keys and values by (step, layer)."""

    source: Tensor
    pairs: dict[Pass, Pair] = field(default_factory=dict)


class Slow:
    """One batch row of a stream."""

    def __init__(
        self,
        recovery: str,
        grid: Grid,
        sink: int,
        window: int,
        limit: int,
        stored: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        self.recovery, self.grid, self.stored = recovery, grid, stored
        self.sink, self.window, self.limit = sink, window, limit
        self.cos, self.sin = (
            x.view(64, grid.frame_tokens, DIM)
            for x in stock_table(WanRotaryPosEmbed(DIM, (1, 2, 2), 64), range(64), grid)
        )
        self.committed: list[list[Token | None]] = []  # [frame][place]
        self.store: dict[tuple[int, int], Token] = {}  # aligned: [t, place]
        self.fills: dict[tuple[int, int], Token] = {}
        self.origins: list[list[int]] = []  # [frame][place]: its place in the frame before
        self.stored_at = 0  # the frame whose tokens were the store's first
        self.left = 0  # fills whose content stood elsewhere in the store

    def begin(self, source: Tensor, keep: Tensor, origin: Tensor) -> None:
        """``source`` (S, N, P), ``keep`` and ``origin`` (S, N) of the coming block."""
        self.keep = keep
        self.origins += origin.tolist()
        self.own = {(t, p): Token(source[t, p]) for t, p in self.places()}
        new = {}
        for t, p in self.places():
            if not keep[t, p] and self.store:
                self.fills[t, p] = self.provider(source[t, p], t, p)
            new[t, p] = self.own[t, p] if keep[t, p] else self.fills[t, p]
        self.store, self.stored_at = new, len(self.committed)

    def places(self) -> list[tuple[int, int]]:
        return [(t, p) for t in range(self.grid.frames) for p in range(self.grid.frame_tokens)]

    def place_in(self, frame: int, t: int, p: int) -> int:
        """Where the content of the block's token stood in an earlier frame."""
        for later in range(len(self.committed) + t, frame, -1):
            p = self.origins[later][p]
        return p

    def provider(self, now: Tensor, t: int, p: int) -> Token:
        """The store's own frame if it matches, else the latest that does, else the closest; what
        never left its place matches by looks, what did by having been computed as the same."""
        frames = range(self.grid.frames)
        places = [self.place_in(self.stored_at + s, t, p) for s in frames]
        entries = [self.store[s, places[s]] for s in frames]
        distances = [patch_distance(now, entry.source, TRIM).item() for entry in entries]
        if places == [p] * len(frames):
            matching = [s for s in frames if distances[s] < TOLERANCE]
        else:
            self.left += 1
            token = self.predecessor(t, p)
            matching = [s for s in frames if entries[s] is token]
        if t in matching:
            return entries[t]
        return entries[matching[-1] if matching else distances.index(min(distances))]

    def predecessor(self, t: int, p: int) -> Token | None:
        """Temporal predecessor within the block, else in the last committed frame."""
        for before in range(t, -1, -1):
            if self.keep[before, p]:
                return self.own[before, p]
            p = self.origins[len(self.committed) + before][p]
        return self.committed[-1][p]

    def stand_in(self, t: int, p: int, step: int | None) -> tuple[Token | None, bool]:
        """Whose key and value a token uses at a pass, and whether it is a committed token's."""
        if self.keep[t, p]:
            return self.own[t, p], False
        if self.recovery == "none":
            return None, False
        if step is None or self.recovery == "noisy":
            found = self.predecessor(t, p)
            return found, all(found is not token for token in self.own.values())
        if self.recovery == "clean":
            return self.committed[-1][self.place_in(len(self.committed) - 1, t, p)], True
        return self.fills[t, p], False

    def attend(self, query: Tensor, pair: Pair, step: int | None, layer: int) -> Tensor:
        """Attention of the kept tokens (K, heads, dim) over everything they may see."""
        rows = [place for place in self.places() if self.keep[place]]
        for i, place in enumerate(rows):
            self.own[place].pairs[step, layer] = pair[0][i], pair[1][i]
        start, size = len(self.committed), self.grid.frames
        end = start + size
        shift = max(end - self.limit, 0)
        pairs, at = [], []
        for t, p in self.places():
            token, clean = self.stand_in(t, p, step)
            if token is not None:
                key, value = token.pairs[None if clean else step, layer]
                if token is self.fills.get((t, p)) and not self.keep[t, p] and step is not None:
                    key, value = self.stored(key), self.stored(value)
                pairs.append((key, value))
                at.append((start + t - shift, p))
        for frame in range(start):
            if frame < self.sink or frame >= end - self.window:
                for p, token in enumerate(self.committed[frame]):
                    if token is not None:
                        pairs.append(token.pairs[None, layer])
                        at.append((frame if frame < self.sink else frame - shift, p))
        keys, v = (torch.stack(x) for x in zip(*pairs, strict=True))
        q = self.rotated(query, [(start + t - shift, p) for t, p in rows])
        k = self.rotated(keys, at)
        weights = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(DIM)).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v)

    def rotated(self, x: Tensor, at: list[tuple[int, int]]) -> Tensor:
        """(K, heads, dim) to (frame position, place) each."""
        frame, place = torch.tensor(at).T
        return stock_rotate(x[None], (self.cos[frame, place], self.sin[frame, place]))[0]

    def commit(self) -> None:
        """The block becomes committed frames; a skipped one repeats the last of them."""
        block = [
            [self.stand_in(t, p, None)[0] for p in range(self.grid.frame_tokens)]
            for t in range(self.grid.frames)
        ]
        self.committed += block

    def skip(self, origin: Tensor) -> None:
        """Nothing was computed, but content moves from ``origin`` (S, N)."""
        for places in origin.tolist():
            self.origins.append(places)
            last = self.committed[-1]
            self.committed.append(
                [None if self.recovery == "none" else last[place] for place in places]
            )


def sources(batch: int, grid: Grid) -> Tensor:
    """(B, S, N, P): every place shows one of three looks at every frame, give or take a little."""
    looks = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1) * torch.ones(P)
    pick = torch.randint(3, (batch, grid.frames, grid.frame_tokens))
    return looks[pick] + 0.05 * torch.randn(batch, grid.frames, grid.frame_tokens, P)


def masks(batch: int, grid: Grid) -> list[Tensor]:
    """Whole, sparse, uneven and empty blocks, in an order that meets every transition."""
    shape = (batch, grid.frames, grid.frame_tokens)
    row = torch.arange(batch).view(-1, 1, 1)
    every = torch.ones(shape, dtype=torch.bool)
    some = [torch.rand(shape) < share for share in (0.3, 0.7, 0.5, 0.2, 0.6)]
    for mask in some:
        mask[:, -1, 0] = True  # at least one token a row
    one_row = some[3] & (row == batch - 1)
    return [
        every, some[0], some[1], ~every, some[2], ~every, ~every, one_row, some[3], every, some[4],
    ]  # fmt: skip


def origins(keep: Tensor, number: int) -> Tensor | None:
    """Where tokens come from: their own places, neighbours and anywhere; some blocks stand."""
    if number % 5 == 4:
        return None
    n = keep.shape[2]
    own = torch.arange(n).expand(keep.shape)
    anywhere, pick = torch.randint(n, keep.shape), torch.rand(keep.shape)
    moved = torch.where(pick < 0.4, (own + 1) % n, torch.where(pick < 0.6, anywhere, own))
    return torch.where(keep, own, moved)


class Fast:
    """The engine's attention, fed with the same numbers."""

    def __init__(
        self,
        recovery: str,
        batch: int,
        grid: Grid,
        sink: int,
        window: int,
        limit: int,
        store: torch.dtype = torch.float32,
    ) -> None:
        shape = CacheShape(LAYERS, batch, grid, HEADS, DIM, sink, window)
        self.cache = KeyValueCache(shape, CPU, torch.float32)
        setup = RecoverySetup(shape, STEPS, CPU, torch.float32, TOLERANCE, TRIM, store)
        self.recovery = find_recovery(recovery)(setup)
        rotary = partial(rotary_table, rotary_axes(WanRotaryPosEmbed(DIM, (1, 2, 2), 64)))
        self.attention = BlockAttention(self.cache, rotary, self.recovery, limit)

    def begin(self, source: Tensor, plan: Plan) -> None:
        block = SourceBlock(source, source[:, 0], source[:, 0], self.cache.shape.grid)
        self.recovery.observe(block, plan)
        self.attention.begin_block(plan)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("size", "sink", "window", "limit"), [(3, 1, 6, 7), (3, 1, 6, 64), (2, 0, 2, 4), (1, 2, 4, 6)]
)
@pytest.mark.parametrize("recovery", ["none", "noisy", "clean", "aligned"])
def test_attention_equals_a_loop_over_tokens(
    recovery: str, size: int, sink: int, window: int, limit: int, batch: int
) -> None:
    grid = Grid(size, 2, 3)
    fast = Fast(recovery, batch, grid, sink, window, limit)
    compare(fast, [Slow(recovery, grid, sink, window, limit) for _ in range(batch)])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("size", "sink", "window", "limit"), [(3, 1, 6, 7), (2, 0, 2, 4), (1, 2, 4, 6)]
)
@pytest.mark.parametrize("recovery", ["none", "noisy", "clean", "aligned"])
def test_attention_to_what_moved_equals_a_loop_over_tokens(
    recovery: str, size: int, sink: int, window: int, limit: int, batch: int
) -> None:
    grid = Grid(size, 2, 3)
    fast = Fast(recovery, batch, grid, sink, window, limit)
    slow = [Slow(recovery, grid, sink, window, limit) for _ in range(batch)]
    compare(fast, slow, moving=True)
    assert all(row.left > 5 for row in slow)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("size", "sink", "window", "limit"), [(3, 1, 6, 7), (2, 0, 2, 4)])
def test_fp8_attention_equals_a_loop_with_entries_rounded_by_hand(
    size: int, sink: int, window: int, limit: int, batch: int
) -> None:
    grid = Grid(size, 2, 3)
    fast = Fast("aligned", batch, grid, sink, window, limit, FP8)
    slow = [Slow("aligned", grid, sink, window, limit, rounded) for _ in range(batch)]
    compare(fast, slow)
    moved = Fast("aligned", batch, grid, sink, window, limit, FP8)
    compare(
        moved, [Slow("aligned", grid, sink, window, limit, rounded) for _ in range(batch)], True
    )
    # and the rounding is no trifle that the comparison would overlook
    with pytest.raises(AssertionError):
        compare(
            Fast("aligned", batch, grid, sink, window, limit, FP8),
            [Slow("aligned", grid, sink, window, limit) for _ in range(batch)],
        )


def rounded(x: Tensor) -> Tensor:
    """To the nearest number with 3 bits after the first, exponents from -6, and at most 448."""
    exponent = (x.abs().double().log2().floor()).clamp(min=-6)
    unit = 2.0 ** (exponent - 3)
    return ((x.double() / unit).round() * unit).clamp(-448, 448).to(x.dtype)


def compare(fast: Fast, slow: list[Slow], moving: bool = False) -> None:
    """Feed both the same numbers, and compare attention at every pass and layer."""
    batch, grid = len(slow), fast.cache.shape.grid
    for number, keep in enumerate(masks(batch, grid)):
        origin = origins(keep, number) if moving else None
        plan, source = plan_tokens(keep, origin), sources(batch, grid)
        if origin is None:
            origin = torch.arange(grid.frame_tokens).expand(keep.shape)
        if plan.nothing:
            fast.attention.skip_block(plan)
            for row, places in zip(slow, origin, strict=True):
                row.skip(places)
            continue
        fast.begin(source, plan)
        for b, row in enumerate(slow):
            row.begin(source[b], keep[b], origin[b])
        for step in (*range(STEPS), None):
            fast.attention.step = step
            for layer in range(LAYERS):
                qkv = torch.randn(3, batch, max(plan.counts), HEADS, DIM)
                out = fast.attention.attend(layer, qkv[0], qkv[1], qkv[2], None)
                for b, row in enumerate(slow):
                    q, k, v = (
                        qkv[:, b, : plan.counts[b]] if plan.kept is None else own(qkv, plan, b)
                    )
                    if len(q):
                        expected = row.attend(q, (k, v), step, layer)
                        got = out[b][kept_rows(plan, b)]
                        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        fast.attention.end_block()
        for row in slow:
            row.commit()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_entries_are_rounded_and_saturate(dtype: torch.dtype) -> None:
    edges = torch.tensor([0.0, 447, 448, 460, 464, 465, 1e4, 2.0**-6, 2.0**-9, 2.0**-10, 2.0**-14])
    x = torch.cat([edges, -edges, torch.randn(500), 20 * torch.randn(500)]).to(dtype)
    shape = CacheShape(1, 1, Grid(1, 1, 1), 1, 1, 0, 1)
    recovery = AlignedRecovery(RecoverySetup(shape, 1, CPU, dtype, TOLERANCE, TRIM, FP8))
    stored = unpacked(packed(x, recovery.bank.keys), dtype)
    assert stored.dtype == dtype
    assert torch.equal(stored, rounded(x))


def test_fp8_entries_of_a_still_stay_as_they_were_first_rounded() -> None:
    """One place is computed, all others stand for 20 blocks; some come from another frame."""
    grid, batch = Grid(3, 2, 3), 2
    fast = Fast("aligned", batch, grid, 1, 6, 21, FP8)
    assert isinstance(fast.recovery, AlignedRecovery)
    look = torch.randn(batch, 1, grid.frame_tokens, P)
    start = look.repeat(1, grid.frames, 1, 1)
    start[:, 0] += 5.0  # everything changes within block 0, so frame 0 needs another's entries
    keep = torch.zeros(batch, grid.frames, grid.frame_tokens, dtype=torch.bool)
    keep[..., 0] = True
    still = (~keep).flatten(1)
    seen = []
    for number in range(21):
        plan = plan_tokens(keep if number else torch.ones_like(keep))
        fast.begin(look.expand_as(start) if number else start, plan)
        for step in (*range(STEPS), None):
            fast.attention.step = step
            for layer in range(LAYERS):
                q, k, v = torch.randn(3, batch, max(plan.counts), HEADS, DIM)
                fast.attention.attend(layer, q, k, v, None)
        fast.attention.end_block()
        seen.append([x[:, :, :, :-1].clone() for x in fast.recovery.bank])
    n = grid.frame_tokens
    for first, *later in zip(*seen, strict=True):
        expected = first.clone()
        expected[:, :, :, :n] = first[:, :, :, -n:]
        for entries in later:
            assert torch.equal(entries[:, :, still], expected[:, :, still])
            assert not torch.equal(entries[:, :, ~still], expected[:, :, ~still])


def kept_rows(plan: Plan, b: int) -> Tensor:
    """Which of a batch row's computed rows are tokens, not padding."""
    if plan.kept is None:
        return torch.arange(plan.counts[b])
    return (plan.kept.target[b] >= 0).nonzero().flatten()


def own(qkv: Tensor, plan: Plan, b: int) -> Tensor:
    return qkv[:, b, kept_rows(plan, b)]


def test_provider_prefers_its_own_frame_then_the_latest_that_matches() -> None:
    looks = torch.tensor([0.0, 1.0, 5.0]).view(3, 1).expand(3, P)
    a, b, c = looks
    origin = torch.stack([a, b, a, b]).view(1, 4, 1, P)
    source = torch.stack([a, a, b, c]).view(1, 4, 1, P)
    # own frame matches; latest a is frame 2; latest b is frame 3; nothing matches c, b is closest
    assert provider_frames(source, origin, TOLERANCE, TRIM).flatten().tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_aligned_always_finds_an_entry_within_the_long_term_bound(seed: int, size: int) -> None:
    """Random walks over 40 blocks, masks of the real detector, some blocks whole, some skipped."""
    grid, batch = Grid(size, 6, 6), 2
    g = torch.Generator().manual_seed(seed)
    shape = CacheShape(1, batch, grid, 1, 6, 1, size)
    recovery = AlignedRecovery(
        RecoverySetup(shape, 1, CPU, torch.float32, TOLERANCE, TRIM, torch.float32)
    )
    detector = CausalMask(0.15, TOLERANCE, TRIM)
    now = torch.randn(batch, grid.frame_tokens, P, generator=g)
    reference = previous = now
    pruned = moved = 0
    for number in range(40):
        walk = []
        for _ in range(size):
            jumps = torch.rand(batch, grid.frame_tokens, 1, generator=g) < 0.01
            pace = torch.where(jumps, 1.0, 0.03) * float(number % 7 != 3)
            now = now + pace * torch.randn(now.shape, generator=g)
            walk.append(now)
        tokens = torch.stack(walk, 1)
        block = SourceBlock(tokens, previous, reference, grid)
        keep = detector(block).flatten(2)
        plan = plan_tokens(torch.ones_like(keep) if number in (0, 17) else keep)
        before = recovery._origin
        if not plan.nothing:
            recovery.observe(block, plan)
            assert recovery._origin is not None
            distance = patch_distance(tokens, recovery._origin, TRIM)
            assert (distance[~plan.keep] < TOLERANCE).all()
            if before is not None and before is not recovery._origin:
                moved += int((recovery._origin != before).any(-1)[~plan.keep].sum())
            pruned += int((~plan.keep).sum())
        rows = predecessor_rows(plan.keep)
        shown = restore(tokens.flatten(1, 2), reference, rows)
        reference, previous = shown[:, -grid.frame_tokens :], tokens[:, -1]
    assert pruned > 500
    assert size == 1 or moved > 10


@pytest.mark.parametrize("recovery", recoveries())
def test_stores_are_bounded_and_counted(recovery: str) -> None:
    grid, batch = Grid(3, 2, 3), 2
    fast = Fast(recovery, batch, grid, 1, 6, 21)
    entry = 2 * STEPS * LAYERS * batch * (grid.tokens + 1) * HEADS * DIM * 4
    expected = {"aligned": entry}.get(recovery, 0)
    assert fast.recovery.nbytes == expected
    held = set()
    for number in range(50):
        keep = torch.rand(batch, 3, grid.frame_tokens) < (0.4 if number else 2.0)
        plan = plan_tokens(keep)
        fast.begin(sources(batch, grid), plan)
        for step in (*range(STEPS), None):
            fast.attention.step = step
            for layer in range(LAYERS):
                q, k, v = torch.randn(3, batch, max(plan.counts), HEADS, DIM)
                fast.attention.attend(layer, q, k, v, None)
        fast.attention.end_block()
        held.add((fast.recovery.nbytes, fast.cache.nbytes))
    assert len(held) == 1
    origins = batch * grid.tokens * P * 4 if expected else 0
    numbers = batch * (grid.tokens + grid.frame_tokens) * 8 if expected else 0
    assert fast.recovery.nbytes == expected + origins + numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_fp8_store_has_a_byte_for_every_number(dtype: torch.dtype) -> None:
    shape = CacheShape(LAYERS, 2, Grid(3, 2, 3), HEADS, DIM, 1, 6)
    exact, fp8 = (
        AlignedRecovery(RecoverySetup(shape, STEPS, CPU, dtype, TOLERANCE, TRIM, store)).nbytes
        for store in (dtype, FP8)
    )
    assert exact == dtype.itemsize * fp8 > 0


def test_an_unknown_recovery_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown recovery 'x'; known: aligned, clean, noisy, none"
    ):
        find_recovery("x")


def test_names_and_summaries() -> None:
    known = recoveries()
    assert {"none", "noisy", "clean", "aligned"} <= set(known)
    assert len(set(known.values())) == len(known)
    assert all(cls.name == name and cls.summary for name, cls in known.items())
