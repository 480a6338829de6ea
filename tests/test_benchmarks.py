"""The commands behind the documentation's numbers: arguments, and tiny runs without a card."""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import benchmarks
import pytest
import torch
from benchmarks.on_gpu import equality
from tests import tiny
from tests.video_samples import make_video

from stillframe.jobs.bench import Share
from stillframe.methods.prune import MOTIONS

COMMANDS = [
    module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if hasattr(importlib.import_module(f"benchmarks.{module.name}"), "main")
]


def run(name: str, *arguments: str) -> None:
    """A benchmark as ``python -m`` would run it, in this process."""
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"benchmarks.{name}", *arguments])
        module.main()


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_are_parsed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        run(name, "--no-such-option")
    assert ended.value.code == 2


def test_what_has_no_command_is_part_of_one_that_has() -> None:
    """So that a benchmark whose ``main`` is renamed is missed here."""
    others = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - set(COMMANDS)
    assert others == {"detector_choice", "motion_on_gpu", "plots", "rates_bench"}


def test_a_tiny_run(capsys: pytest.CaptureFixture[str]) -> None:
    run("built_motion", "--frames", "25", "--height", "64", "--width", "96")
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["rows"]
    assert len(rows) == len(lines) - 1
    assert {row["motion"] for row in rows} == set(MOTIONS)
    assert all(0 <= row["computed"] <= 1 for row in rows)


def test_drift_is_told_of_blocks_that_reuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(tmp_path / "in.mkv", list((255 * tiny.clip(36)[0].movedim(1, -1)).byte().numpy()))
    run("drift", str(tmp_path / "in.mkv"), "--height", "64", "--out", str(tmp_path))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["clips"] == 1
    with open(tmp_path / "drift.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert 0 < float(row["kept"]) < 1
    assert float(row["low"]) <= float(row["estimated"]) <= float(row["high"])
    assert float(row["true"]) > 0


def test_streams_are_driven_to_their_end(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", "tiny", "--device", "cpu", "--size", "96x64", "--frames", "30"]
    run("streams", *given, "--streams", "2", "--together", "2", "--warm")
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert [row["stream"] for row in found["streams"]] == [0, 1]
    assert any(line.startswith("stream 1: 30 frames") for line in lines)
    assert found["together"]["total_fps"] > 0
    assert found["warm"]["width"], found["warm"]["height"] == (96, 64)
    # nothing is captured on a CPU
    assert sum(found["streams"][0]["captured"]) == found["together"]["captured"] == 0


@pytest.mark.parametrize("cards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_stream_on_several_processes(cards: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One is a group of its own: the same messages and exchanges, with nobody to hear them."""
    given = ["--shapes", "tiny", "--device", "cpu", "--size", "96x64", "--cards", str(cards)]
    run(
        "parallel",
        *given,
        "--kept",
        "1",
        "0.5",
        "--warm",
        "1",
        "--blocks",
        "1",
        "--plain",
    )
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["share"], row["cards"]) for row in rows] == [
        *[(share, 1) for share in (1.0, 0.5) * 2],
        *[(share, cards) for share in (1.0, 0.5) * 2],
    ]
    assert [row["execution"] for row in rows[::2]] == ["auto", "reference", "fused", "auto"]
    assert all(row["apart"] < 1e-4 for row in rows)
    assert 1 <= rows[-1]["kept_bytes"] * cards / rows[0]["kept_bytes"] < 1.02


def test_ways_of_running_are_compared_with_the_same_masks() -> None:
    with torch.inference_mode(False):
        pipe = tiny.pipeline()
    found = equality(pipe, (tiny.CHANNELS, 3, 8, 12))
    assert len(found) == 9
    for (method, recovery, name), difference in found.items():
        if name == "graphs, fused":
            assert difference == 0
        else:
            bound = 1e-4 if name == "fused, reference" else 0.1
            assert 0 < difference < bound, (method, recovery, name)


def masks_of(seed: int) -> list[torch.Tensor]:
    """Of three blocks at half the tokens, while somebody else draws random numbers."""
    torch.manual_seed(seed)
    found: list[torch.Tensor] = []
    stream = tiny.pipeline().stream(
        "oil", method=Share(share=0.5), on_block=lambda stats: found.append(stats.keep)
    )
    for latents in torch.randn(3, 1, tiny.CHANNELS, 3, 8, 12):
        torch.rand(seed)
        stream.edit_block(latents)
    return found


def test_streams_of_one_share_have_the_same_masks_whatever_else_is_drawn() -> None:
    masks = masks_of(1)
    assert all(map(torch.equal, masks, masks_of(2)))
    assert not torch.equal(masks[1], masks[2])
