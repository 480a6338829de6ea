"""Two passes: what the first foretells, how the second spends it; rates from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from tests.edit_fixtures import (
    busy_frames,
    model_folder_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.rate_fixtures import FRAMES, PRUNE, Simulated, controller, moving, run, seconds
from tests.test_control import Run, scene
from tests.video_samples import decode, make_video
from torch import Tensor
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.controls import Controls, Forecast, Gop, Rate, Survey
from stillframe.controls.twopass import LEVELS
from stillframe.detection.latents import ChangeScore
from stillframe.errors import InputError
from stillframe.jobs.edit import edit_file
from stillframe.tokens.grid import Grid, patchify
from stillframe.tokens.source import SourceBlock

GRID = Grid(3, 4, 6)


def survey(latents: Tensor, control: Controls | None = None) -> Forecast:
    made = Survey(PRUNE, control)
    for block in latents.split(3, 2):
        made.add(patchify(block, 2).unflatten(1, (3, -1)), GRID)
    return made.forecast()


def halves() -> Tensor:
    """12 still blocks, then 12 that move."""
    return torch.cat([scene(0, 36), moving(12)], 2)


def test_the_first_pass_foretells_what_a_level_would_keep() -> None:
    """Worked out one level at a time, frame by frame."""
    latents = moving(8)
    forecast = survey(latents)
    tokens = [patchify(block, 2).unflatten(1, (3, -1)) for block in latents.split(3, 2)]
    for index in (0, 6, len(LEVELS) - 1):
        score = ChangeScore(*PRUNE.thresholds, PRUNE.trim)
        reference = previous = tokens[0][:, -1]
        shares = [1.0]
        for now in tokens[1:]:
            keep = score(SourceBlock(now, previous, reference, GRID)).flatten(2) >= LEVELS[index]
            shares.append(float(keep.double().mean()))
            for j in range(3):
                reference = torch.where(keep[:, j, :, None], now[:, j], reference)
            previous = now[:, -1]
        assert [row[index] for row in forecast.shares] == pytest.approx(shares)


def test_blocks_that_will_be_whole_are_foretold() -> None:
    forecast = survey(moving(9), Controls(Gop(4)))
    whole = [index for index, row in enumerate(forecast.shares) if min(row) == 1]
    assert whole == [0, 4, 8]


@pytest.mark.parametrize("total", [0.5, 2.0, 6.0, 11.0])
def test_a_forecast_shares_out_exactly_what_there_is(total: float) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(12, len(LEVELS), generator=generator).sort(1, descending=True).values
    forecast = Forecast(tuple(tuple(row) for row in table.tolist()))
    left = total
    for number in range(12):
        share = forecast.share(number, left)
        assert 0 <= share <= 1
        left -= share
    assert left == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=f"of {len(LEVELS)} levels"):
        Forecast(((1.0,),))


def test_the_second_pass_spends_the_budget_where_the_motion_is() -> None:
    latents = halves()
    made = run(Rate(kept=0.3, forecast=survey(latents)), latents)
    constant = run(Rate(kept=0.3), latents)
    assert mean(made.shares[1:]) == pytest.approx(0.3, abs=0.01)
    assert mean(constant.shares[1:]) == pytest.approx(0.3, abs=0.01)
    assert mean(made.shares[1:12]) < 0.15
    assert mean(made.shares[13:]) > 0.4
    assert max(constant.shares[2:]) < 0.32


def test_the_second_pass_holds_a_speed_over_the_whole() -> None:
    latents = halves()
    clock = Simulated(noise=0.05, drift=0.004)
    made = run(Rate(fps=2.5 * FRAMES, forecast=survey(latents), clock=clock), latents)
    assert sum(seconds(made)[1:]) == pytest.approx(23 / 2.5, rel=0.03)
    assert mean(made.shares[1:12]) < mean(made.shares[13:])


def test_whole_blocks_come_out_of_the_budget_of_the_others() -> None:
    latents, gop = moving(24), Gop(6)
    rate = Rate(kept=0.4, forecast=survey(latents, Controls(gop)))
    made = run(rate, latents, gop)
    assert made.shares.count(1) == 4
    assert mean(made.shares[1:]) == pytest.approx(0.4, abs=0.01)
    # also where the first pass did not know of them
    unknown = Run(Controls(Rate(kept=0.4, forecast=survey(latents)), gop), PRUNE)
    unknown.feed(latents)
    assert mean(unknown.shares[1:]) == pytest.approx(0.4, abs=0.02)


def _clip(folder: Path) -> Path:
    frames = busy_frames(60, move=30)
    return make_video(folder / "in.mp4", frames, options={"qp": "0", "preset": "ultrafast"})


def test_a_file_in_two_passes_and_its_trace(tmp_path: Path, tiny_pipe: Any) -> None:
    from stillframe.controls import RateTrace

    clip, trace = _clip(tmp_path), tmp_path / "a.trace"
    out = [tmp_path / f"{i}.mkv" for i in range(2)]
    report = edit_file(
        tiny_pipe, clip, out[0], prompt="oil", crf=0, control=Controls(Rate(fps=100.0)),
        two_pass=True, rate_trace_out=trace,
    )  # fmt: skip
    assert report.control is not None
    told = report.control["rate"]
    assert told["two_pass"]
    assert told["first_pass_seconds"] > 0
    rate = Rate(fps=100.0, trace=RateTrace.read(trace))
    again = edit_file(
        tiny_pipe, clip, out[1], prompt="oil", crf=0, control=Controls(rate), two_pass=True
    )
    assert again.kept_share_blocks == report.kept_share_blocks
    pictures = [np.stack([frame for _, frame in decode(path)]) for path in out]
    assert np.array_equal(pictures[0], pictures[1])
    live = edit_file(tiny_pipe, clip, out[1], prompt="oil", control=Controls(Rate(kept=0.5)))
    assert set(live.kept_share_blocks[1:]) == {0.5}


def _edit(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["edit", *map(str, arguments), "--prompt", "oil", "--quiet"])


def test_rates_from_the_command_line_to_the_report(tmp_path: Path, model_folder: Path) -> None:
    clip, report = _clip(tmp_path), tmp_path / "r.json"
    done = _edit(
        clip, "-o", tmp_path / "o.mkv", "--model", model_folder, "--report", report,
        "--target-kept", "0.4", "--two-pass", "--rate-mode", "capped", "--guard", "0.1",
        "--guard-target", "0.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    control = json.loads(report.read_text())["control"]
    assert control["rate"]["target_kept"] == 0.4
    assert control["rate"]["achieved"] <= 0.41
    assert control["guard"]["low"] <= control["guard"]["error"] <= control["guard"]["high"]
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for part in ("rate", "guard") for name in control[part])
    again = "-y", "--model", model_folder, "--target-fps", "1e6"
    done = _edit(clip, "-o", tmp_path / "o.mkv", *again)
    assert done.exit_code == 0, done.output
    assert "1e+06 FPS was out of reach in" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--two-pass"], "--two-pass needs --target-fps"),
        (["--rate-mode", "capped"], "--rate-mode needs --target-fps"),
        (["--guard-target", "1"], "--guard-target needs --guard"),
        (["--target-fps", "1", "--target-kept", "1"], "got 2 of them"),
        (["--target-fps", "1", "--rate-mode", "fast"], "got 'fast'"),
        (["--target-latency", "1", "--two-pass"], "two passes need a target"),
        (["--target-fps", "1", "--method", "full"], "no thresholds"),
        (["--target-fps", "1", "--rate-trace-in", "none"], "could not be read"),
        (["--target-fps", "1", "--rate-trace-out", "none/t"], "no folder"),
    ],
)
def test_refusals_are_one_sentence(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _clip(tmp_path)
    result = _edit("in.mp4", "-o", "out.mp4", "--model", model_folder, *more)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_what_can_be_read_only_once_has_no_first_pass(tmp_path: Path, tiny_pipe: Any) -> None:
    with pytest.raises(InputError, match="can be read only once"):
        edit_file(
            tiny_pipe, "-", tmp_path / "o.mkv", prompt="oil", two_pass=True,
            control=Controls(Rate(kept=0.5)),
        )  # fmt: skip


def test_a_stream_at_a_rate_is_a_file_bit_for_bit() -> None:
    """A share, a guard with a target, and a trace: no decision depends on how frames arrive."""
    from tests.tiny import clip

    from stillframe.controls import Guard, RateTrace

    video = torch.cat([clip(40), clip(33, seed=3)], 1)
    clock = Simulated(noise=0.2)
    first = Run(Controls(Rate(fps=2 * FRAMES, clock=clock)), PRUNE)
    joined = [first.stream.push(video), first.stream.flush()]
    trace = RateTrace(tuple(controller(first).timings))
    wholes = {Rate(fps=2 * FRAMES, trace=trace): torch.cat([x for x in joined if x is not None], 1)}
    capped = Rate(kept=0.4, mode="capped")
    other = Run(Controls(capped, Guard(0.05, target=0.2)), PRUNE)
    joined = [other.stream.push(video), other.stream.flush()]
    wholes[capped] = torch.cat([x for x in joined if x is not None], 1)
    for rate, wanted in wholes.items():
        guard = (Guard(0.05, target=0.2),) if rate is capped else ()
        parts = Run(Controls(rate, *guard), PRUNE)
        out = [parts.stream.push(piece) for piece in video.split(5, 1)] + [parts.stream.flush()]
        assert torch.equal(torch.cat([x for x in out if x is not None], 1), wanted)
