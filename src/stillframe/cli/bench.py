"""``stillframe bench``: how fast this machine is, without a download and without a video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.options import HARDWARE, MODEL, SIDE, load, part
from stillframe.cli.screen import numbers_table, say
from stillframe.config import OPTIONS
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.bench import BenchResult
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["bench"]

#: The papers' editing schedule, where the model has none of its own.
_SIGMAS = (0.769, 0.729, 0.625)
_STREAM = ("store", "execution", "products")

_OPTIONS = {
    **MODEL,
    "random_weights": Option(
        "bool",
        "Take only the shape of a known model, or of 1.3b or 14b, with random weights.",
        default=False,
    ),
    "height": Option(
        "int", "Measure frames so many pixels high.", default=480, least=16, most=SIDE
    ),
    "width": Option("int", "Measure frames so many pixels wide.", default=832, least=16, most=SIDE),
    "kept": Option(
        "floats",
        "Keep these shares of the tokens, one after the other.",
        default="1.0,.8,.68,.5,.25,.1",
        metavar="SHARES",
        least=0,
        most=1,
    ),
    "full_pipeline": Option(
        "bool", "Measure frames to frames, autoencoder included.", default=False
    ),
    "repeats": Option(
        "int", "Measure so many blocks a share.", default=10, metavar="N", least=1, most=10**6
    ),
    "json": Option("bool", "Print only the line of JSON.", default=False),
    "recovery": Option("str", "Recover pruned tokens: aligned or clean.", default="aligned"),
    **part(OPTIONS, ("sigmas", *_STREAM)),
    **HARDWARE,
}


@takes(_OPTIONS)
def bench(given: Given) -> None:
    """Measure passes, stages and frames a second against the share of tokens that is kept."""
    pipe = _pipeline(given)
    from stillframe.jobs.bench import run_bench

    result = run_bench(
        pipe, height=given["height"], width=given["width"], sigmas=given["sigmas"] or _SIGMAS,
        shares=given["kept"], recovery=given["recovery"], pixels=given["full_pipeline"],
        repeats=given["repeats"], options=part(given, _STREAM),
    )  # fmt: skip
    if not given["json"]:
        _show(result)
    typer.echo(json.dumps(result.to_json()))


def _pipeline(given: Mapping[str, Any]) -> CausalWanPipeline:
    if not given["random_weights"]:
        return load(part(given, ("model", *HARDWARE)))
    from stillframe.loading.load import pick_device, pick_dtype
    from stillframe.loading.random_model import SHAPES, random_pipeline
    from stillframe.loading.recipes import load_recipes

    model, known = given["model"], load_recipes()
    if model not in known and model not in SHAPES:
        raise ValueError(
            f"--random-weights has the shapes {', '.join(SHAPES)} and of the models "
            f"{', '.join(known)}, not of {model!r}"
        )
    if model in known:
        model = "14b" if "14B" in known[model].base else "1.3b"
    where = pick_device(given["device"])
    return random_pipeline(model, str(where), pick_dtype(given["dtype"], where))


def _show(result: BenchResult) -> None:
    stages = list(result.rows[0].stages)
    columns = ["kept", "tokens", "pass", "+-", *stages, "block", "fps", "gain", "peak"]
    rows = [
        [
            f"{row.share:.0%}",
            str(row.tokens),
            f"{row.pass_ms:.1f}",
            f"{row.pass_spread_ms:.1f}",
            *(f"{row.stages[name]:.1f}" for name in stages),
            f"{row.block_ms:.1f}",
            f"{row.fps:.1f}",
            f"{row.speedup:.2f}x",
            "-" if row.of_ceiling is None else f"{row.of_ceiling:.0%}",
        ]
        for row in result.rows
    ]
    say(f"{result.device}, {_summary(result)}; milliseconds")
    numbers_table(columns, rows)
    peak = max(row.peak_bytes for row in result.rows)
    told = f"warm-up {result.warm_up_seconds:.1f} s; Pearson r of latency against kept tokens "
    told += f"{result.pearson:.4f}; {result.graphs[0]} graphs, {result.graphs[1]} after warm-up"
    if result.ceiling_tflops is not None:
        told += f"; matrix product {result.ceiling_tflops:.0f} TFLOP/s; peak {peak / 1e9:.2f} GB"
    say(told)


def _summary(result: BenchResult) -> str:
    settings = result.settings
    passes = len(settings["sigmas"])
    return (
        f"{settings['width']}x{settings['height']}, {settings['dtype']}, {passes} denoising passes "
        f"and context pass, {settings['recovery']}, {settings.get('products', 'exact')} products"
    )
