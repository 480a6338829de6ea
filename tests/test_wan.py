"""The driven transformer against diffusers' own forward: one block, many, endless positions."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from diffusers import WanTransformer3DModel
from tests import tiny
from tests.tiny import Drive, Masked, Saturating, causal_mask, set_self_attention, stock, whole
from torch import Tensor, nn

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.backbones.wan import WanDenoiser
from stillframe.errors import ModelError
from stillframe.recovery import Recovery, find_recovery, recoveries
from stillframe.tokens.grid import Grid, Plan, patchify, plan_tokens, put

GRID = Grid(3, 2, 3)


def text(batch: int) -> Tensor:
    return torch.randn(batch, 5, tiny.TEXT_DIM)


def latents(model: Any, batch: int, frames: int, grid: Grid = GRID) -> Tensor:
    return torch.randn(batch, model.config.in_channels, frames, 2 * grid.height, 2 * grid.width)


def fuse(model: Any) -> None:
    """Fuse projections and spoil the ones that must no longer be used."""
    model.fuse_qkv_projections()
    for block in model.blocks:
        nn.init.normal_(block.attn1.to_q.weight)
        nn.init.normal_(block.attn2.to_k.weight)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("recovery", recoveries())
def test_one_block_kept_whole_is_the_stock_forward(
    recovery: str, source: bool, fused: bool
) -> None:
    model, prompt = tiny.transformer(source=source), text(2)
    if fused:
        fuse(model)
    x = latents(model, 2, GRID.frames)
    sigma = torch.full((GRID.frames,), 0.7)
    with torch.no_grad():
        expected = model(x, torch.full((2,), 700.0), prompt, return_dict=False)[0]
    torch.testing.assert_close(stock(model, x, sigma, prompt), expected, rtol=0, atol=1e-5)
    drive = Drive(model, prompt, GRID, find_recovery(recovery))
    drive.begin(plan_tokens(whole(2, GRID)))
    torch.testing.assert_close(drive.run(x, 0.7), patchify(expected, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "sink", "window", "fused"),
    [(3, 1, 6, False), (3, 1, 6, True), (3, 0, 3, False), (3, 2, 3, False), (2, 5, 5, False),
     (1, 1, 3, False), (1, 3, 1, False), (2, 0, 64, False)],
)  # fmt: skip
def test_cached_blocks_are_the_stock_forward_of_the_whole_sequence_under_a_mask(
    size: int, sink: int, window: int, fused: bool
) -> None:
    grid, blocks, batch = Grid(size, 2, 3), 6, 2
    model, prompt = tiny.transformer(source=True), text(batch)
    if fused:
        fuse(model)
    clean = latents(model, batch, blocks * size, grid)
    drive = Drive(model, prompt, grid, find_recovery("none"), sink=sink, window=window, steps=2)
    before = [block.attn1.processor for block in model.blocks]
    for number in range(blocks):
        end = (number + 1) * size
        drive.begin(plan_tokens(whole(batch, grid)))
        mask = causal_mask(number + 1, size, grid.frame_tokens, sink, window)
        set_self_attention(model, Masked(mask))
        for step, level in enumerate((0.9, 0.4, 0.0)):
            noisy = latents(model, batch, size, grid) if level else clean[:, :, end - size : end]
            sequence = torch.cat([clean[:, :, : end - size], noisy], 2)
            sigma = torch.zeros(end)
            sigma[-size:] = level
            expected = stock(model, sequence, sigma, prompt)[:, :, -size:]
            got = drive.run(noisy, level, step if level else None)
            torch.testing.assert_close(got, patchify(expected, 2), rtol=0, atol=1e-5)
    set_self_attention(model, before[0])


@pytest.mark.parametrize("limit", [200, 7, 12])
def test_sixty_blocks_with_eviction_equal_recomputation_from_scratch(limit: int) -> None:
    """The last block, from a cache evicted 57 times, against a forward over all 180 frames."""
    grid, blocks, sink, window = Grid(3, 1, 3), 60, 1, 6
    model, prompt = tiny.transformer(positions=200), text(1)
    clean = latents(model, 1, blocks * 3, grid)
    drive = Drive(model, prompt, grid, find_recovery("none"), sink=sink, window=window, limit=limit)
    for number in range(blocks - 1):
        drive.begin(plan_tokens(whole(1, grid)))
        drive.run(clean[:, :, 3 * number : 3 * number + 3], 0.0, None)
    noisy = latents(model, 1, 3, grid)
    drive.begin(plan_tokens(whole(1, grid)))
    got = drive.run(noisy, 0.8)
    if limit == 200:
        mask = causal_mask(blocks, 3, grid.frame_tokens, sink, window)
        set_self_attention(model, Masked(mask))
    else:
        set_self_attention(model, Saturating(model.rope, grid, sink, window, limit))
    sigma = torch.zeros(3 * blocks)
    sigma[-3:] = 0.8
    expected = stock(model, torch.cat([clean[:, :, :-3], noisy], 2), sigma, prompt)[:, :, -3:]
    torch.testing.assert_close(got, patchify(expected, 2), rtol=0, atol=1e-5)


def test_the_two_references_agree_before_positions_saturate() -> None:
    model, prompt = tiny.transformer(), text(1)
    x, sigma = latents(model, 1, 12), torch.rand(12)
    set_self_attention(model, Masked(causal_mask(4, 3, GRID.frame_tokens, 1, 6)))
    masked = stock(model, x, sigma, prompt)
    set_self_attention(model, Saturating(model.rope, GRID, 1, 6, 12))
    torch.testing.assert_close(stock(model, x, sigma, prompt), masked, rtol=0, atol=1e-5)
    # and the limit matters once it is reached, so that the test above can fail
    set_self_attention(model, Saturating(model.rope, GRID, 1, 6, 7))
    assert (stock(model, x, sigma, prompt) - masked).abs().max() > 1e-3


def test_position_5000_gives_what_a_smaller_saturated_position_gives_bit_for_bit() -> None:
    model, prompt = tiny.transformer(positions=32), text(1)
    clean = latents(model, 1, 15)
    noisy = latents(model, 1, 3)
    outputs = []
    for skipped in (5, 1663):
        drive = Drive(model, prompt, GRID, find_recovery("clean"), limit=21)
        nothing = plan_tokens(~whole(1, GRID))
        for number in range(5):
            if number == 1:
                for _ in range(skipped):
                    drive.attention.skip_block(nothing)
            drive.begin(plan_tokens(whole(1, GRID)))
            drive.run(clean[:, :, 3 * number : 3 * number + 3], 0.0, None)
        drive.begin(plan_tokens(whole(1, GRID)))
        outputs.append(drive.run(noisy, 0.6))
    assert drive.cache.frames == 3 * (1663 + 5) > 5000
    assert torch.equal(*outputs)


class Recording(Recovery):
    """Computes everything, and writes down every key and value before rotation."""

    summary = "writes down"
    written: ClassVar[list[Bank]] = []

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        shape = cache.shape
        size = (self.setup.steps, shape.layers, shape.batch, shape.grid.tokens + 1)
        bank = Bank(*torch.zeros(2, *size, shape.heads, shape.head_dim))
        self.written[:] = [bank]
        slots = torch.arange(shape.grid.tokens).view(1, *plan.keep.shape[1:])
        slots = slots.expand(plan.keep.shape)
        return Reuse(plan.rows, slots, bank, slots)


class Oracle(Recording):
    """Fills in what the dense run had, in another order of rows."""

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        order = torch.randperm(cache.shape.grid.tokens)
        true = Bank(*(x[:, :, :, order] for x in self.written[0]))
        old = order.argsort().view(1, *plan.keep.shape[1:])
        return Reuse(plan.rows, old.expand(plan.keep.shape), true)


@pytest.mark.parametrize("kept", [(7, 7), (2, 13), (0, 9), (18, 1)])
def test_with_true_keys_and_values_pruned_equals_unpruned(kept: tuple[int, int]) -> None:
    """Batch rows keep different counts, and several blocks follow each other."""
    model, prompt = tiny.transformer(layers=4), text(2)
    dense = Drive(model, prompt, GRID, Recording, steps=2)
    pruned = Drive(model, prompt, GRID, Oracle, steps=2)
    for _ in range(3):
        keep = torch.zeros(2, GRID.tokens, dtype=torch.bool)
        for row, count in enumerate(kept):
            keep[row, torch.randperm(GRID.tokens)[:count]] = True
        plan = plan_tokens(keep.view(2, GRID.frames, -1))
        assert plan.kept is not None
        for step, level in enumerate((0.9, 0.5)):
            x = latents(model, 2, 3)
            dense.begin(plan_tokens(whole(2, GRID)))
            expected = dense.run(x, level, step)
            pruned.begin(plan)
            got = scattered(pruned.run(x, level, step), plan)
            difference = (got - expected).abs()[keep]
            assert difference.max() <= 1e-5
        commit(dense, pruned, latents(model, 2, 3))


def scattered(own: Tensor, plan: Plan) -> Tensor:
    """Kept tokens' outputs at their slots; padding of shorter rows is dropped."""
    out = own.new_zeros(own.shape[0], plan.keep[0].numel() + 1, own.shape[2])
    assert plan.kept is not None
    put(out, plan.kept, own)
    return out[:, :-1]


