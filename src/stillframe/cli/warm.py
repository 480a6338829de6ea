"""``stillframe warm``: what a model compiles is compiled before it is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.options import LOADING, QUIET, SIZE, load, part
from stillframe.cli.screen import counted_progress, say
from stillframe.config import EditConfig, edit_options
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.warm import Warmed
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["made_ready", "told", "warm"]

#: Options of an edit that make other kernels or graphs.
_EDITS = (
    "method", "tolerance", "strength", "steps", "sigmas", "conditioning", "motion", "recovery",
    "store", "cache", "execution", "products",
)  # fmt: skip


def options() -> Mapping[str, Option]:
    """Options of the command: the size, how videos will be edited, and how the model is loaded."""
    edits = edit_options()
    shapes = {name: edits[name] for name in _EDITS if name in edits}
    size = {name: replace(each, group="") for name, each in SIZE.items()}
    return {**size, **QUIET, **shapes, **LOADING}


@takes(options)
def warm(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name of `stillframe models`, a folder, or a hub id."
        ),
    ],
    given: Given,
) -> None:
    """Compile what a model needs on this machine, so that later commands begin at full speed.

    Compiled kernels stay on disk. CUDA graphs do not: `stillframe serve --warm` makes them at its
    start."""
    config = _config(given)
    started = time.perf_counter()
    names = (*LOADING, *SIZE, *(name for name in ("store", "cache", "motion") if name in given))
    pipe = load({**part(given, names), "model": model})
    loaded = time.perf_counter() - started
    done = made_ready(pipe, config, given["height"], given["width"], given["quiet"])
    if not given["quiet"]:
        say(f"{model}: loaded in {loaded:.1f} s; {told(done)}")


def made_ready(
    pipe: CausalWanPipeline,
    config: EditConfig,
    height: int | None,
    width: int | None,
    quiet: bool = False,
) -> Warmed:
    """Make a model ready, with a bar on standard error; see ``jobs.warm``."""
    from stillframe.jobs.warm import warm as make_ready

    with counted_progress("warming", "steps", quiet) as show:
        return make_ready(pipe, config, height=height, width=width, on_progress=show)


def told(done: Warmed) -> str:
    """What was made ready, in a line."""
    graphs = f"{done.graphs} CUDA graphs captured, the transformer's of {done.lengths} lengths"
    return (
        f"ready for {done.width}x{done.height} in {done.seconds:.1f} s, of which the first block "
        f"took {done.first_seconds:.1f} s; {graphs if done.graphs else 'no CUDA graphs here'}"
    )


def _config(given: Mapping[str, Any]) -> EditConfig:
    """How videos will be edited, as the options say."""
    values = {name: given[name] for name in _EDITS if name in given}
    return EditConfig.from_options(values, named=flag)
