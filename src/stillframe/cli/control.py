"""Options of `edit` that control what is recomputed, and the control that they add up to.

torch is imported when there is something to control. It does not know what controls do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.options import number

if TYPE_CHECKING:
    from stillframe.controls import Controls
    from stillframe.methods import Method
    from stillframe.video import Source

__all__ = [
    "CutsByOption",
    "CutsOption",
    "DetectorOption",
    "GopOption",
    "MasksInOption",
    "MasksOutOption",
    "RefreshOption",
    "RoiInvertOption",
    "RoiModeOption",
    "RoiOption",
    "Tau1Option",
    "Tau2Option",
    "ToleranceOption",
    "build_control",
    "detector_of_method",
]

_DEFAULTS = {"cuts_by": "latents", "roi_mode": "always"}
_PANEL = "Control of what is recomputed"
# what a method looks for change in by itself
_DETECTORS = ("pixels", "latent")

GopOption = Annotated[
    int | None,
    typer.Option(
        "--gop",
        min=1,
        max=10**6,
        metavar="N",
        help="A whole block every N.",
        rich_help_panel=_PANEL,
    ),
]
RefreshOption = Annotated[
    int | None,
    typer.Option(
        "--refresh",
        min=1,
        max=10**6,
        metavar="R",
        help="Recompute every patch at least once in R blocks.",
        rich_help_panel=_PANEL,
    ),
]
CutsOption = Annotated[
    bool,
    typer.Option(
        "--cuts/--no-cuts",
        help="Begin anew where a scene does.",
        rich_help_panel=_PANEL,
    ),
]
CutsByOption = Annotated[
    str,
    typer.Option(
        "--cuts-by", help="Find cuts by latents or, in files, transnetv2.", rich_help_panel=_PANEL
    ),
]
ToleranceOption = Annotated[
    float | None,
    number(
        "--tolerance",
        most=255,
        metavar="LEVELS",
        help="How far a patch may differ from its source before it is recomputed, in grey levels "
        "of 255: 3 by default, which nobody sees; more is faster.",
    ),
]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        "--detector",
        help="What changed by the source's pixels (default), by latent as in the papers, by the "
        "source's codec, or by pixels and codec: both.",
        rich_help_panel=_PANEL,
    ),
]
Tau1Option = Annotated[
    float | None,
    number(
        "--tau1",
        most=10**6,
        help="Short-term threshold of --detector latent.",
        rich_help_panel=_PANEL,
    ),
]
Tau2Option = Annotated[
    float | None,
    number(
        "--tau2",
        most=10**6,
        help="Long-term threshold of --detector latent.",
        rich_help_panel=_PANEL,
    ),
]
RoiOption = Annotated[
    str | None,
    typer.Option(
        "--roi",
        metavar="X,Y,W,H|FILE",
        help="A region: in shares of the picture, in pixels of the source, or what is white in an "
        "image or a video.",
        rich_help_panel=_PANEL,
    ),
]
RoiModeOption = Annotated[
    str,
    typer.Option(
        "--roi-mode",
        help="Recompute there always or never, or edit there only.",
        rich_help_panel=_PANEL,
    ),
]
RoiInvertOption = Annotated[
    bool,
    typer.Option("--roi-invert", help="Mean everything but the region.", rich_help_panel=_PANEL),
]
MasksInOption = Annotated[
    Path | None,
    typer.Option(
        "--masks-in", metavar="FILE", help="Recompute what it says.", rich_help_panel=_PANEL
    ),
]
MasksOutOption = Annotated[
    Path | None,
    typer.Option(
        "--masks-out",
        metavar="FILE",
        help="Write which patches were recomputed.",
        rich_help_panel=_PANEL,
    ),
]


def detector_of_method(detector: str | None, tau1: float | None, tau2: float | None) -> str | None:
    """The method's own detector, as far as it was asked for.

    Raises:
        ValueError: thresholds of one detector are given with another.
    """
    if detector not in (None, "latent") and (tau1 is not None or tau2 is not None):
        raise ValueError(f"--tau1 and --tau2 are thresholds of --detector latent, not {detector}")
    return detector if detector in _DETECTORS else None


def build_control(
    method: Method, *, source: Source | None = None, frames: int | None = None, **values: Any
) -> Controls | None:
    """What options ask for, see `stillframe.controls.build`; None if nothing was."""
    given = (v for name, v in values.items() if v != _DEFAULTS.get(name))
    if all(value is None or value is False for value in given):
        return None
    from stillframe.controls import build
    from stillframe.video.control_files import VideoControlFiles

    return build(values, method, named=_option, files=VideoControlFiles(source, frames))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
