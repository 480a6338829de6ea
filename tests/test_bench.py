"""The benchmark measures what it says: tokens, passes, arithmetic, and nothing downloaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.cli.bench import _shape, _show, _show_changes
from stillframe.jobs.bench import Share, _Bench, matmul_ceiling, pass_flops, run_bench
from stillframe.jobs.bench_result import BenchResult, Row, read_result
from stillframe.loading.random_model import SHAPES
from stillframe.loading.recipes import load_recipes
from stillframe.models import bundled_models
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
    assert result.pearson is None
    assert bench(shares=(1.0, 1.0, 1.0), repeats=1).pearson is None


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
    assert {name: len(config) for name, config in SHAPES.items()} == {
        "1.3b": 12,
        "14b": 12,
        "5b": 12,
    }
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
    done = CliRunner().invoke(app, [*arguments, "--sigmas", "1,.3", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.strip().splitlines()
    found = strict(lines[-1])
    assert found["settings"]["sigmas"] == [1.0, 0.3]
    assert found["pearson"] is None
    assert len(lines) > 4


def strict(line: str) -> Any:
    """JSON without its extensions, NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_a_model_runs_with_its_own_number_of_passes() -> None:
    arguments = ["bench", "--height", "32", "--width", "32", "--kept", "1", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", "--device", "cpu"])
    own = json.loads((bundled_models()["tiny"] / "model_index.json").read_text())["edit_sigmas"]
    assert strict(done.stdout)["settings"]["sigmas"] == own
    for name, recipe in load_recipes().items():
        shape, numbers = _shape(name)
        assert shape == {"14B": "14b", "5B": "5b"}.get(recipe.base.split("-")[-2], "1.3b")
        assert len(numbers["edit_sigmas"]) == len(recipe.edit_sigmas)
        assert numbers["block_frames"] == (recipe.edit_block or recipe.block)


def test_shares_take_turns_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower by the same with every block measured: gains are what they are."""
    used: list[float] = []
    plain_use, plain_block = _Bench.use, _Bench.block

    def use(self: _Bench, share: float) -> None:
        used.append(share)
        plain_use(self, share)

    def block(self: _Bench) -> float:
        plain_block(self)
        return used[-1] * (1 + len(used) / 10) if used else 1.0

    monkeypatch.setattr(_Bench, "use", use)
    monkeypatch.setattr(_Bench, "block", block)
    shares = (1.0, 0.5, 0.25)
    result = bench(repeats=4, shares=shares)
    there, back = list(shares), list(reversed(shares))
    assert used == there + 2 * (there + back)
    gains = [row.speedup for row in result.rows]
    assert gains == pytest.approx([1, 2, 4], rel=0.05)
    assert result.rows[0].block_ms / result.rows[2].block_ms == pytest.approx(4, rel=0.05)


# what is printed


WIDE = Row(
    share=1.0,
    tokens=4680,
    pass_ms=34567.8,
    pass_spread_ms=345.6,
    context_ms=33456.7,
    stages={
        "encode": 2345.6, "mask": 123.4, "denoise": 138271.2, "context": 33456.7,
        "decode": 2345.6,
    },
    block_ms=176543.2,
    fps=123.4,
    speedup=12.34,
    of_ceiling=0.72,
    peak_bytes=10**10,
)  # fmt: skip
RESULT = BenchResult(
    device="NVIDIA H100 80GB HBM3",
    settings={
        "model": "self-forcing with random weights", "height": 480, "width": 832,
        "sigmas": [0.9, 0.8, 0.7, 0.6], "shares": [1.0, 0.1], "recovery": "aligned",
        "dtype": "bfloat16", "products": "exact",
    },
    repeats=10,
    warm_up_seconds=123.4,
    ceiling_tflops=776.1,
    pearson=0.99751,
    graphs=(22, 0),
    rows=(WIDE, replace(WIDE, share=0.1, tokens=468)),
)  # fmt: skip


def test_the_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    _show(RESULT)
    slower = replace(
        RESULT, rows=tuple(replace(row, pass_ms=12 * row.pass_ms) for row in RESULT.rows)
    )
    _show_changes(slower, slower.changes(RESULT))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # not one cell is broken into two lines, nor cut off
    assert len([line for line in lines if line.startswith(("100%", "10%"))]) == 4
    for cell in ("34568", "345.6", "2346", "123.4", "33457", "176543", "12.34x", "72%", "+1100%"):
        assert any(cell in line.split() for line in lines), cell
    assert "…" not in "".join(lines)


# an earlier run


def test_a_result_is_read_as_it_was_printed(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    line = json.dumps(RESULT.to_json())
    for text in (line, f"a table\nof numbers\n{line}\n"):
        path.write_text(text)
        assert read_result(path) == RESULT


def test_changes_are_shares_of_what_was() -> None:
    now = replace(
        RESULT,
        warm_up_seconds=RESULT.warm_up_seconds / 2,
        ceiling_tflops=None,
        rows=(replace(WIDE, fps=1.5 * WIDE.fps, stages={**WIDE.stages, "mask": 0.0}), WIDE),
    )
    found = now.changes(RESULT)
    assert found["warm_up_seconds"] == -0.5
    assert found["ceiling_tflops"] is None
    first, second = found["rows"]
    assert first["fps"] == pytest.approx(0.5)
    assert first["mask_ms"] == -1
    assert {first[name] for name in first.keys() - {"share", "fps", "mask_ms"}} == {0}
    assert {second[name] for name in second.keys() - {"share"}} == {0}


def test_compare_to_an_earlier_run(tmp_path: Path) -> None:
    arguments = ["bench", "--height", "32", "--width", "32", "--kept", "1,.5", "--repeats", "2"]
    arguments += ["--device", "cpu", "--sigmas", "1,.4"]
    path = tmp_path / "before.json"
    path.write_text(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    again = [*arguments, "--compare-to", str(path)]
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 0, done.output
    changes = strict(done.stdout.splitlines()[-1])["changes"]
    assert [row["share"] for row in changes["rows"]] == [1.0, 0.5]
    assert "change since the earlier run" in done.stdout
    earlier = json.loads(path.read_text())
    for other, said in (
        (["--width", "48"], "had width = 32, and this one has 48"),
        (["--sigmas", "1,.5"], "had sigmas = [1.0, 0.4], and this one has [1.0, 0.5]"),
        (["--kept", "1"], "had shares = [1.0, 0.5], and this one has [1.0]"),
        (["--execution", "fused"], "had execution = 'auto', and this one has 'fused'"),
        (["--dtype", "bfloat16"], "had dtype = 'float32', and this one has 'bfloat16'"),
    ):
        refused(CliRunner().invoke(app, [*again, *other]), said)
    for changed, said in (
        ({"device": "NVIDIA T4"}, "was on 'NVIDIA T4', and this one is on"),
        ({"settings": {**earlier["settings"], "model": "big"}}, "had model = 'big', and this"),
        ({"settings": {**earlier["settings"], "new": 1}}, "had new = 1, and this one has None"),
    ):
        path.write_text(json.dumps({**earlier, **changed}))
        refused(CliRunner().invoke(app, again), said)


def refused(done: Any, said: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.output.count("\n") == 1
    assert said in done.output


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": [{"share": 1.0}]}, "it has no tokens"),
        ({"rows": "none"}, "a field of the wrong kind"),
        ({"rows": []}, "its rows are of other shares"),
        ({"device": 7}, "a field of the wrong kind"),
        ({"graphs": [1]}, "a field of the wrong kind"),
        ({"warm_up_seconds": "long"}, "something else where a number belongs"),
        ({"pearson": True}, "something else where a number belongs"),
    ],
)
def test_a_file_that_is_no_result_is_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "before.json"
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_result(path)
    for text in ("", "{", "[1]", '{"device": NaN}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is no result of `stillframe bench`: "):
            read_result(path)
    path.write_text(json.dumps({**RESULT.to_json(), **changed}))
    with pytest.raises(ValueError, match=said):
        read_result(path)


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
