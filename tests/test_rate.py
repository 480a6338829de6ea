"""Rate control through the engine, on a simulated clock: it holds, settles, ranks and replays."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import pytest
import torch
from tests.rate_fixtures import (
    FRAMES,
    PRUNE,
    Simulated,
    controller,
    moving,
    run,
    seconds,
    windows,
)
from tests.test_control import Run, scene

from stillframe.controls import Box, Controls, Cuts, Gop, Guard, Rate, RateTrace, Refresh, Region
from stillframe.controls.cost import CostModel
from stillframe.controls.rate import RateController, most_changed
from stillframe.controls.stream import ControlState
from stillframe.detection.latents import ChangeScore
from stillframe.errors import InputError, OutputError
from stillframe.methods import find_method
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

# a whole block takes a second and is FRAMES frames, so the dense speed is FRAMES a second


@pytest.mark.parametrize("times", [1.1, 2.0, 3.0])
def test_a_target_is_held_under_noise_drift_and_hiccups(times: float) -> None:
    clock = Simulated(noise=0.06, drift=0.003, hiccups=(30,))
    made = run(Rate(fps=times * FRAMES, clock=clock), moving(60))
    held = windows(seconds(made)[1:], 10)
    assert held == pytest.approx(times * FRAMES, rel=0.05)
    told = controller(made).outcome()
    assert told.achieved == pytest.approx(FRAMES * 59 / sum(seconds(made)[1:]))
    assert told.blocks == 59
    assert not controller(made).warnings()


def test_without_the_rate_the_same_machine_does_something_else() -> None:
    """The test of the test above."""
    made = run(Rate(fps=2 * FRAMES, clock=Simulated()), moving(24))
    plain = Run(None, PRUNE)
    plain.feed(moving(24))
    times = [0.2 + 0.8 * share for share in plain.shares]
    assert abs(windows(times[1:], 4) / (2 * FRAMES) - 1) > 0.07
    assert windows(seconds(made)[1:], 4) == pytest.approx(2 * FRAMES, rel=0.05)


def test_new_targets_settle_within_three_blocks_and_do_not_oscillate() -> None:
    latents = moving(70)
    made = Run(Controls(Rate(fps=1.5 * FRAMES, clock=Simulated(noise=0.02))), PRUNE)
    steps = [1.5, 3.0, 1.2, 2.0, 1.5]
    for number, times in enumerate(steps):
        rate = controller(made).control
        controller(made).retarget(replace(rate, fps=times * FRAMES))
        for block in latents[:, :, number * 42 : (number + 1) * 42].split(3, 2):
            made.stream.edit_block(block)
    for number, times in enumerate(steps):
        part = seconds(made)[number * 14 : (number + 1) * 14]
        wanted = 1 / times
        settled = part[6:] if number == 0 else part[3:]
        # single blocks have noise and a 72nd of a block's tokens of rounding
        assert all(abs(x / wanted - 1) < 0.12 for x in settled)
        assert mean(settled) == pytest.approx(wanted, rel=0.03)
        # white noise turns round at two of three blocks; an oscillation would lie in the spread
        assert pstdev(settled) < 0.06 * wanted


def test_cuts_and_groups_come_out_of_the_same_budget() -> None:
    latents = torch.cat([moving(20, seed) for seed in range(3)], 2)
    rate = Rate(fps=2 * FRAMES, clock=Simulated(noise=0.02))
    made = run(rate, latents, Cuts(), Gop(13), Refresh(10))
    assert made.shares[1:].count(1) >= 4
    assert made.stream.control_state is not None
    assert {240, 480} <= set(made.stream.control_state.report()["cut_frames"])
    assert windows(seconds(made)[1:], 10) == pytest.approx(2 * FRAMES, rel=0.05)


def test_forced_tokens_take_the_place_of_others() -> None:
    box = Region(Box(0, 0, 0.5, 0.5))
    refresh = Refresh(6)
    plain = run(Rate(kept=0.5), moving(16))
    made = run(Rate(kept=0.5), moving(16), box, refresh)
    assert made.shares == plain.shares
    places = box.places(Grid(3, 4, 6))
    assert all(bool(block.keep[:, :, places].all()) for block in made.blocks)
    assert made.stream.control_state is not None
    report = made.stream.control_state.report()
    assert report["oldest_blocks"] < 6
    assert report["refreshed_tokens"] < 15 * 72 / 6


def scores_and_masks(made: Run, latents: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Score and mask of every block after the first, worked out again from the masks alone."""
    from stillframe.tokens.grid import patchify

    score, out = ChangeScore(*PRUNE.thresholds, PRUNE.trim), []
    tokens = [patchify(block, 2).unflatten(1, (3, -1)) for block in latents.split(3, 2)]
    reference = previous = tokens[0][:, -1]
    for now, block in zip(tokens[1:], made.blocks[1:], strict=True):
        found = score(SourceBlock(now, previous, reference, Grid(3, 4, 6)))
        out.append((found, block.keep))
        for j in range(3):
            reference = torch.where(block.keep[:, j].flatten(1)[..., None], now[:, j], reference)
        previous = now[:, -1]
    return out


