"""Token merging: index arithmetic against loops, attention against duplicates, and streams."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from tests.test_engine import SIGMAS, edit, embeds, open_stream
from tests.tiny import clip, stock_rotate, stock_table
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.rotary import rotary_table
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.backbones.wan import WanDenoiser, rotary_axes
from stillframe.detection.latents import patch_distance
from stillframe.engine.stream import BlockStats
from stillframe.methods import find_method, methods
from stillframe.methods.merging import TokenMerging
from stillframe.methods.prune import InterFramePruning
from stillframe.recovery import RecoverySetup, find_recovery
from stillframe.tokens.grid import Grid, plan_tokens
from stillframe.tokens.merge import Merger, MergeSetup, Merging, Windows, match, most_similar, split
from stillframe.tokens.source import SourceBlock

CPU = torch.device("cpu")
GRID = Grid(3, 4, 5)
MERGING: dict[str, Any] = {n: m for n, m in methods().items() if issubclass(m, TokenMerging)}
Each = pytest.mark.parametrize("name", MERGING)
RATES = (0.1, 0.2, 0.32, 0.5)


def source(batch: int = 2, grid: Grid = GRID) -> SourceBlock:
    tokens = torch.randn(batch, grid.frames, grid.frame_tokens, 16)
    return SourceBlock(tokens, torch.randn_like(tokens[:, 0]), tokens[:, 0], grid)


def begun(method: Any, block: SourceBlock, steps: int = 3) -> Merger:
    """A method's merger at the start of a block."""
    merger: Merger = method.merger(MergeSetup(block.grid, steps, CPU))
    merger.begin_block(block)
    return merger


def hidden_and_keys(batch: int = 2, grid: Grid = GRID) -> tuple[Tensor, Callable[[], Tensor]]:
    keys = torch.randn(batch, grid.tokens, 2, 6)
    return torch.randn(batch, grid.tokens, 12), lambda: keys


def groups(merging: Merging, row: int = 0) -> dict[int, set[int]]:
    """Tokens by the token at whose place they are, of one batch row."""
    found: dict[int, set[int]] = {int(slot): set() for slot in merging.slots[row]}
    for token, place in enumerate(merging.rows[row]):
        found[int(merging.slots[row, place])].add(token)
    return found


def check_whole(merging: Merging, tokens: int) -> None:
    """Every token has one row, every row the place of one of its tokens, and sizes count."""
    assert merging.rows.shape[1] == tokens
    for row in range(len(merging.rows)):
        found = groups(merging, row)
        assert len(found) == merging.slots.shape[1]
        assert sorted(t for group in found.values() for t in group) == list(range(tokens))
        for (place, group), size in zip(found.items(), merging.size[row], strict=True):
            assert place in group
            assert len(group) == size


# index arithmetic


@Each
@pytest.mark.parametrize("rate", [0.0, *RATES])
def test_what_is_merged_is_a_share_of_the_tokens_and_everything_comes_back(
    name: str, rate: float
) -> None:
    merger = begun(MERGING[name](rate=rate), source())
    kept = []
    for step in range(3):
        hidden, keys = hidden_and_keys()
        merging = merger.match(step, 0, hidden, keys)
        check_whole(merging, GRID.tokens)
        kept.append(merging.slots.shape[1] / GRID.tokens)
        merged = merging.merge(hidden)
        back = merging.unmerge(merged)
        for row in range(2):
            for group in groups(merging, row).values():
                members = hidden[row, sorted(group)]
                expected = members.mean(0).expand_as(members)
                torch.testing.assert_close(back[row, sorted(group)], expected)
    # within frames of 20 tokens, whole numbers of them
    assert sum(kept) / 3 == pytest.approx(1 - rate, abs=0.5 / 20)
    if rate == 0:
        assert torch.equal(back, hidden)


@Each
def test_a_rate_beyond_what_can_be_merged_is_refused(name: str) -> None:
    most = MERGING[name].most
    for rate in (-0.1, 1.0, float("nan"), *(() if most is None else (most + 0.01,))):
        with pytest.raises(ValueError, match=r"rate must be in \[0, .*, got"):
            MERGING[name](rate=rate)
    merger = begun(MERGING[name](rate=most or 0.999), source())
    check_whole(merger.match(0, 0, *hidden_and_keys()), GRID.tokens)


