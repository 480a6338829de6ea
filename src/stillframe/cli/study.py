"""``stillframe study``: which of two videos people prefer, without knowing which is which.

What serves it is in ``study``; the packages that needs are imported when it serves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.listening import LISTENING, access, check_packages, run_until_interrupted
from stillframe.cli.screen import numbers_table, say
from stillframe.errors import InputError
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.study.layout import Layout
    from stillframe.study.results import Comparison, Results
    from stillframe.study.statistics import Share

__all__ = ["study"]

_OPTIONS = {
    "results": Option("bool", "Show what people said so far, and serve nothing.", default=False),
    "checks": Option(
        "int",
        "Show each participant so many pairs, too, whose two sides are the same file.",
        default=0,
        metavar="N",
        least=0,
        most=1000,
    ),
    "json": Option("bool", "Print results as only a line of JSON.", default=False),
    **LISTENING,
}


@takes(_OPTIONS)
def study(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder of videos a method, with the same file names in each; what they were "
            "made from, to be looked at, in DIR/source.",
        ),
    ],
    given: Given,
) -> None:
    """Let people say which of two videos they prefer: a page, until Ctrl-C, then the results."""
    if not given["results"]:
        _serve(folder, given)
    _show(folder, only_json=given["json"], must=given["results"])


def _serve(folder: Path, given: Mapping[str, Any]) -> None:
    check_packages()
    from stillframe.server.serving import listen
    from stillframe.study.app import create_study_app
    from stillframe.study.layout import VOTES, read_layout
    from stillframe.study.participants import Participants
    from stillframe.study.votes import VoteFile

    who = access(given)
    layout = _playable(read_layout(folder))
    votes = VoteFile(folder / VOTES)
    try:
        participants = Participants(layout, votes, given["checks"])
        app = create_study_app(
            participants, token=who.token, host=who.host, names=given["name"] or []
        )
        pairs = len(layout.clips) * math.comb(len(layout.methods), 2)
        shown = f"{_counted(pairs, 'pair', 'pairs')} of {len(layout.methods)} methods"
        with listen(who.host, given["port"]) as place:
            run_until_interrupted(app, place, who, shown, opens=given["open"])
    finally:
        votes.close()


def _playable(layout: Layout) -> Layout:
    from stillframe.study.playable import CACHE, make_playable, unplayable

    files = unplayable(layout)
    if files:
        shown = _counted(len(files), "file is shown as a copy", "files are shown as copies")
        say(
            f"{shown} in H.264, kept in {layout.folder / CACHE}: browsers do not play them, or the "
            f"sides of a pair are of two kinds",
            stderr=True,
        )
    return make_playable(layout, files, lambda path: say(f"copying {path}", stderr=True))


def _show(folder: Path, *, only_json: bool, must: bool) -> None:
    from stillframe.study.layout import VOTES
    from stillframe.study.results import count_votes
    from stillframe.study.votes import read_votes

    if must and not (folder / VOTES).is_file():
        raise InputError(f"{folder / VOTES} does not exist: nobody has voted in that study")
    results = count_votes(read_votes(folder / VOTES).all)
    if not only_json:
        _tables(results)
        say(f"votes are in {folder / VOTES}")
    if only_json or must:
        typer.echo(json.dumps(results.to_json(), allow_nan=False))


def _tables(results: Results) -> None:
    votes = sum(results.participants.values())
    say(f"{_counted(votes, 'vote', 'votes')} of {_people(len(results.participants))}")
    for each in results.comparisons:
        say("")
        _table(each)
        # one person says nothing about people
        people = f", {each.p_participants:.2g} over people" if each.participants > 1 else ""
        say(
            f"sign test of {each.first} against {each.second}: p = {each.p_clips:.2g} over "
            f"clips{people}"
        )
        say(f"{each.first} was on the left in {_of(each.on_left)} votes")
    say("")
    if results.left.of:
        say(
            f"the left side was preferred in {_of(results.left)} choices "
            f"({_percent(results.left.value)}, 95%: {_interval(results.left)})"
        )
    if results.checks.of:
        say(f"no difference was seen in {_of(results.checks)} pairs of one file beside itself")
    if not math.isnan(results.seconds):
        say(f"a pair was looked at for {results.seconds:.1f} s (median)")


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _people(number: int) -> str:
    return _counted(number, "person", "people")


def _table(each: Comparison) -> None:
    shares = {
        f"{each.first} preferred": each.wins,
        "no difference": each.ties,
        f"{each.second} preferred": each.losses,
        f"{each.first}, of those who chose": each.preferred,
    }
    numbers_table(
        (
            f"{_counted(each.clips, 'clip', 'clips')}, {_people(each.participants)}",
            "votes",
            "share",
            "95% interval",
        ),
        [
            (name, _of(share), _percent(share.value), _interval(share))
            for name, share in shares.items()
        ],
    )


def _of(share: Share) -> str:
    return f"{share.number} of {share.of}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f}%"


def _interval(share: Share) -> str:
    return "-" if math.isnan(share.low) else f"{100 * share.low:.0f} to {100 * share.high:.0f}%"
