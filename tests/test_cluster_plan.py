"""Hours and cards of a batch on paper, against a batch that is dealt out clip by clip."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batch_fixtures import clips
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.jobs.bench_result import BenchResult, Row
from stillframe.jobs.cluster_plan import Rate, cost_curve, doublings, rate_of


def dealt(seconds: list[float], cards: int) -> float:
    """When the last clip is done, each given to the card that is free first, longest first."""
    free = [0.0] * cards
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)


@given(st.lists(st.sampled_from((1.0, 2.0, 3.0, 7.0)), min_size=1, max_size=60), st.integers(1, 40))
def test_the_curve_is_that_of_clips_dealt_one_by_one(seconds: list[float], cards: int) -> None:
    (point,) = cost_curve(list(Counter(seconds).items()), [cards], 60.0)
    assert point.hours * 3600 == pytest.approx(60 + dealt(seconds, cards))
    assert point.card_hours == pytest.approx(point.hours * cards)
    assert point.busy == pytest.approx(sum(seconds) / (point.card_hours * 3600))


def test_a_billion_clips_are_planned_at_once() -> None:
    curve = cost_curve([(2.0, 10**9)], doublings(100_000), 0.0)
    assert [point.cards for point in curve][:4] == [1, 2, 4, 8]
    assert curve[-1].cards == 100_000
    assert curve[-1].hours * 3600 == pytest.approx(2 * 10**9 / 100_000)


def result(shares: list[float]) -> BenchResult:
    rows = tuple(
        Row(share, 10, 1.0, 0.1, 1.0, {}, 1.0, 10 / share, 1.0, None, 0) for share in shares
    )
    settings = {"width": 832, "height": 480, "shares": shares, "pixels": True, "model": "tiny"}
    return BenchResult("a card", settings, 3, 1.0, None, None, (0, 0), rows)


def test_a_rate_is_that_of_the_nearest_share_and_goes_with_pixels() -> None:
    found = result([1.0, 0.5, 0.25])
    assert rate_of(found, None).fps == 10
    assert rate_of(found, 0.3).fps == 40
    rate = rate_of(found, 0.5)
    assert rate.seconds(200, 832, 480) == pytest.approx(10)
    assert rate.seconds(200, 416, 480) == pytest.approx(5)
    assert Rate(20, 0, 0, "").seconds(200, 1, 1) == pytest.approx(10)


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan-cluster", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_a_plan_says_what_it_assumes(tmp_path: Path) -> None:
    path = tmp_path / "bench.txt"
    path.write_text("a table\n" + json.dumps(result([1.0, 0.5]).to_json()) + "\n")
    given = ["--clips", 100, "--seconds", 36, "--bench", path, "--price", 2, "--cards", 2]
    code, said = run(*given, "--load-seconds", 0)
    assert code == 0, said
    # 100 clips of 900 frames at 10 a second
    assert "100 clips, 2.50 hours of one card's editing" in said
    rows = [line.replace("│", " ").split() for line in said.splitlines()]
    assert ["1", "2.50", "2.50", "100%", "5.00"] in rows
    assert ["2", "1.25", "2.50", "100%", "5.00"] in rows
    assert "a card edits 10 frames of 832x480 a second (a card, tiny, 100% kept" in said
    source = clips(tmp_path / "in", 2, 14)
    (source / "broken.mp4").write_bytes(b"nothing")
    code, said = run(source, "--fps", 29, "--load-seconds", 3600, "--cards", 1)
    assert code == 0, said
    assert "broken.mp4 (7 bytes) is not a video" in said
    assert "2 clips, 0.00 hours" in said
    assert ["1", "1.00", "1.00", "0%"] in [x.replace("│", " ").split() for x in said.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the rate of a card"),
        (["--fps", 3], "give IN, or --clips N and --seconds SECONDS"),
        (["--fps", 3, "--kept", 0.5], "--kept is for --bench"),
        (["--bench", "none.txt"], "none.txt cannot be read"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(arguments: list[object], said: str) -> None:
    code, told = run(*arguments)
    assert code == 2
    assert said in told
    assert told.count("\n") == 1
