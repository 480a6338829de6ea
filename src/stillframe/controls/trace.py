"""Times of a run's blocks as a file, from which another run makes the same decisions.

JSON lines, described in ``docs/control.md``: one that names the format and its version, then one a
block. Numbers are written so that reading gives the same bits. Knows neither clocks nor blocks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

from stillframe.errors import InputError
from stillframe.untrusted.numbers import check_number, number_text
from stillframe.untrusted.small_files import decode, parse_json, read_bounded
from stillframe.whole_file import write_whole

__all__ = ["RateTrace", "Timing"]

# of all blocks together: less than a hundred bytes each
_MOST_BYTES = 2**26
_FORMAT, _VERSION = "stillframe rate trace", 1


class Timing(NamedTuple):
    """How long a block took.

    Attributes:
        share: of its tokens that were computed, 0 to 1.
        seconds: that count towards the target.
        captured: whether a CUDA graph was captured in it.
    """

    share: float
    seconds: float
    captured: bool = False


@dataclass(frozen=True)
class RateTrace:
    """The blocks of a run, from its first on."""

    blocks: tuple[Timing, ...]

    def replayed(self, number: int, measured: Timing) -> Timing:
        """A block as it was then.

        Raises:
            InputError: there was none, or another share of it was computed.
        """
        if number >= len(self.blocks):
            raise InputError(
                f"the rate trace has {len(self.blocks)} blocks, and the video has more"
            )
        then = self.blocks[number]
        if then.share != measured.share:
            raise InputError(
                f"the rate trace is of another run: of block {number} it has {then.share:.4f} "
                f"computed, not {measured.share:.4f}"
            )
        return then

    def write(self, path: str | PathLike[str]) -> None:
        """Write it; the file is complete or not there.

        Raises:
            OutputError: it cannot be written.
        """
        head = {"format": _FORMAT, "version": _VERSION, "blocks": len(self.blocks)}
        rows = [{"block": i, **timing._asdict()} for i, timing in enumerate(self.blocks)]
        write_whole(path, (json.dumps(row).encode() + b"\n" for row in (head, *rows)))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> RateTrace:
        """Read one.

        Raises:
            InputError: it cannot be read, is of another format or version, or incomplete.
        """
        try:
            text = decode(read_bounded(path, _MOST_BYTES))
            head, *lines = text.splitlines() or ["{}"]
        except OSError as error:
            raise InputError(f"{path} could not be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path} is not a rate trace: {error}") from error
        try:
            named = parse_json(head)
            if named.get("format") != _FORMAT:
                raise InputError(f"{path} is not a rate trace")
            if named.get("version") != _VERSION:
                told = number_text(named.get("version"))
                raise InputError(f"{path} is of version {told}, not {_VERSION}")
            blocks = tuple(_timing(parse_json(line)) for line in lines)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is damaged as a rate trace: it has other fields") from error
        except ValueError as error:
            raise InputError(f"{path} is damaged as a rate trace: {error}") from error
        if len(blocks) != named.get("blocks"):
            raise InputError(f"{path} is damaged: it has {len(blocks)} of its blocks")
        return cls(blocks)


def _timing(row: dict[str, object]) -> Timing:
    share, seconds, captured = row["share"], row["seconds"], row["captured"]
    if not isinstance(share, float | int) or not isinstance(seconds, float | int):
        raise ValueError(f"block {number_text(row.get('block'))} has no numbers")
    check_number("the share of a block", share, 0, 1)
    check_number("the time of a block in seconds", seconds, 0, 10**9)
    return Timing(share, seconds, bool(captured))
