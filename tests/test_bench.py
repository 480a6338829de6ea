"""The benchmark measures what it says: tokens, passes, arithmetic, and nothing downloaded."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from tests import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.jobs.bench import Share, matmul_ceiling, pass_flops, run_bench
from stillframe.loading.random_model import SHAPES
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock


def bench(**options: Any) -> Any:
    given: dict[str, Any] = {
        "height": 64,
        "width": 96,
        "sigmas": (0.9, 0.5),
        "shares": (1.0, 0.5, 0.25),
        "repeats": 2,
    }
    return run_bench(tiny.pipeline(), **{**given, **options})


@pytest.mark.parametrize("pixels", [False, True])
def test_rows_are_what_was_asked_for(pixels: bool) -> None:
    result = bench(pixels=pixels)
    assert [row.share for row in result.rows] == [1.0, 0.5, 0.25]
    assert [row.tokens for row in result.rows] == [72, 36, 18]
    assert result.rows[0].speedup == 1
    for row in result.rows:
        stages = {"mask", "denoise", "context", "decode"} | ({"encode"} if pixels else set())
        assert set(row.stages) == stages
        assert row.pass_ms == pytest.approx(row.stages["denoise"] / 2, rel=0.5)
        assert sum(row.stages.values()) < 2 * row.block_ms
        assert row.fps == pytest.approx(12e3 / row.block_ms)
        assert row.of_ceiling is None
        assert row.peak_bytes == 0
    assert -1 <= result.pearson <= 1
    assert json.loads(json.dumps(result.to_json()))["rows"][1]["tokens"] == 36


def test_fused_passes_can_be_measured_anywhere() -> None:
    result = bench(options={"execution": "fused"}, shares=(1.0, 0.3))
    assert result.graphs == (0, 0)
    assert math.isnan(result.pearson)


@pytest.mark.parametrize("shares", [(), (0.0,), (1.2,), (0.5, -1.0)])
def test_shares_out_of_range_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares lie above 0 and up to 1"):
        bench(shares=shares)


def test_the_arithmetic_of_a_pass_is_what_torch_counts() -> None:
    """A whole forward of the stock model: what is not a product of matrices hardly counts."""
    model = tiny.transformer(layers=3)
    tokens, text = 5 * 4 * 6, 12
    latents = torch.randn(1, tiny.CHANNELS, 5, 8, 12)
    # only of attention by hand are the products counted
    attention = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), attention:
        model(latents, torch.tensor([500.0]), torch.randn(1, text, tiny.TEXT_DIM))
    mine = pass_flops(model.config, tokens, tokens, text)
    width = tiny.HEADS * tiny.HEAD_DIM
    # text keys and values are kept between passes, so they are not in a pass
    theirs = counter.get_total_flops() - 3 * 2 * 2 * text * width * width
    assert mine == pytest.approx(theirs, rel=0.1)
    assert mine <= theirs


def test_a_share_keeps_as_many_tokens_as_it_says() -> None:
    grid = Grid(3, 5, 7)
    tokens = torch.zeros(2, 3, 35, 4)
    block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid)
    for share in (1.0, 0.31, 0.01):
        kept = Share(share=share).selector()(block).flatten(1).sum(1)
        assert kept.tolist() == [round(share * 105)] * 2


def test_shapes_are_wans() -> None:
    assert {name: len(config) for name, config in SHAPES.items()} == {"1.3b": 12, "14b": 12}
    with torch.device("meta"):
        from stillframe.backbones.wan import empty_transformer

        count = sum(p.numel() for p in empty_transformer(SHAPES["1.3b"]).parameters())
    assert 1.3e9 < count < 1.5e9


def test_the_ceiling_needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            matmul_ceiling(torch.device("cpu"), torch.float32, 8)


def test_the_command_prints_a_table_and_json() -> None:
    arguments = ["bench", "--height", "32", "--width", "32", "--kept", "1,.5", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--sigmas", "1,.4", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.strip().splitlines()
    assert json.loads(lines[-1])["settings"]["sigmas"] == [1.0, 0.4]
    assert len(lines) > 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kept", "half"], "--kept is numbers between commas"),
        (["--model", "rococo", "--random-weights"], "has the shapes 1.3b, 14b"),
        (["--height", "50"], "multiples of 16"),
        (["--recovery", "magic"], "unknown recovery"),
        (["--execution", "magic"], "--execution is auto, graphs"),
    ],
)
def test_wrong_options_are_one_sentence(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
