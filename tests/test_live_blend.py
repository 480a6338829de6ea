"""One prompt that passes over into another in a live session."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.live_fixtures import (
    BLOCK,
    counted,
    embeds,
    file_path,
    levels,
    open_session,
    pipeline,
    pixels,
    play,
    shares,
)

from stillframe.live import Worker
from stillframe.live.blend import PromptBlend
from stillframe.pipelines.causal_wan import CausalWanPipeline


@pytest.fixture(scope="module")
def pipe() -> CausalWanPipeline:
    return pipeline()


def test_embeddings_go_in_even_steps_from_what_is_shown_to_what_is_wanted() -> None:
    a, b, c = (embeds(seed) for seed in (1, 2, 3))
    blend = PromptBlend(a)
    assert not blend.step()
    blend.turn_to(b, 4)
    seen = []
    for part in (0.25, 0.5, 0.75):
        assert blend.step()
        seen.append(blend.embeds)
        torch.testing.assert_close(blend.embeds, a + part * (b - a))
    blend.turn_to(c, 2)  # another prompt meanwhile: no leap
    assert blend.step()
    torch.testing.assert_close(blend.embeds, (seen[-1] + c) / 2)
    assert blend.step()
    assert blend.embeds is c
    assert not blend.step()


@pytest.mark.parametrize("blocks", [0, 1])
def test_no_blend_is_at_once_and_other_lengths_do_not_mix(blocks: int) -> None:
    blend = PromptBlend(embeds(1))
    blend.turn_to(embeds(2), blocks)
    assert blend.step()
    assert torch.equal(blend.embeds, embeds(2))
    blend.turn_to(embeds(3)[:, :3], 9)
    assert blend.step()
    assert torch.equal(blend.embeds, embeds(3)[:, :3])
    assert not blend.step()


def test_the_blocks_of_a_blend_are_whole_and_the_stream_ends_at_the_new_prompt(
    pipe: CausalWanPipeline,
) -> None:
    worker, still = Worker(), levels(1).repeat(8 * BLOCK, 0)
    session = open_session(pipe, worker, policy="all", blend=3)
    text = pipe.transformer.condition_embedder.text_embedder
    with counted(text) as seen:
        out = play(session, worker, still[: 2 * BLOCK])
        session.change(prompt_embeds=embeds(9))
        out += play(session, worker, still[2 * BLOCK :], 2 * BLOCK / 10)
    assert shares(session) == [1, 0, 1, 1, 1, 0, 0, 0]
    ways = [(each - embeds()) / (embeds(9) - embeds()) for each in seen if each.shape[1] == 5]
    # passes have the module embed something of no consequence, too
    weights = [float(way.mean()) for way in ways if float(way.std()) < 1e-4]
    assert sorted({round(weight, 4) for weight in weights}) == [0, 0.3333, 0.6667, 1]
    frames = pixels(out)
    assert np.array_equal(frames[: 2 * BLOCK], file_path(pipe, still[: 2 * BLOCK]))
    shown = [frames[(number + 1) * BLOCK - 1].astype(float) for number in range(8)]
    changes = [np.abs(after - before).mean() for before, after in pairwise(shown)]
    assert all(change > 0 for change in changes[1:4])
    assert changes[4:] == [0, 0, 0]
    session.close()


@pytest.mark.parametrize("wrong", [-1, 65])
def test_a_blend_out_of_range_changes_nothing(pipe: CausalWanPipeline, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 64, got {wrong}"):
        open_session(pipe, Worker(), blend=wrong)
    session = open_session(pipe, Worker())
    before: Any = session.request
    with pytest.raises(ValueError, match=f"from 0 to 64, got {wrong}"):
        session.change(prompt_embeds=embeds(9), blend=wrong)
    assert session.request is before
    session.close()
