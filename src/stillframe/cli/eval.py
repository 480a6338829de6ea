"""``stillframe eval``: methods measured on one's own clips.

A run that was interrupted goes on where it was when it is called again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.measuring import MEASURING, check_packages, names, planned
from stillframe.cli.screen import say, warn
from stillframe.config import OPTIONS
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.evaluation import Plan

__all__ = ["evaluate"]

_OPTIONS = {
    "out": MEASURING["out"],
    "methods": Option(
        "str",
        "Measure these methods, with commas: prune,runlength:threshold=0.05.",
        default="prune",
        metavar="METHODS",
    ),
    "recoveries": Option(
        "str", "Measure methods with each of these recoveries, with commas.", metavar="NAMES"
    ),
    "seeds": Option(
        "ints",
        "Draw the noise from each of these seeds: 0,1,2.",
        default="0",
        metavar="SEEDS",
        least=0,
        most=OPTIONS["seed"].most,
    ),
    "speed": Option("bool", "Time each edit beside a dense one, block by block.", default=False),
    **MEASURING,
    "conditioning": OPTIONS["conditioning"],
}


@takes(_OPTIONS)
def evaluate(
    clips: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIPS...", help="Videos, folders of videos or of pictures, or DAVIS 2017's."
        ),
    ],
    given: Given,
) -> None:
    """Measure methods on clips: rows, a table file and an HTML report. Goes on if called again."""
    check_packages()
    from stillframe.evaluation.sources import find_clips

    found = find_clips(clips)
    from stillframe.evaluation import evaluate as run_evaluation
    from stillframe.evaluation.variants import expand
    from stillframe.methods import split_methods

    variants = expand(
        split_methods(given["methods"]), given["rates"] or (), names(given["recoveries"])
    )
    with planned(given, found) as plan:
        rows = run_evaluation(
            plan, variants, prompts=given["prompts"] or _usual_prompts(plan)[:1],
            seeds=given["seeds"], frames=given["frames"] or 81, height=given["height"],
            width=given["width"], conditioning=given["conditioning"], paired=given["speed"],
        )  # fmt: skip
    failed = [row for row in rows if row.error is not None]
    for row in failed:
        warn(f"{row.cell.variant.label} on {row.cell.clip} failed: {row.error}")
    if not given["quiet"]:
        report = given["out"] / "report.html"
        say(f"{report}: {len(rows) - len(failed)} of {len(rows)} cells done")


def _usual_prompts(plan: Plan) -> tuple[str, ...]:
    from stillframe.evaluation import BUNDLED_SCALE, PUBLISHED_SCALE

    return (BUNDLED_SCALE if plan.bundled else PUBLISHED_SCALE).prompts
