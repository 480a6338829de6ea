"""``stillframe styles``, ``methods`` and ``demo``: what there is, and how it looks.

See `cli` for exit codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillframe.cli.options import LoadOptions, ModelOption, load
from stillframe.cli.screen import Interruption, names_table, one_sentence_errors, say

if TYPE_CHECKING:
    from stillframe.methods import Method

__all__ = ["demo", "methods", "styles"]


def styles(model: ModelOption = "tiny") -> None:
    """List the styles that a model has learnt."""
    from stillframe.loading.load import model_styles

    with one_sentence_errors():
        known = model_styles(model)
        if not known:
            say(f"{model} has no table of styles: it takes any prompt")
            return
        rows = [(entry.name, entry.prompt, entry.summary) for entry in known]
        names_table(("style", "prompt", "looks like"), rows)


def methods() -> None:
    """List the methods, and the recoveries that stand in for what they prune."""
    from stillframe.methods import methods as known_methods
    from stillframe.recovery import recoveries

    rows = [(n, kind.summary, _paper(kind)) for n, kind in known_methods().items()]
    names_table(("method", "", "paper"), rows)
    say("")
    names_table(("recovery", ""), [(n, kind.summary) for n, kind in recoveries().items()])


def _paper(kind: type[Method]) -> str:
    return f"arXiv {kind.paper}" if kind.paper else ""


def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("demo"),
    frames: Annotated[int, typer.Option(min=1, max=10**6, help="Frames of the clip.")] = 96,
    height: Annotated[
        int, typer.Option(min=16, max=16384, help="Of the results, in pixels.")
    ] = 208,
    model: ModelOption = "tiny",
) -> None:
    """Restyle a real clip in two styles, with map and comparison."""
    with one_sentence_errors():
        from stillframe.cli.demo import run_demo

        with Interruption() as interrupted:
            done = run_demo(
                out,
                frames=frames,
                height=height,
                model=model,
                load=lambda: load(LoadOptions(model)),
                stop=interrupted,
            )
        if not done:
            raise typer.Exit(interrupted.code)