def test_matching_against_a_loop_over_single_tokens() -> None:
    metric = torch.randn(3, 14, 5)
    chosen = torch.zeros(3, 14, dtype=torch.bool)
    for row, some in enumerate([[0, 3, 7, 13], [1, 2, 4, 5], [9, 10, 11, 12]]):
        chosen[row, some] = True
    parts = split(chosen, 4)
    merging = match(*most_similar(metric, *parts), *parts, remove=6)
    check_whole(merging, 14)
    for row in range(3):
        targets = chosen[row].nonzero().flatten().tolist()
        best = {}
        for token in (~chosen[row]).nonzero().flatten().tolist():
            cosines = [
                float(F.cosine_similarity(metric[row, token], metric[row, t], dim=0))
                for t in targets
            ]
            best[token] = (max(cosines), targets[cosines.index(max(cosines))])
        expected = {token: {token} for token in range(14)}
        for token in sorted(best, key=lambda t: -best[t][0])[:6]:
            expected[best[token][1]].add(token)
            del expected[token]
        assert groups(merging, row) == expected


def test_frames_side_by_side_keep_to_themselves() -> None:
    slots = torch.arange(6).expand(4, -1)
    parts = slots[:, ::2], slots[:, 1::2]
    single = match(*most_similar(torch.randn(4, 6, 3), *parts), *parts, remove=2)
    joined = single.joined(2)
    check_whole(joined, 12)
    for row in range(2):
        expected: dict[int, set[int]] = {}
        for frame in range(2):
            for place, group in groups(single, 2 * row + frame).items():
                expected[place + 6 * frame] = {token + 6 * frame for token in group}
        assert groups(joined, row) == expected


