"""The guard of quality: what it draws, that its estimate is unbiased, and what it does about it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.rate_fixtures import PRUNE, moving
from tests.test_control import STILL, Run, scene

from stillframe.controls import Box, Controls, Guard, Region
from stillframe.controls.estimate import Estimate, Stratum, estimate
from stillframe.controls.guard import Watch
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.tokens.restore import restore_slowly

ROWS = (1, 3, 10, 12)  # of a mask (B, S, h, w)


def told(run: Run) -> dict[str, Any]:
    assert run.stream.control_state is not None
    report = run.stream.control_state.report()["guard"]
    assert isinstance(report, dict)
    return report


def test_it_draws_its_share_of_what_would_be_pruned_and_nothing_barred() -> None:
    watch = Watch(Guard(0.05))
    keep = torch.rand(ROWS) < 0.4
    barred = ~keep & (torch.rand(ROWS) < 0.2)
    times = torch.zeros(ROWS)
    for _ in range(400):
        drawn = watch.sample(keep, barred) & ~keep
        assert drawn.sum() == 18
        assert not (drawn & barred).any()
        times += drawn
    free = ~keep & ~barred
    expected = 400 * 18 / int(free.sum())
    # each as often as any other: 5 standard deviations of a binomial
    assert (times[free] - expected).abs().max() < 5 * math.sqrt(expected)
    few = torch.ones(ROWS, dtype=torch.bool)
    few[0, 0, 0, :7] = False
    assert bool(watch.sample(few, torch.zeros_like(few)).all())


def known_error(watch: Watch, keep: torch.Tensor) -> float:
    """A block of which every token's error is known, seen by the guard; their mean square."""
    tokens = keep.numel()
    dense = torch.randn(1, tokens, 8)
    previous = torch.randn(1, ROWS[2] * ROWS[3], 8)
    sampled = watch.sample(keep, torch.zeros_like(keep)).flatten(2)
    result = restore_slowly(dense, previous, sampled)
    shown = restore_slowly(dense, previous, keep.flatten(2))
    watch.result(result, previous)
    watch.next_block()
    error = (dense - shown).square().mean(2).flatten()
    return float(error[~keep.flatten()].sum())


def test_its_estimate_is_unbiased_and_its_interval_covers() -> None:
    """On errors that are known, and as skewed as squares are."""
    torch.manual_seed(0)
    covered, ratios, widths = 0, [], []
    for seed in range(60):
        watch = Watch(Guard(0.05, seed=seed, confidence=0.9, drift=0, lean=1))
        total = tokens = 0.0
        for _ in range(6):
            keep = torch.rand(ROWS) < torch.rand(())
            total += known_error(watch, keep)
            tokens += int((~keep).sum())
        true = math.sqrt(total / tokens)
        found = watch.report()["guard"]
        ratios.append((found["error"] / true) ** 2)
        covered += found["low"] <= true <= found["high"]
        widths.append(found["high"] / found["low"])
    # 60 runs of 90 %: 54 expected, standard deviation 2.3; small samples are given some more
    assert covered >= 48
    assert max(widths) < 1.4
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.02)


def test_what_is_drawn_whole_has_no_doubt() -> None:
    root = math.sqrt(3.5)
    strata = [Stratum(10, 10, 2.0, 1.0), Stratum(30, 30, 4.0, 2.0)]
    assert estimate(strata, 0.95) == Estimate(root, root, root, 0.95, 40, 40)
    assert estimate([], 0.95).error is None
    wide, narrow = (estimate([Stratum(100, n, 1.0, 1.0)], 0.95) for n in (5, 50))
    assert wide.low < narrow.low < 1 < narrow.high < wide.high  # type: ignore[operator]
    surer = estimate([Stratum(100, 50, 1.0, 1.0)], 0.99)
    assert surer.high > narrow.high  # type: ignore[operator]


