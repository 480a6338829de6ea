"""A model that is made ready: streams to come capture nothing, whatever their blocks need."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from tests import tiny
from tests.recorded_graphs import record
from typer.testing import CliRunner

from stillframe.backbones.fused.lengths import LengthGraphs
from stillframe.cli.app import app
from stillframe.config import EditConfig
from stillframe.jobs.warm import warm
from stillframe.kernels.graphs import Graphs


@pytest.mark.parametrize("method", ["prune", "full"])
def test_streams_that_follow_capture_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings, pipe = record(monkeypatch), tiny.pipeline()
    told: list[tuple[int, int | None]] = []
    config, size = EditConfig(method=method, execution="fused"), {"height": 96, "width": 160}
    found = warm(pipe, config, **size, on_progress=lambda *given: told.append(given))
    gc.collect()
    assert (found.width, found.height) == (160, 96)
    assert found.graphs == recordings.made > 0
    assert found.lengths == (len(pipe_lengths(pipe, config)) if method == "prune" else 1)
    assert 0 < found.first_seconds < found.seconds
    done = [number for number, _ in told]
    assert done == sorted(done)
    made, video = recordings.made, tiny.clip(72, 96, 160, seed=3)
    stream = pipe.stream("oil", config=config)
    for piece in video.split(12, 1):
        stream.push(piece)
    assert recordings.made == made


def test_blocks_that_move_and_blocks_that_stand_are_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every length there are graphs of both kinds of both passes."""
    record(monkeypatch)
    pipe, config = tiny.pipeline(), EditConfig(execution="fused")
    captured: list[tuple[str, int, bool]] = []
    plain = LengthGraphs.run

    def run(graphs: LengthGraphs, kind: Any, length: int, work: Callable[[], None]) -> bool:
        new = plain(graphs, kind, length, work)
        # what a context pass sees comes after whether anything is displaced in it
        displaced = kind[-1] if kind[0] == "denoise" else kind[-2]
        captured.extend([(kind[0], length, displaced)] * new)
        return new

    monkeypatch.setattr(LengthGraphs, "run", run)
    warm(pipe, config, height=96, width=160)
    every = product(("denoise", "context"), pipe_lengths(pipe, config), (False, True))
    assert set(captured) >= set(every)


def pipe_lengths(pipe: Any, config: EditConfig) -> Any:
    stream = pipe.stream("oil", config=config)
    stream.push(tiny.clip(12, 96, 160))
    return stream.lengths


def test_a_model_that_captures_nothing_is_warmed_as_well() -> None:
    captures = Graphs.captures
    found = warm(tiny.pipeline(), height=64)
    assert found.height == 64
    assert found.width % 16 == 0
    assert (found.graphs, found.lengths) == (0, 0)
    assert Graphs.captures == captures


def test_the_command_says_what_it_took() -> None:
    done = CliRunner().invoke(app, ["warm", "tiny", "--height", "64", "--width", "96"])
    assert done.exit_code == 0, done.output
    assert "tiny: loaded in" in done.output
    assert "ready for 96x64 in" in done.output
    assert "no CUDA graphs here" in done.output or torch.cuda.is_available()
    refused = CliRunner().invoke(app, ["warm", "tiny", "--method", "nothing"])
    assert refused.exit_code == 2, refused.output
    assert "nothing" in refused.output


def test_a_server_is_ready_before_it_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """Loading is what it waits for, and says what it took."""
    from stillframe.cli.serve import load_warm

    pipe = load_warm({"model": "tiny", "height": 64, "width": 80}, {"method": "full"})
    assert pipe.transformer is not None
    assert "ready for 80x64 in" in capsys.readouterr().err
