"""``stillframe bench``: how fast this machine is, without a download and without a video.

Arguments in, a table and a line of JSON out; measuring is ``bench``. See `cli` for exit codes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stillframe.cli.options import (
    DeviceOption,
    DtypeOption,
    ExecutionOption,
    LoadOptions,
    ModelOption,
    ProductsOption,
    SigmasOption,
    StoreOption,
    ThreadsOption,
    load,
    parse_sigmas,
)
from stillframe.cli.screen import numbers_table, one_sentence_errors, say

if TYPE_CHECKING:
    from stillframe.jobs.bench import BenchResult
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["bench"]

#: The papers' editing schedule, where the model has none of its own.
_SIGMAS = (0.769, 0.729, 0.625)


def bench(
    model: ModelOption = "tiny",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="A known model's shape, or 1.3b, 14b; no file.")
    ] = False,
    height: Annotated[int, typer.Option(min=16, max=16384, help="Of the frames.")] = 480,
    width: Annotated[int, typer.Option(min=16, max=16384, help="Of the frames.")] = 832,
    sigmas: SigmasOption = None,
    kept: Annotated[str, typer.Option(help="Shares of kept tokens.")] = "1.0,.8,.68,.5,.25,.1",
    recovery: Annotated[str, typer.Option(help="aligned or clean.")] = "aligned",
    store: StoreOption = "auto",
    execution: ExecutionOption = "auto",
    products: ProductsOption = "exact",
    full_pipeline: Annotated[
        bool, typer.Option("--full-pipeline", help="Frames to frames, autoencoder included.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, max=10**6, help="Blocks measured a share.")] = 10,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    only_json: Annotated[bool, typer.Option("--json", help="Only the line of JSON.")] = False,
) -> None:
    """Measure passes, stages and frames a second against the share of tokens that is kept."""
    with one_sentence_errors():
        shares = _shares(kept)
        chosen = parse_sigmas(sigmas) or _SIGMAS
        pipe = _pipeline(model, random_weights, device, dtype, threads)
        from stillframe.jobs.bench import run_bench

        result = run_bench(
            pipe,
            height=height,
            width=width,
            sigmas=chosen,
            shares=shares,
            recovery=recovery,
            pixels=full_pipeline,
            repeats=repeats,
            options={"store": store, "execution": execution, "products": products},
        )
    if not only_json:
        _show(result)
    typer.echo(json.dumps(result.to_json()))


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--kept takes numbers between commas, got {text!r}") from error


def _pipeline(
    model: str, random_weights: bool, device: str, dtype: str, threads: int | None
) -> CausalWanPipeline:
    if not random_weights:
        return load(LoadOptions(model=model, device=device, dtype=dtype, threads=threads))
    from stillframe.loading.load import pick_device, pick_dtype
    from stillframe.loading.random_model import SHAPES, random_pipeline
    from stillframe.loading.recipes import load_recipes

    known = load_recipes()
    if model not in known and model not in SHAPES:
        raise ValueError(
            f"--random-weights has the shapes {', '.join(SHAPES)} and of the models "
            f"{', '.join(known)}, not of {model!r}"
        )
    if model in known:
        model = "14b" if "14B" in known[model].base else "1.3b"
    where = pick_device(device)
    return random_pipeline(model, str(where), pick_dtype(dtype, where))


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
