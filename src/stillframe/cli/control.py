"""Options of `edit` that control what is recomputed, and the control that they add up to.

torch is imported when there is something to control. It does not know what controls do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillframe.cli.options import number

if TYPE_CHECKING:
    from stillframe.controls import Box, Control, Cuts, Film, GivenCuts, Painting, Region
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

_PANEL = "Control of what is recomputed"
# what a method looks for change in by itself
_DETECTORS = ("pixels", "latent")
_CODEC = ("codec", "both")
# All that is named: of other formats, Pillow runs programs.
_PAINTED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "PPM")

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
    method: Method,
    *,
    gop: int | None = None,
    refresh: int | None = None,
    cuts: bool = False,
    roi: str | None = None,
    roi_mode: str = "always",
    roi_invert: bool = False,
    masks_in: Path | None = None,
    detector: str | None = None,
    cuts_by: str = "latents",
    source: Source | None = None,
    frames: int | None = None,
) -> Control | None:
    """What was asked for, None if nothing was.

    Raises:
        ValueError: an option is out of range, or the method cannot be controlled like this.
        InputError: the image, the video or the masks cannot be read, or scenes not be looked for.
    """
    if detector not in (None, *_DETECTORS, *_CODEC):
        names = ", ".join((*_DETECTORS, *_CODEC))
        raise ValueError(f"detectors are {names}, got {detector!r}")
    if cuts_by not in ("latents", "transnetv2"):
        raise ValueError(f"cuts are found by 'latents' or 'transnetv2', got {cuts_by!r}")
    if cuts_by != "latents" and not cuts:
        raise ValueError("--cuts-by says how cuts are found: give --cuts as well")
    if roi is None and (roi_mode != "always" or roi_invert):
        raise ValueError("--roi-mode and --roi-invert need a region: give --roi")
    given = (gop, refresh, roi, masks_in)
    by_method = detector in (None, *_DETECTORS)
    if not cuts and by_method and all(option is None for option in given):
        return None
    from stillframe.controls import CodecDetector, Control, GivenMasks, Gop, Refresh

    control = Control(
        None if gop is None else Gop(gop),
        None if refresh is None else Refresh(refresh),
        _cuts(cuts_by, source, frames) if cuts else None,
        None if roi is None else _region(roi, roi_mode, roi_invert),
        None if masks_in is None else GivenMasks.read(masks_in),
        detector=None if by_method or detector is None else CodecDetector(detector),
    )
    control.check(method)
    return control


def _cuts(by: str, source: Source | None, frames: int | None) -> Cuts | GivenCuts:
    from stillframe.controls import Cuts, GivenCuts

    if by == "latents" or source is None:
        return Cuts()
    from stillframe.video.scenes import find_scenes

    return GivenCuts(find_scenes(source, frames))


def _region(text: str, mode: str, invert: bool) -> Region:
    from stillframe.controls import Region

    return Region(_box(text) or _painting(text) or _film(text), mode, invert)


def _box(text: str) -> Box | None:
    """Four numbers as a box; None if it is something else."""
    from stillframe.controls import Box

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    if len(numbers) != 4:
        raise ValueError(f"--roi takes x,y,width,height or a file, got {len(numbers)} numbers")
    return Box(*numbers)


def _painting(path: str) -> Painting | None:
    """The white parts of an image; what is transparent is black. None if it is something else."""
    import numpy as np
    import torch

    from stillframe.controls import Painting
    from stillframe.video.formats import check_pixels, unread_picture

    try:
        with unread_picture(path, *_PAINTED) as image:
            check_pixels(f"--roi {path}", *image.size)
            layers = np.asarray(image.convert("LA"))
    except (OSError, ValueError, SyntaxError):
        # Pillow tells of damage in all of these
        return None
    white = (layers[..., 0] >= 128) & (layers[..., 1] >= 128)
    return Painting(torch.from_numpy(white))


def _film(path: str) -> Film:
    """The white parts of a video."""
    import numpy as np

    from stillframe.controls import Film
    from stillframe.errors import InputError
    from stillframe.video import VideoReader

    luma = np.array([299, 587, 114])
    try:
        with VideoReader(path) as reader:
            pictures = (frame.pixels @ luma >= 128_000 for frame in reader)
            return Film.pack(pictures, reader.fps)
    except InputError as error:
        raise InputError(
            f"--roi {path} is neither x,y,width,height nor a readable image or video"
        ) from error
