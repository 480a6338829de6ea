"""``stillframe plan-cluster``: hours and cards of a batch, on paper, from a measured rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.batch import columns
from stillframe.cli.command import Given, takes
from stillframe.cli.options import SIDE
from stillframe.cli.screen import numbers_table, say, warn
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.cluster_plan import Rate

__all__ = ["plan_cluster"]

_OPTIONS = {
    "clips": Option("int", "Plan for so many clips.", metavar="N", least=1, most=10**9),
    "seconds": Option(
        "float", "Let each clip last so long.", metavar="SECONDS", above=0, most=10**7
    ),
    "source_fps": Option(
        "float", "Let clips have so many frames a second.", default=25.0, above=0, most=1000
    ),
    "height": Option(
        "int", "Make results so many pixels high.", metavar="PIXELS", least=16, most=SIDE
    ),
    "width": Option(
        "int", "Make results so many pixels wide.", metavar="PIXELS", least=16, most=SIDE
    ),
    "fps": Option(
        "float",
        "Let a card edit so many frames of that size a second.",
        metavar="FPS",
        above=0,
        most=10**6,
    ),
    "bench": Option(
        "path",
        "Take the rate from this file, which holds what `stillframe bench` printed.",
        metavar="FILE",
    ),
    "kept": Option(
        "float",
        "Take the rate at this share of kept tokens; the largest that was measured by default.",
        metavar="SHARE",
        least=0,
        most=1,
    ),
    "cards": Option(
        "int", "Plan for up to so many cards.", default=64, metavar="N", least=1, most=100_000
    ),
    "load_seconds": Option(
        "float",
        "Let a card take so long to load the model.",
        default=60.0,
        metavar="SECONDS",
        least=0,
        most=86400,
    ),
    "price": Option(
        "float", "Let a card cost so much an hour.", metavar="MONEY", least=0, most=10**6
    ),
}


@takes(_OPTIONS)
def plan_cluster(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN",
            help="Videos and tables, as `stillframe batch` takes.",
            default_factory=list,
            show_default=False,
        ),
    ],
    given: Given,
) -> None:
    """Say how long a batch takes on how many cards, and what it costs; nothing is run."""
    from stillframe.jobs.cluster_plan import cost_curve, doublings

    rate = _rate(given)
    clips = _files(inputs, given, rate) if inputs else _made(given, rate)
    curve = cost_curve(list(clips.items()), doublings(given["cards"]), given["load_seconds"])
    count, work = sum(clips.values()), sum(each * n for each, n in clips.items())
    say(f"{count} clips, {work / 3600:.2f} hours of one card's editing")
    price = given["price"]
    titles = ["cards", "hours", "card-hours", "busy", *(["cost"] if price is not None else [])]
    rows = []
    for point in curve:
        row = [str(point.cards), f"{point.hours:.2f}", f"{point.card_hours:.2f}"]
        row.append(f"{point.busy:.0%}")
        if price is not None:
            row.append(f"{point.card_hours * price:.2f}")
        rows.append(row)
    numbers_table(titles, rows)
    for line in _assumptions(given, rate):
        say(line)


def _rate(given: Mapping[str, Any]) -> Rate:
    from stillframe.jobs.bench_result import read_result
    from stillframe.jobs.cluster_plan import Rate, rate_of

    if (given["fps"] is None) == (given["bench"] is None):
        raise ValueError("give the rate of a card: either --fps FPS or --bench FILE")
    if given["bench"] is not None:
        return rate_of(read_result(given["bench"]), given["kept"])
    if given["kept"] is not None:
        raise ValueError("--kept is for --bench: --fps is one rate")
    return Rate(given["fps"], 0, 0, "as given")


def _made(given: Mapping[str, Any], rate: Rate) -> Counter[float]:
    """Clips that are all alike, by seconds of a card."""
    if given["clips"] is None or given["seconds"] is None:
        raise ValueError("give IN, or --clips N and --seconds SECONDS")
    width, height = given["width"], given["height"]
    if rate.width and (width is None) != (height is None):
        raise ValueError("--bench needs both --width and --height, or neither for its own size")
    size = width or rate.width or 1, height or rate.height or 1
    each = rate.seconds(given["seconds"] * given["source_fps"], *size)
    return Counter({each: given["clips"]})


def _files(inputs: Sequence[str], given: Mapping[str, Any], rate: Rate) -> Counter[float]:
    """Clips of files, by seconds of a card."""
    from stillframe.errors import StillframeError
    from stillframe.jobs.batch.rows import read_rows
    from stillframe.video.header import read_header

    found: Counter[float] = Counter()
    for row in read_rows(inputs, columns()):
        if row.problem is not None:
            warn(row.problem)
            continue
        try:
            header = read_header(row.source)
        except StillframeError as error:
            warn(str(error))
            continue
        if not header.frames or not header.height:
            warn(f"{row.label} is left out: its header does not say how long or large it is")
            continue
        sides = {"width": given["width"], "height": given["height"], **row.values}
        height = sides["height"] or header.height
        width = sides["width"] or height * header.width / header.height
        frames = min(header.frames, row.values.get("frames") or header.frames)
        found[rate.seconds(frames, width, height)] += 1
    if not found:
        raise ValueError("there is no clip that could be planned for")
    return found


def _assumptions(given: Mapping[str, Any], rate: Rate) -> list[str]:
    """What the figures rest on."""
    size = f"of {rate.width}x{rate.height} " if rate.width else ""
    lines = [
        "assumed:",
        f"- a card edits {rate.fps:.4g} frames {size}a second ({rate.told})",
    ]
    if rate.width:
        lines.append("- time goes with the pixels of a frame")
    else:
        lines.append("- whatever the size of a frame")
    lines += [
        f"- a card begins after {given['load_seconds']:g} s, edits one clip at a time, and the "
        "longest goes first",
        "- cards do not slow each other down: storage and CPU cores that decode and encode keep up",
        "- no clip fails, and none is split",
    ]
    return lines