def test_nothing_is_pruned_that_changed_more_than_what_is_kept() -> None:
    latents = moving(12)
    for rate in (Rate(kept=0.3), Rate(fps=2.5 * FRAMES, clock=Simulated(noise=0.1))):
        for score, keep in scores_and_masks(run(rate, latents), latents):
            assert bool(keep.any())
            assert score[keep].min() >= score[~keep].max()


def test_with_a_limit_strong_changes_are_kept_whatever_it_costs() -> None:
    latents = moving(12)
    made = run(Rate(fps=4 * FRAMES, limit=2.0, clock=Simulated()), latents)
    found = scores_and_masks(made, latents)
    assert all(bool(keep[score > 2].all()) for score, keep in found)
    assert controller(made).outcome().out_of_reach > 5
    assert controller(made).warnings()
    unlimited = run(Rate(fps=4 * FRAMES, clock=Simulated()), latents)
    assert not all(bool(k[s > 2].all()) for s, k in scores_and_masks(unlimited, latents))


def test_what_is_forced_is_kept_and_what_is_barred_is_not() -> None:
    score = torch.rand(2, 3, 4, 5)
    forced = torch.rand(2, 3, 4, 5) < 0.2
    barred = (torch.rand(2, 3, 4, 5) < 0.2) & ~forced
    for count in (0, 7, 40, 60):
        keep = most_changed(score, count, forced, barred)
        assert bool(keep[forced].all())
        assert not keep[barred].any()
        free = ~forced & ~barred
        for row in range(2):
            allowed = max(count, int(forced[row].sum()))
            assert keep[row].sum() == min(allowed, int((~barred[row]).sum()))
            kept, left = (score[row][free[row] & k] for k in (keep[row], ~keep[row]))
            assert not len(kept) or not len(left) or kept.min() >= left.max()


def test_a_cap_leaves_calm_blocks_to_the_thresholds() -> None:
    latents = torch.cat([scene(0, 30), moving(20)], 2)
    plain = Run(None, PRUNE)
    plain.feed(latents)
    made = run(Rate(kept=0.25, mode="capped"), latents)
    constant = run(Rate(kept=0.25), latents)
    # it saves while nothing moves, and may then spend more than its share for a while
    assert plain.shares[2:9] == made.shares[2:9]
    assert max(made.shares[2:9]) < 0.05
    assert set(constant.shares[1:]) == {0.25}
    assert max(made.shares[11:14]) > 0.3
    assert mean(made.shares[-8:]) < mean(plain.shares[-8:])
    assert mean(made.shares[-8:]) == pytest.approx(0.25, abs=0.03)


