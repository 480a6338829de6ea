"""``stillframe reproduce``: the experiments behind the papers' tables.

A run that was interrupted goes on where it was when it is called again.
"""

from __future__ import annotations

from typing import Annotated

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.measuring import MEASURING, check_packages, names, planned
from stillframe.cli.screen import say
from stillframe.options import Option

__all__ = ["reproduce"]

_OPTIONS = {
    "clips": Option(
        "str",
        "Take these clips, as for eval; may be given several times.",
        metavar="CLIPS",
        required=True,
        repeats=True,
    ),
    "out": MEASURING["out"],
    "most": Option(
        "int",
        "Take at most so many clips for the larger experiments.",
        metavar="N",
        least=1,
        most=10**6,
    ),
    "seeds": Option("int", "Draw the noise so many times.", metavar="N", least=2, most=10**4),
    **MEASURING,
}


@takes(_OPTIONS)
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An experiment, several with commas, or all.")
    ],
    given: Given,
) -> None:
    """Run the experiments behind the papers' tables: ablation, correlation, curve, latency,
    layerwise, motion, quality, recovery, seeds, settle, throughput, or all. Goes on if called
    again."""
    check_packages()
    from stillframe.evaluation.sources import find_clips

    found = find_clips(given["clips"])
    from stillframe.evaluation import BUNDLED_SCALE, PUBLISHED_SCALE, reproduce
    from stillframe.evaluation.experiments import find_experiment
    from stillframe.evaluation.runs import scaled

    wanted = names(name)
    for one in wanted:
        if one != "all":
            find_experiment(one)
    with planned(given, found) as plan:
        scale = scaled(
            BUNDLED_SCALE if plan.bundled else PUBLISHED_SCALE,
            frames=given["frames"], height=given["height"], width=given["width"],
            clips=given["most"], prompts=tuple(given["prompts"] or ()) or None,
            styles=tuple(given["prompts"] or ()) or None,
            seeds=given["seeds"], rates=given["rates"],
        )  # fmt: skip
        done = reproduce(plan, wanted, scale)
    if not given["quiet"]:
        for finding in done:
            say(f"{finding.name}: {finding.headline}")
        say(f"{given['out'] / 'report.html'}")
