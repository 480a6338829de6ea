"""Options of `edit` that hold a rate or watch quality, and the control that they add to.

torch is imported when there is something to control. It does not know how a rate is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillframe.cli.options import number

__all__ = [
    "GuardOption",
    "GuardTargetOption",
    "RateLimitOption",
    "RateModeOption",
    "TargetFpsOption",
    "TargetKeptOption",
    "TargetLatencyOption",
    "TraceInOption",
    "TraceOutOption",
    "TwoPassOption",
]

_PANEL = "Rate and quality"

TargetFpsOption = Annotated[
    float | None,
    number(
        "--target-fps", most=10**6, metavar="FPS", help="Frames a second.", rich_help_panel=_PANEL
    ),
]
TargetLatencyOption = Annotated[
    float | None,
    number(
        "--target-latency",
        most=3600,
        metavar="SECONDS",
        help="For a block, from encoding to decoding.",
        rich_help_panel=_PANEL,
    ),
]
TargetKeptOption = Annotated[
    float | None,
    number(
        "--target-kept",
        most=1,
        metavar="SHARE",
        help="Of the patches recomputed, above 0 up to 1.",
        rich_help_panel=_PANEL,
    ),
]
RateModeOption = Annotated[
    str | None,
    typer.Option(
        "--rate-mode",
        help="constant: spend it all (default). capped: no more than the tolerance asks for.",
        rich_help_panel=_PANEL,
    ),
]
RateLimitOption = Annotated[
    float | None,
    number(
        "--rate-limit",
        most=1000000,
        metavar="TIMES",
        help="Never reuse what changed by so many times the tolerance.",
        rich_help_panel=_PANEL,
    ),
]
TraceInOption = Annotated[
    Path | None,
    typer.Option(
        "--rate-trace-in",
        metavar="FILE",
        help="Go by its times, not by measured ones.",
        rich_help_panel=_PANEL,
    ),
]
TraceOutOption = Annotated[
    Path | None,
    typer.Option(
        "--rate-trace-out",
        metavar="FILE",
        help="Write what the rate went by.",
        rich_help_panel=_PANEL,
    ),
]
TwoPassOption = Annotated[
    bool,
    typer.Option("--two-pass", help="Look at the whole file first.", rich_help_panel=_PANEL),
]
GuardOption = Annotated[
    float | None,
    number(
        "--guard",
        most=0.5,
        metavar="SHARE",
        help="Recompute so many patches at random to see how wrong reuse is: 0.02.",
        rich_help_panel=_PANEL,
    ),
]
GuardTargetOption = Annotated[
    float | None,
    number(
        "--guard-target",
        most=1000000,
        metavar="ERROR",
        help="Move the tolerance towards this error of reused patches.",
        rich_help_panel=_PANEL,
    ),
]