def test_a_target_out_of_reach_is_told_with_numbers() -> None:
    made = run(Rate(fps=8 * FRAMES, clock=Simulated()), moving(20))
    told = controller(made).outcome()
    assert made.shares[-1] == 0
    assert told.fastest == pytest.approx(FRAMES / 0.2, rel=0.05)
    assert told.out_of_reach >= 15
    (warning,) = controller(made).warnings()
    assert warning is not None
    assert f"96 FPS was out of reach in {told.out_of_reach} of 19 blocks" in warning
    assert f"{told.fastest:.3g} FPS is the limit with nothing recomputed" in warning
    # what could not be held is not owed: a target within reach is met again at once
    controller(made).retarget(replace(controller(made).control, fps=2 * FRAMES))
    made.feed(moving(8))
    assert mean(seconds(made)[-6:]) == pytest.approx(0.5, rel=0.05)


def test_a_target_below_the_dense_speed_computes_everything() -> None:
    made = run(Rate(fps=0.5 * FRAMES, clock=Simulated()), moving(10))
    assert set(made.shares[3:]) == {1.0}
    assert controller(made).outcome().dense_in_reach >= 7
    assert not controller(made).warnings()


def test_a_latency_is_held_block_by_block() -> None:
    made = run(Rate(latency=0.4, clock=Simulated(noise=0.02)), moving(40), Gop(10))
    times = [t for t, share in zip(seconds(made), made.shares, strict=True) if share < 1]
    assert mean(times[2:]) == pytest.approx(0.4, rel=0.05)
    # after a whole block that took a second, none is rushed by more than the small reserve allows
    assert min(times[2:]) > 0.4 * (1 - 0.5 / 8) * 0.9


def test_nothing_is_learnt_from_first_blocks_captures_and_single_outliers() -> None:
    model = CostModel()
    for share in (0.5, 0.3, 0.4, 0.35, 0.45):
        model.note(share, 0.2 + 0.8 * share)
    line = model.fixed, model.slope
    model.note(0.4, 6.0)
    assert (model.fixed, model.slope) == line
    for _ in range(20):
        model.note(0.4, 1.04)
    assert model.seconds(0.4) == pytest.approx(1.04, rel=0.02)
    # where it stays at one share, it does not lose its slope
    assert model.slope > 0.5
    made = Run(Controls(Rate(fps=2 * FRAMES, clock=Simulated())), PRUNE)
    rate = controller(made)
    rate.note(1.0, 100.0, False)
    rate.note(0.5, 50.0, True)
    assert not rate.ledger.cost.known


def test_before_two_points_there_is_a_guess_between_them() -> None:
    model = CostModel()
    assert model.share(0.1) == 1
    model.note(0.5, 0.6)
    assert model.seconds(0.5) == pytest.approx(0.6)
    assert 0 < model.fixed < 0.6
    assert 0 < model.share(0.4) < 0.5 < model.share(0.7) <= 1
    model.note(0.25, 0.4)
    assert model.seconds(0.25) == pytest.approx(0.4, rel=0.03)
    with pytest.raises(ValueError, match=r"got 1.5, 1"):
        model.note(1.5, 1.0)


