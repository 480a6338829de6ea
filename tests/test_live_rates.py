"""A live session whose rate and guard come, change and go while it runs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.live_fixtures import (
    BLOCK,
    file_path,
    levels,
    open_session,
    pipe_fixture,  # noqa: F401
    pixels,
    play,
    shares,
)

from stillframe.controls import Box, Controls, Cuts, Gop, Guard, Rate, Refresh, Region
from stillframe.controls.guard import Watch
from stillframe.controls.rate import RateController
from stillframe.live import LiveSession, Worker
from stillframe.pipelines.causal_wan import CausalWanPipeline

pytestmark = pytest.mark.timeout(120)

WATCHED = Controls(Rate(kept=0.4), Guard(0.05))
STAGES_OF_STREAM = ("encode", "mask", "denoise", "context", "decode")


def controller(session: LiveSession) -> Any:
    """What holds the rate of a session's stream."""
    assert session._editor is not None
    assert session._editor._stream is not None
    controlled = session._editor._stream.control_state
    return None if controlled is None else controlled.find(RateController)


def test_a_rate_and_a_guard_come_and_go_while_a_session_runs(pipe: CausalWanPipeline) -> None:
    frames, worker = levels(10 * BLOCK, 64, 96), Worker()
    session = open_session(pipe, worker, policy="all")
    out = play(session, worker, frames[: 2 * BLOCK])
    session.change(control=WATCHED)
    play(session, worker, frames[2 * BLOCK : 8 * BLOCK], 2.4)
    session.change(control=None)
    play(session, worker, frames[8 * BLOCK :], 9.6)
    blocks = session.telemetry.blocks
    assert [block.rate is not None for block in blocks] == [False] * 2 + [True] * 6 + [False] * 2
    assert [block.guard is not None for block in blocks] == [False] * 2 + [True] * 6 + [False] * 2
    assert {block.stream for block in blocks} == {0}
    held = shares(session)[2:8]
    assert sum(held) / 6 == pytest.approx(0.4, abs=0.5 / 72)  # half a token of a block's 72
    rate, guard = blocks[7].rate, blocks[7].guard
    assert rate is not None
    assert guard is not None
    assert (rate["target_kept"], rate["mode"], rate["out_of_reach"]) == (0.4, "constant", False)
    assert rate["achieved"] == pytest.approx(sum(held[1:]) / 5)
    assert guard["drawn"] == 6 * 8
    assert 0 < guard["low"] <= guard["error"] <= guard["high"]
    assert np.array_equal(pixels(out), file_path(pipe, frames)[: 2 * BLOCK])
    session.close()


def test_another_target_keeps_what_is_known_of_the_machine(pipe: CausalWanPipeline) -> None:
    frames, worker = levels(6 * BLOCK, 64, 96), Worker()
    session = open_session(pipe, worker, policy="all", control=Controls(Rate(fps=0.01)))
    play(session, worker, frames[: 3 * BLOCK])
    before = controller(session)
    known = before.ledger.cost.known
    assert known >= 1
    session.change(control=Controls(Rate(fps=1e6, mode="capped"), Guard()))
    play(session, worker, frames[3 * BLOCK :], 3.6)
    assert controller(session) is before
    assert before.ledger.cost.known >= known
    assert before.control == Rate(fps=1e6, mode="capped")
    watched = [block.guard is not None for block in session.telemetry.blocks]
    assert watched == [False] * 3 + [True] * 3
    session.close()


def test_what_is_out_of_reach_is_told(pipe: CausalWanPipeline) -> None:
    """A million frames a second are, and one in a hundred seconds is not."""
    frames, worker = levels(8 * BLOCK, 64, 96), Worker()
    session = open_session(pipe, worker, policy="all", control=Controls(Rate(fps=0.01)))
    play(session, worker, frames[: 4 * BLOCK])
    session.change(control=Controls(Rate(fps=1e6)))
    play(session, worker, frames[4 * BLOCK :], 4.8)
    told = [block.rate for block in session.telemetry.blocks if block.rate is not None]
    assert [rate["out_of_reach"] for rate in told] == [False] * 4 + [True] * 4
    assert told[3]["share"] == 1.0
    assert told[-1]["share"] == 0.0
    assert max(told[-1]["achieved"], told[-1]["limit"]) < 1e6
    session.close()