def commit(dense: Drive, pruned: Drive, clean: Tensor) -> None:
    """The same whole clean block into both caches."""
    for drive in (dense, pruned):
        drive.begin(plan_tokens(whole(2, GRID)))
        drive.run(clean, 0.0, None)


def test_pruning_without_true_keys_differs_so_the_oracle_test_can_fail() -> None:
    model, prompt = tiny.transformer(), text(1)
    keep = torch.rand(1, GRID.frames, GRID.frame_tokens) < 0.5
    x = latents(model, 1, 3)
    dense, plain = (Drive(model, prompt, GRID, find_recovery("none")) for _ in range(2))
    dense.begin(plan_tokens(whole(1, GRID)))
    plain.begin(plan_tokens(keep))
    difference = scattered(plain.run(x, 0.7), plain.plan) - dense.run(x, 0.7)
    assert difference[keep.flatten(1)].abs().max() > 1e-3


def test_one_prompt_serves_a_batch(transformer: Any) -> None:
    prompt, x = text(1), latents(transformer, 2, 3)
    expected = stock(transformer, x, torch.full((3,), 0.5), prompt.expand(2, -1, -1))
    drive = Drive(transformer, prompt.expand(2, -1, -1), GRID, find_recovery("none"))
    drive.text = drive.denoiser.text(prompt)
    drive.begin(plan_tokens(whole(2, GRID)))
    torch.testing.assert_close(drive.run(x, 0.5), patchify(expected, 2), rtol=0, atol=1e-5)


