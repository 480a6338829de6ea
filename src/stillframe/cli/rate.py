"""Options of `edit` that hold a rate or watch quality, and the control that they add to.

torch is imported when there is something to control. It does not know how a rate is held.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillframe.cli.options import number

if TYPE_CHECKING:
    from stillframe.controls import Control
    from stillframe.methods import Method

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
    "held_to_rate",
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


def held_to_rate(
    control: Control | None,
    method: Method,
    *,
    fps: float | None = None,
    latency: float | None = None,
    kept: float | None = None,
    mode: str | None = None,
    limit: float | None = None,
    trace_in: Path | None = None,
    trace_out: Path | None = None,
    two_pass: bool = False,
    guard: float | None = None,
    guard_target: float | None = None,
) -> Control | None:
    """A control with the rate and the guard that were asked for; as it is if none were.

    Raises:
        ValueError: an option is out of range or lacks another, or the method cannot do it.
        InputError: the trace cannot be read.
    """
    target = any(value is not None for value in (fps, latency, kept))
    needy = [value is not None for value in (mode, limit, trace_in, trace_out)]
    if not target and (two_pass or any(needy)):
        raise ValueError(
            "--rate-mode, --rate-limit, --rate-trace-in, --rate-trace-out and --two-pass need "
            "--target-fps, --target-latency or --target-kept"
        )
    if guard_target is not None and guard is None:
        raise ValueError("--guard-target needs a sample: give --guard SHARE")
    if not target and guard is None:
        return control
    from stillframe.controls import Control, Guard, Rate, RateTrace

    rate = None
    if target:
        trace = None if trace_in is None else RateTrace.read(trace_in)
        rate = Rate(fps, latency, kept, mode or "constant", limit, trace=trace)
    watched = None if guard is None else Guard(guard, guard_target)
    control = replace(control or Control(), rate=rate, guard=watched)
    control.check(method)
    return control