def test_drift_and_lean_widen_the_interval_upwards_alone() -> None:
    """Squares add: what a sample sees and what it cannot are independent."""
    strata = [Stratum(100, 20, 0.04, 0.001), Stratum(80, 20, 0.02, 0.002)]
    plain, wide = estimate(strata, 0.95), estimate(strata, 0.95, drift=0.3)
    assert (wide.error, wide.low) == (plain.error, plain.low)
    assert plain.high is not None
    assert wide.high is not None
    assert wide.high**2 == pytest.approx(plain.high**2 + 0.09)
    leaning = estimate(strata, 0.95, drift=0.3, lean=1.5)
    assert leaning.low == plain.low
    assert leaning.high == pytest.approx(math.hypot(1.5 * plain.high, 0.3))
    nothing_seen = estimate([Stratum(10, 10, 0.0, 0.0)], 0.95, drift=0.3)
    assert (nothing_seen.low, nothing_seen.high) == (0, 0.3)
    watch = Watch(Guard(0.05, drift=0.3, lean=1.1))
    known_error(watch, torch.zeros(ROWS, dtype=torch.bool))
    told = watch.report()["guard"]
    assert (told["drift"], told["lean"]) == (0.3, 1.1)
    assert told["high"] > math.hypot(told["error"], 0.3)


def test_a_stream_keeps_its_noise_and_computes_its_method_and_the_sample() -> None:
    latents = moving(8)
    plain, guarded = Run(None, PRUNE), Run(Controls(Guard(0.05)), PRUNE)
    plain.feed(latents)
    guarded.feed(latents)
    # the first pruned block saw the same past: it has what the method wanted, and 8 tokens more
    wanted, had = plain.blocks[1].keep, guarded.blocks[1].keep
    assert bool(had[wanted].all())
    assert (had & ~wanted).sum() == 8
    # noise is the same: a whole block later shows what a dense stream shows at the start
    full = Run(None, find_method("full")())
    full.feed(latents)
    assert torch.equal(full.coder.result[0], guarded.coder.result[0])
    generators: list[Any] = [run.stream._generator for run in (plain, guarded)]
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_it_sees_what_reuse_would_have_shown_in_a_stream() -> None:
    """With everything drawn that is not kept, the estimate is the error, worked out by hand."""
    latents = scene(0, 9, drift=0.3)
    guarded = Run(Controls(Guard(0.5)), InterFramePruning(tau1=9.0, tau2=9.0))
    guarded.feed(latents)
    found = told(guarded)
    assert found["drawn"] == 2 * 36
    assert found["tokens"] == 2 * 72
    from stillframe.tokens.grid import patchify

    result = [patchify(block, 2) for block in guarded.coder.result]
    errors = []
    for before, now, block in zip(result, result[1:], guarded.blocks[1:], strict=False):
        # nothing would have been kept, so the last frame before would have been shown throughout
        shown = before[:, -24:].repeat(1, 3, 1)
        square = (now - shown).square().mean(2)
        errors += square[block.keep.flatten(1)].tolist()
    assert found["error"] == pytest.approx(math.sqrt(sum(errors) / len(errors)), rel=1e-5)


def test_a_target_moves_the_thresholds_both_ways_and_not_without_end() -> None:
    latents = moving(24)
    plain = Run(Controls(Guard(0.05)), PRUNE)
    plain.feed(latents)
    error = told(plain)["error"]
    assert told(plain)["factor"] == 1
    shares = []
    for times in (0.5, 5.0):
        run = Run(Controls(Guard(0.05, target=times * error)), PRUNE)
        run.feed(latents)
        shares.append(sum(run.shares[8:]))
        assert 0.25 <= told(run)["factor"] <= 4
    assert told(run)["factor"] == 4
    assert shares[0] > sum(plain.shares[8:]) > shares[1]


def test_blocks_with_nothing_reused_count_for_nothing() -> None:
    run = Run(Controls(Guard()), InterFramePruning(tau1=0.0))
    run.feed(scene(0, 9))
    assert told(run)["error"] is None
    assert told(run)["tokens"] == 0
    never = Controls(Guard(0.1), Region(Box(0, 0, 1, 1), "never"))
    run = Run(never, STILL)
    run.feed(scene(0, 9))
    assert run.shares == [1, 0, 0]
    assert told(run)["error"] is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Guard(0.0), r"in \(0, 0.5\] of the tokens: 0"),
        (lambda: Guard(0.6), "0.6"),
        (lambda: Guard(target=0), "above 0, got 0"),
        (lambda: Guard(confidence=1), "between 0 and 1, got 1"),
        (lambda: Guard(drift=-0.1), "0 or more, got -0.1"),
        (lambda: Guard(lean=0.9), "from 1, got 0.9"),
        (lambda: Controls(Guard()).check(find_method("full")()), "reuses nothing"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