def test_time_is_the_session_s_own(pipe: CausalWanPipeline) -> None:
    """Fitting and delivering count, for the block after; other sessions and waiting do not."""
    frames, worker = levels(6 * BLOCK, 64, 96), Worker()
    other = open_session(pipe, worker, policy="all")
    session = open_session(pipe, worker, policy="all", control=Controls(Rate(fps=9.0)))
    for number in range(6):
        for each in (session, other):
            play(each, worker, frames[number * BLOCK :][:BLOCK], number * 1.2)
    blocks = session.telemetry.blocks
    counted = []
    for before, block in itertools.pairwise(blocks):
        spent = sum(block.milliseconds[stage] for stage in STAGES_OF_STREAM)
        counted.append(spent + before.milliseconds["fit"] + before.milliseconds["deliver"])
    rate = blocks[-1].rate
    assert rate is not None
    assert rate["achieved"] == pytest.approx(1000 * 5 * BLOCK / sum(counted))
    session.close()
    other.close()


def test_refreshes_stay_in_turn_while_a_rate_changes(pipe: CausalWanPipeline) -> None:
    worker, still = Worker(), levels(1, 64, 96).repeat(10 * BLOCK, 0)
    control = Controls(Refresh(4), Gop(100), Cuts())
    session = open_session(pipe, worker, policy="all", control=control)
    play(session, worker, still[:BLOCK])
    for number in range(1, 10):
        rate = Rate(kept=0.01 * number, mode="capped")
        now = Controls(rate, Refresh(4), Gop(100), Cuts())
        session.change(control=now)
        play(session, worker, still[number * BLOCK :][:BLOCK], 1.2 * number)
    masks = [block.keep.any(0) for block in session.telemetry.blocks]
    for first in range(1, 7):
        together = np.logical_or.reduce(masks[first : first + 4])
        assert together.all(), f"blocks {first} to {first + 3} leave places out"
    assert max(mask.mean() for mask in masks[1:]) < 0.3
    session.close()


def test_a_region_that_comes_with_a_rate_is_obeyed(pipe: CausalWanPipeline) -> None:
    worker, frames = Worker(), levels(6 * BLOCK, 64, 96)
    session = open_session(pipe, worker, policy="all", control=WATCHED)
    play(session, worker, frames[: 3 * BLOCK])
    before = controller(session)
    left = Region(Box(0.0, 0.0, 0.5, 1.0), "never")
    session.change(control=WATCHED.replaced(left))
    play(session, worker, frames[3 * BLOCK :], 3.6)
    for block in session.telemetry.blocks[3:]:
        assert not block.keep[..., :3].any()
    assert controller(session) is before
    drawn = [block.guard["drawn"] for block in session.telemetry.blocks if block.guard is not None]
    assert drawn == sorted(drawn)
    assert drawn[-1] == 5 * 8, "what was drawn before the region came still counts"
    session.close()


HELD = [
    Controls(Rate(kept=0.3), Gop(4), Refresh(3)),
    Controls(Rate(kept=0.3, mode="capped"), Guard(0.05)),
    Controls(Guard(0.05, target=0.05), Cuts()),
]


@pytest.mark.parametrize("control", HELD, ids=["kept", "capped and watched", "guard with target"])
def test_a_session_that_holds_something_is_a_file_that_does(
    pipe: CausalWanPipeline, control: Controls
) -> None:
    """Telling of it after every block changes nothing."""
    worker, frames = Worker(), levels(8 * BLOCK, 64, 96)
    session = open_session(pipe, worker, policy="all", control=control)
    got = pixels(play(session, worker, frames))
    assert np.array_equal(got, file_path(pipe, frames, control=control))
    session.close()


def test_a_guard_that_moves_thresholds_tells_by_how_much(pipe: CausalWanPipeline) -> None:
    worker, frames = Worker(), levels(8 * BLOCK, 64, 96)
    control = Controls(Guard(0.05, target=1e-6))
    session = open_session(pipe, worker, policy="all", control=control)
    play(session, worker, frames)
    told = [block.guard for block in session.telemetry.blocks]
    assert all(guard is not None and set(guard) == {"share", "target", "factor"} for guard in told)
    factors = [guard["factor"] for guard in told if guard is not None]
    assert factors[0] == 1.0
    assert factors[-1] < 1.0
    session.close()


def test_a_guard_is_asked_less_often_as_its_blocks_pile_up() -> None:
    watch = Watch(Guard(0.5))
    keep = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    shown = torch.zeros(1, 16, 1)
    drawn = []
    for _ in range(1124):
        watch.sample(keep, keep)
        watch.result(shown + 1, shown)
        watch.next_block()
        told = watch.telemetry()
        assert told is not None
        assert told["error"] == 1
        drawn.append(told["drawn"])
    assert drawn[:1024] == [8 * number for number in range(1, 1025)]
    assert len(set(drawn[1024:])) == 50
    assert drawn[-1] >= 8 * 1122
