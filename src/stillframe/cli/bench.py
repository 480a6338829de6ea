"""``stillframe bench``: how fast this machine is, without a download and without a video."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.options import FIT, HARDWARE, MODEL, SIDE, part
from stillframe.cli.parallel import PARALLEL, loaded, only_follow, processes
from stillframe.cli.screen import numbers_table, say
from stillframe.config import OPTIONS
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.bench_result import BenchResult
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["bench"]

#: The papers' editing schedule, for shapes that are no model's.
_SIGMAS = (0.769, 0.729, 0.625)
_STREAM = ("store", "cache", "execution", "products")

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
        "Keep these shares of the tokens, in turn.",
        default="1.0,.8,.68,.5,.25,.1",
        metavar="SHARES",
        least=0,
        most=1,
    ),
    "full_pipeline": Option(
        "bool", "Measure frames to frames, autoencoder included.", default=False
    ),
    "repeats": Option(
        "int",
        "Measure so many rounds of a block of every share.",
        default=10,
        metavar="N",
        least=1,
        most=10**6,
    ),
    "json": Option("bool", "Print only the line of JSON.", default=False),
    "compare_to": Option(
        "path",
        "Say how every figure has changed since an earlier run, whose output is in a file.",
        metavar="FILE.json",
    ),
    "recovery": Option("str", "Recover pruned tokens: aligned or clean.", default="aligned"),
    **part(OPTIONS, ("sigmas", *_STREAM)),
    **HARDWARE,
    **FIT,
    **PARALLEL,
}


@takes(_OPTIONS)
def bench(given: Given) -> None:
    """Measure passes, stages and frames a second against the share of tokens that is kept."""
    if only_follow(given):
        return
    from stillframe.jobs.bench import run_bench
    from stillframe.jobs.bench_result import read_result

    before = None if given["compare_to"] is None else read_result(given["compare_to"])
    with _pipeline(given) as pipe:
        result = run_bench(
            pipe, height=given["height"], width=given["width"], sigmas=given["sigmas"],
            shares=given["kept"], recovery=given["recovery"], pixels=given["full_pipeline"],
            repeats=given["repeats"], options=part(given, _STREAM),
            model=given["model"] + (" with random weights" if given["random_weights"] else ""),
            before=before,
        )  # fmt: skip
    changes = None if before is None else result.changes(before)
    if not given["json"]:
        _show(result)
        if changes is not None:
            _show_changes(result, changes)
    found = result.to_json() | ({} if changes is None else {"changes": changes})
    typer.echo(json.dumps(found, allow_nan=False))


@contextmanager
def _pipeline(given: Mapping[str, Any]) -> Iterator[CausalWanPipeline]:
    if not given["random_weights"]:
        names = ("model", "height", "width", "recovery", "store", "cache", *HARDWARE, *FIT)
        names = (*names, *PARALLEL)
        told = {**part(given, names), "quiet": given["json"]}
        with loaded(told, recovery=given["recovery"]) as pipe:
            yield pipe
        return
    if given["fit"] is not None:
        raise ValueError(
            "--fit is for models that are loaded: python -m benchmarks.fit has random weights"
        )
    if processes(given) > 1:
        raise ValueError(
            f"--random-weights are those of 1 process, not of {processes(given)}: "
            f"python -m benchmarks.parallel has them in several"
        )
    from stillframe.loading.load import pick_device, pick_dtype
    from stillframe.loading.random_model import random_pipeline

    shape, numbers = _shape(given["model"])
    where = pick_device(given["device"])
    yield random_pipeline(shape, str(where), pick_dtype(given["dtype"], where), **numbers)


def _shape(model: str) -> tuple[str, Mapping[str, Any]]:
    """The shape of a model's transformer by its name, and the numbers that it is run with.

    Raises:
        ValueError: neither is known.
    """
    from stillframe.loading.assemble import pipeline_numbers
    from stillframe.loading.bases import known_base
    from stillframe.loading.load import find_source
    from stillframe.loading.random_model import SHAPES
    from stillframe.loading.recipes import load_recipes

    if model in SHAPES:
        return model, {"edit_sigmas": _SIGMAS}
    for name, recipe in load_recipes().items():
        config = known_base(recipe.base).get("transformer")
        if name == model and config is not None:
            shape = next(shape for shape in SHAPES if SHAPES[shape] == config)
            return shape, pipeline_numbers(find_source(name))
    raise ValueError(
        f"--random-weights has the shapes {', '.join(SHAPES)} and of the models "
        f"{', '.join(load_recipes())}, not of {model!r}"
    )


def _show(result: BenchResult) -> None:
    settings, first = result.settings, result.rows[0]
    passes = len(settings["sigmas"])
    say(f"{result.device}, {settings['model']}, {settings['width']}x{settings['height']}")
    say(
        f"{settings['dtype']}, {settings['recovery']}, {settings.get('products', 'exact')} "
        f"products, {passes} passes and context pass"
    )
    say(f"milliseconds of {round(first.tokens / first.share)} tokens a block, medians")
    columns, stages = _columns(result)
    rows = [
        [
            f"{row.share:.0%}",
            _ms(row.pass_ms),
            _ms(row.pass_spread_ms),
            *(_ms(row.stages[name]) for name in stages),
            _ms(row.block_ms),
            _ms(row.fps),
            f"{row.speedup:.2f}x",
            *(() if row.of_ceiling is None else (f"{row.of_ceiling:.0%}",)),
        ]
        for row in result.rows
    ]
    numbers_table(columns, rows, narrow=True)
    if result.pearson is not None:
        say(f"Pearson r of latency against kept tokens {result.pearson:.4f}")
    captured, later = result.graphs
    say(f"warm-up {result.warm_up_seconds:.1f} s, {captured} graphs; {later} graphs after it")
    if result.ceiling_tflops is not None:
        peak = max(row.peak_bytes for row in result.rows)
        say(f"matrix product {result.ceiling_tflops:.0f} TFLOP/s; peak {peak / 1e9:.2f} GB")


def _columns(result: BenchResult) -> tuple[list[str], list[str]]:
    """The table's columns, and the stages among them: denoising is so many times a pass."""
    stages = [name for name in result.rows[0].stages if name != "denoise"]
    last = [] if result.ceiling_tflops is None else ["ceil"]
    return ["kept", "pass", "+-", *stages, "block", "fps", "gain", *last], stages


def _ms(value: float) -> str:
    """Four digits at most before the point, and then none after it."""
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _show_changes(result: BenchResult, changes: Mapping[str, Any]) -> None:
    say("")
    say("change since the earlier run")
    columns, stages = _columns(result)
    columns.remove("+-")
    names = ["pass_ms", *(f"{name}_ms" for name in stages), "block_ms", "fps"]
    names += ["speedup"] + (["of_ceiling"] if "ceil" in columns else [])
    rows = [
        [f"{row['share']:.0%}", *(_percent(row[name]) for name in names)] for row in changes["rows"]
    ]
    numbers_table(columns, rows, narrow=True)
    told = f"warm-up {_percent(changes['warm_up_seconds'])}"
    if changes["ceiling_tflops"] is not None:
        memory = [row["peak_bytes"] for row in changes["rows"]]
        told += f"; matrix product {_percent(changes['ceiling_tflops'])}"
        told += f"; memory {', '.join(map(_percent, memory))}"
    say(told)


def _percent(change: float | None) -> str:
    return "-" if change is None else f"{change:+.0%}"