def test_processors_return_after_use_and_after_an_exception(transformer: Any) -> None:
    denoiser = WanDenoiser(transformer)
    before = list(transformer.attn_processors.values())
    with denoiser.attached():
        assert not any(p in before for p in transformer.attn_processors.values())
    assert list(transformer.attn_processors.values()) == before
    with pytest.raises(KeyError), denoiser.attached():
        raise KeyError
    assert list(transformer.attn_processors.values()) == before


def test_the_attention_backend_of_the_model_is_kept(transformer: Any) -> None:
    transformer.set_attention_backend("_native_math")
    with WanDenoiser(transformer).attached():
        backends = {p._attention_backend for p in transformer.attn_processors.values()}
    assert len(backends) == 1
    assert "MATH" in str(next(iter(backends)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": (2, 2, 2)}, r"\(2, 2, 2\)"),
        ({"patch_size": (1, 2, 4)}, r"\(1, 2, 4\)"),
        ({"in_channels": 12}, "takes 12 channels and predicts 4"),
        ({"added_kv_proj_dim": 48}, "I2V"),
        ({"image_dim": 32}, "I2V"),
    ],
)
def test_models_it_cannot_drive_are_refused(change: dict[str, Any], said: str) -> None:
    config = {k: v for k, v in tiny.transformer().config.items() if not k.startswith("_")}
    model = WanTransformer3DModel(**{**config, **change})
    with pytest.raises(ModelError, match=said):
        WanDenoiser(model)