def test_a_trace_replays_a_run_bit_for_bit(tmp_path: Path) -> None:
    latents = moving(20)
    clock = Simulated(noise=0.3, hiccups=(7,))
    first = Run(Controls(Rate(fps=2 * FRAMES, clock=clock), Guard()), PRUNE)
    result = first.feed(latents)
    RateTrace(tuple(controller(first).timings)).write(tmp_path / "a.trace")
    trace = RateTrace.read(tmp_path / "a.trace")
    assert list(trace.blocks) == controller(first).timings
    again = Run(Controls(Rate(fps=2 * FRAMES, trace=trace), Guard()), PRUNE)
    assert torch.equal(again.feed(latents), result)
    assert again.shares == first.shares
    assert len(set(again.shares)) > 5
    # with the times of this machine instead, it is another run
    other = run(Rate(fps=2 * FRAMES, clock=Simulated(noise=0.3, seed=1)), latents)
    assert other.shares != first.shares
    with pytest.raises(InputError, match="has 20 blocks, and the video has more"):
        again.stream.edit_block(latents[:, :, :3])
    stranger = Run(Controls(Rate(fps=3 * FRAMES, trace=trace)), PRUNE)
    with pytest.raises(InputError, match="is of another run: of block"):
        stranger.feed(latents)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "not a rate trace"),
        (lambda text: text.replace("stillframe", "another"), "not a rate trace"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "of version 2, not 1"),
        (lambda text: text[: text.rindex("{")], "has 1 of its blocks"),
        (lambda text: text[:-5], "damaged as a rate trace"),
        (lambda text: text.replace("0.25", '"a"'), "block 0 has no numbers"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    from stillframe.controls import Timing

    path = tmp_path / "a.trace"
    RateTrace((Timing(1.0, 0.25), Timing(0.5, 0.125, True))).write(path)
    assert [json.loads(line).get("block") for line in path.read_text().splitlines()] == [None, 0, 1]
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=said):
        RateTrace.read(path)
    with pytest.raises(InputError, match="could not be read"):
        RateTrace.read(tmp_path / "none")
    with pytest.raises(OutputError, match="could not be written"):
        RateTrace(()).write(tmp_path / "none" / "a.trace")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Rate(), "got 0 of them"),
        (lambda: Rate(fps=3, kept=0.5), "got 2 of them"),
        (lambda: Rate(fps=0), "fps lies above 0, got 0"),
        (lambda: Rate(kept=1.5), "up to 1, got 1.5"),
        (lambda: Rate(latency=float("inf")), "got inf"),
        (lambda: Rate(fps=1, mode="fast"), "'constant' or 'capped', got 'fast'"),
        (lambda: Rate(fps=1, limit=0.5), "at least 1 threshold, got 0.5"),
        (lambda: Controls(Rate(fps=1)).check(find_method("full")()), "has no thresholds"),
        (lambda: ControlState(Controls(Rate(fps=1))), "there is none"),
        (
            lambda: Controls(Rate(kept=0.5), Guard(target=0.1)).check(PRUNE),
            "needs thresholds to move",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_what_lies_between_two_lengths_costs_as_much_as_the_longer() -> None:
    rate = controller(Run(Controls(Rate(fps=2 * FRAMES, clock=Simulated())), PRUNE))
    tokens = torch.randn(1, 3, 24, 16)
    block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], Grid(3, 4, 6))
    own = torch.zeros(1, 3, 4, 6, dtype=torch.bool)
    keep, _ = rate.choose(block, own, own, own, lengths=[16, 32, 48, 64, 72])
    assert keep.sum() == 48  # half of 72 is what it begins with


def test_pairs_of_blocks_do_not_alternate() -> None:
    """An oscillation of the controller would show as neighbours that differ the other way."""
    times = seconds(run(Rate(fps=2.2 * FRAMES, clock=Simulated(noise=0.05)), moving(60)))[8:]
    steps = [b - a for a, b in pairwise(times)]
    # differences of white noise correlate by -1/2, those of an oscillation by -1
    products = mean(a * b for a, b in pairwise(steps)) / mean(a * a for a in steps)
    assert products > -0.75


def test_a_stream_without_end_keeps_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillframe.controls.rate._MOST_TIMINGS", 5)
    made = RateController(Rate(fps=1.0), PRUNE, FRAMES)
    for number in range(5):
        made.note(0.5, 1.0 + number, False)
    assert len(made.recorded().blocks) == 5
    for number in range(5, 40):
        made.note(0.5, 1.0 + number, False)
    assert made.blocks == 40
    # the latest, in order
    assert [timing.seconds for timing in made.timings] == [36.0, 37.0, 38.0, 39.0, 40.0]
    with pytest.raises(ValueError, match="holds 5 blocks, and this stream had 40"):
        made.recorded()