@pytest.mark.parametrize(("height", "width"), [(4, 6), (4, 5), (3, 5), (1, 4), (1, 1)])
def test_windows_cover_a_frame(height: int, width: int) -> None:
    windows = Windows(Grid(1, height, width), CPU)
    by_place: dict[tuple[int, int], set[int]] = {}
    for token in range(height * width):
        by_place.setdefault((token // width // 2, token % width // 2), set()).add(token)
    found = [set((windows.of == w).nonzero().flatten().tolist()) for w in range(windows.count)]
    assert found == list(by_place.values())
    priority = torch.randn(3, height * width)
    first = windows.first(priority)
    for row in range(3):
        expected = [max(tokens, key=lambda t: float(priority[row, t])) for tokens in found]
        assert first[row].tolist() == expected
        rest = sorted(set(range(height * width)) - set(expected))
        assert windows.others(first)[row].tolist() == rest


# who merges with whom


def test_tomesd_merges_within_frames_into_one_token_of_every_window() -> None:
    merger = begun(MERGING["tomesd"](rate=0.5), source())
    windows = Windows(GRID, CPU)
    places = []
    for layer in range(4):
        merging = merger.match(0, layer, *hidden_and_keys())
        for row in range(2):
            found = groups(merging, row)
            for group in found.values():
                assert len({token // GRID.frame_tokens for token in group}) == 1
            targets = [t for t, group in found.items() if len(group) > 1]
            assert targets
            seen = [
                (t // GRID.frame_tokens, int(windows.of[t % GRID.frame_tokens])) for t in targets
            ]
            assert len(set(seen)) == len(seen)
        places.append(merging.slots[0, -windows.count :])
    assert not all(torch.equal(places[0], other) for other in places[1:])


def test_tomesd_draws_from_its_seed_or_not_at_all() -> None:
    hidden, keys = hidden_and_keys()

    def slots(**options: Any) -> list[Tensor]:
        merger = begun(MERGING["tomesd"](**options), source())
        return [merger.match(0, layer, hidden, keys).slots for layer in range(3)]

    one, same = slots(seed=1), slots(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], slots(seed=2)[0])
    upper_left = slots(random=False)
    assert torch.equal(upper_left[0], upper_left[2])
    corner = upper_left[0][0, -Windows(GRID, CPU).count :] % GRID.frame_tokens
    assert corner.tolist() == [0, 2, 4, 10, 12, 14]
    merger = begun(MERGING["tomesd"](), source())
    state = torch.get_rng_state()
    merger.match(0, 0, hidden, keys)
    assert torch.equal(torch.get_rng_state(), state)


def test_tome_merges_even_tokens_into_odd_ones_by_their_keys() -> None:
    merger = begun(MERGING["tome"](rate=0.3), source())
    hidden, keys = hidden_and_keys()
    merging = merger.match(0, 0, hidden, keys)
    assert merging.proportional
    metric = keys().mean(2)
    for row in range(2):
        for place, group in groups(merging, row).items():
            for token in group - {place}:
                assert token % 2 == 0
                assert place % 2 == 1
                cosines = F.cosine_similarity(metric[row, token], metric[row, 1::2], dim=-1)
                assert place == 2 * int(cosines.argmax()) + 1
    other = merger.match(0, 0, torch.randn_like(hidden), keys)
    assert torch.equal(other.rows, merging.rows)


def test_importance_keeps_what_changed_most() -> None:
    block = source()
    merger = begun(MERGING["importance"](rate=0.4), block)
    hidden, keys = hidden_and_keys()
    merging = merger.match(0, 0, hidden, keys)
    before = torch.cat([block.previous.unsqueeze(1), block.tokens[:, :-1]], 1)
    change = patch_distance(block.tokens, before, 0.0).flatten(1)
    for row in range(2):
        found = groups(merging, row)
        gone = sorted(set(range(GRID.tokens)) - set(found))
        assert len(gone) == 24
        assert change[row, gone].max() <= change[row, sorted(found)].min()
        for place, group in found.items():
            for token in group - {place}:
                likeness = F.cosine_similarity(hidden[row, token], hidden[row], dim=-1)
                likeness[gone] = -2
                assert place == int(likeness.argmax())


def test_idm_merges_alike_windows_first_and_neglected_tokens_later() -> None:
    grid = Grid(2, 4, 6)
    method = MERGING["idm"](rate=0.3)
    merger = begun(method, source(1, grid), steps=5)
    windows = Windows(grid, CPU)
    counts, waiting = [], torch.zeros(grid.tokens)
    for step in range(5):
        for layer in range(2):
            hidden, keys = hidden_and_keys(1, grid)
            merging = merger.match(step, layer, hidden, keys)
            found = groups(merging)
            merged = {place: group for place, group in found.items() if len(group) > 1}
            assert all(len({t // 24 for t in group}) == 1 for group in found.values())
            if step < 2:
                inside = [{int(windows.of[t % 24]) for t in group} for group in merged.values()]
                assert all(len(window) == 1 for window in inside)
                for frame in range(2):
                    check_alikeness(hidden[0, 24 * frame : 24 * (frame + 1)], merging, frame)
            else:
                for place in merged:
                    frame, window = place // 24, windows.of[place % 24]
                    rivals = (windows.of == window).nonzero().flatten() + 24 * frame
                    assert waiting[place] == waiting[rivals].max()
            waiting += 1
            waiting[merging.slots[0]] = 0
        counts.append(grid.tokens - merging.slots.shape[1])
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert sum(counts) / 5 == pytest.approx(0.3 * grid.tokens, abs=1)


def check_alikeness(frame_hidden: Tensor, merging: Merging, frame: int) -> None:
    """No window of a 4 x 6 frame that stays apart is more alike than one that is merged."""
    windows = Windows(Grid(1, 4, 6), CPU)
    unit = F.normalize(frame_hidden, dim=-1)
    sizes = merging.size[0, merging.rows[0]][24 * frame : 24 * (frame + 1)]
    apart, together = [-1.0], [1.0]
    for window in range(windows.count):
        tokens = (windows.of == window).nonzero().flatten()
        likeness = float((unit[tokens] @ unit[tokens].T).mean())
        (together if sizes[tokens].max() > 1 else apart).append(likeness)
    assert max(apart) <= min(together) + 1e-6


def test_idm_with_one_pass_merges_the_rate() -> None:
    grid = Grid(1, 4, 6)
    merger = begun(MERGING["idm"](rate=0.25), source(1, grid), steps=1)
    assert merger.match(0, 0, *hidden_and_keys(1, grid)).slots.shape[1] == 18


# attention


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("proportional", [False, True])
@torch.no_grad()
def test_proportional_attention_is_attention_over_the_duplicates(
    proportional: bool, holes: bool
) -> None:
    """Each row as often as there are tokens in it, all at its place; context as it is."""
    grid, heads, dim = Grid(2, 2, 3), 2, 12
    n, t = grid.frame_tokens, grid.tokens
    shape = CacheShape(1, 2, grid, heads, dim, 1, 4)
    cache = KeyValueCache(shape, CPU, torch.float32)
    rope = WanRotaryPosEmbed(dim, (1, 2, 2), 64)
    rotary = partial(rotary_table, rotary_axes(rope))
    setup = RecoverySetup(shape, 1, CPU, torch.float32, 0.3, 0.0, torch.float32)
    attention = BlockAttention(cache, rotary, find_recovery("none")(setup), 64)
    clean = torch.randn(2, 2, t, heads, dim)
    keep = torch.ones(2, 2, n, dtype=torch.bool)
    if holes:
        keep[0, 1, 2] = keep[1, 0, 4] = False
    cache.commit(0, clean[0], clean[1])
    cache.advance(keep.flatten(1) if holes else None)
    attention.begin_block(plan_tokens(torch.ones_like(keep)))

    slots = torch.arange(t).expand(2, -1)
    parts = slots[:, ::2], slots[:, 1::2]
    merging = match(
        *most_similar(torch.randn(2, t, 4), *parts), *parts, 4, proportional=proportional
    )
    query, key, value = torch.randn(3, 2, t - 4, heads, dim)
    out = attention.attend_merged(merging, 0, query, key, value, None)
    assert attention.attended_share == (t - 4) / t

    table = stock_table(rope, [0, 1, 2, 3], grid)
    for row in range(2):
        times = merging.size[row].int() if proportional else torch.ones(t - 4, dtype=torch.int32)
        order = torch.arange(t - 4).repeat_interleave(times)
        at = merging.slots[row]
        cos, sin = (x[t:][at] for x in table)
        own = stock_rotate(key[row : row + 1], (cos, sin))[0, order]
        there = keep[row].flatten().nonzero().flatten()
        old = stock_rotate(clean[0, row : row + 1], (table[0][:t], table[1][:t]))[0, there]
        q = stock_rotate(query[row : row + 1], (cos, sin))[0]
        k, v = torch.cat([own, old]), torch.cat([value[row, order], clean[1, row, there]])
        expected = F.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        ).transpose(0, 1)
        torch.testing.assert_close(out[row], expected, rtol=0, atol=2e-6)


# streams


@contextmanager
def widths(model: Any) -> Iterator[list[int]]:
    """How many rows the last layer's self-attention projects, call by call."""
    seen: list[int] = []
    hook = model.blocks[-1].attn1.to_q.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape[1])
    )
    yield seen
    hook.remove()


@Each
@pytest.mark.parametrize("fused", [False, True])
def test_merging_nothing_equals_full(
    transformer: Any, autoencoder: Any, name: str, fused: bool
) -> None:
    """Through the whole merged path: rows in another order, gathered, attended and given back."""
    if fused:
        for block in transformer.blocks:
            block.attn1.fuse_projections()
    video = clip(30, batch=2)
    merged = edit(transformer, autoencoder, MERGING[name](rate=0.0), video)
    full = edit(transformer, autoencoder, find_method("full")(), video)
    assert [block.kept_share for block in merged.blocks] == [1.0] * 3
    torch.testing.assert_close(merged.frames, full.frames, rtol=0, atol=1e-6)


@Each
def test_the_kept_share_is_what_attention_ran_over(
    transformer: Any, autoencoder: Any, name: str
) -> None:
    """First block whole, context passes whole, masks all true: what is told is what was done."""
    with widths(transformer) as seen:
        out = edit(transformer, autoencoder, MERGING[name](rate=0.3), clip(48, batch=2))
    passes = len(SIGMAS) + 1
    assert out.masks.all()
    assert not out.stream._state.cache.holes  # type: ignore[union-attr]
    for number, block in enumerate(out.blocks):
        own = seen[passes * number : passes * (number + 1)]
        assert own[-1] == 72
        assert block.tokens == block.keep.numel() == 2 * 72
        assert block.kept == round(2 * sum(own[:-1]) / len(SIGMAS))
        if number == 0:
            assert own == [72] * passes
        else:
            assert max(own[:-1]) < 72
            assert block.kept_share == pytest.approx(0.7, abs=0.03)


@Each
def test_merging_more_changes_more(transformer: Any, autoencoder: Any, name: str) -> None:
    full = edit(transformer, autoencoder, find_method("full")(), clip(36)).frames
    little, much = (
        edit(transformer, autoencoder, MERGING[name](rate=rate), clip(36)).frames
        for rate in (0.1, 0.5)
    )
    assert torch.equal(little[:, :12], full[:, :12])
    assert 0 < (little - full).norm() < (much - full).norm()


@Each
def test_stream_equals_file_bit_for_bit(transformer: Any, autoencoder: Any, name: str) -> None:
    method, video = MERGING[name](), clip(41)
    file = edit(transformer, autoencoder, method, video)
    cuts = sorted(random.Random(1).choices(range(41), k=5))
    for chunks in (video.split(1, 1), video.tensor_split(cuts, 1)):
        assert torch.equal(edit(transformer, autoencoder, method, chunks).frames, file.frames)
    # a method is a value: what one stream drew is not in the way of the next
    assert torch.equal(edit(transformer, autoencoder, method, video).frames, file.frames)


@Each
def test_a_batch_of_two_equals_two_runs(transformer: Any, autoencoder: Any, name: str) -> None:
    video = torch.cat([clip(36, seed=1), clip(36, seed=2).flip(3)])
    prompt = embeds(2)
    method = MERGING[name]()
    both = edit(transformer, autoencoder, method, video, prompt=prompt, seed=[7, 8])
    for row in range(2):
        one = edit(
            transformer, autoencoder, method, video[row : row + 1],
            prompt=prompt[row : row + 1], seed=[7 + row],
        )  # fmt: skip
        torch.testing.assert_close(both.frames[row], one.frames[0], rtol=0, atol=1e-6)
        assert [b.kept_share for b in one.blocks] == [b.kept_share for b in both.blocks]


@Each
def test_methods_change_in_mid_stream_and_a_new_prompt_is_a_whole_block(
    transformer: Any, autoencoder: Any, name: str
) -> None:
    """From plain pruning, whose holes stay in the context, to merging and back."""
    blocks: list[BlockStats] = []
    plain = find_method("plain")(rate=0.5)  # type: ignore[call-arg]
    stream = open_stream(
        transformer, open_autoencoder(autoencoder, 3), plain, on_block=blocks.append
    )
    video = clip(72)
    stream.push(video[:, :24])
    stream.update(method=MERGING[name](rate=0.25))
    assert stream._state is not None
    assert stream._state.cache.holes
    out = stream.push(video[:, 24:36])
    assert out is not None
    assert out.isfinite().all()
    stream.set_text(WanDenoiser(transformer).text(embeds(seed=6)))
    stream.push(video[:, 36:60])
    stream.update(method=InterFramePruning(rate=0.5))
    stream.push(video[:, 60:])
    assert [block.kept_share for block in blocks[:2]] == [1.0, 0.5]
    assert [block.kept_share for block in blocks[3::2]] == [1.0, 1.0]
    for block in blocks[2:5:2]:
        assert block.kept_share == pytest.approx(0.75, abs=0.03)
        assert block.keep.all()


def test_half_precision_merges(autoencoder: Any, transformer: Any) -> None:
    """Proportional attention adds its logarithms in the model's own number format."""
    half = transformer.bfloat16()
    for name in MERGING:
        frames = edit(half, autoencoder, MERGING[name](), clip(24), prompt=embeds().bfloat16())
        assert frames.frames.isfinite().all()
        assert frames.blocks[1].kept_share < 0.75
