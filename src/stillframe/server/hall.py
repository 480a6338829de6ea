"""What the connections of a server share: sizes, limits, and where everything is to be had.

It knows no sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from stillframe.live import Session
from stillframe.server.guard import Seats
from stillframe.server.limits import Limits
from stillframe.server.messages import Hello, ProtocolError
from stillframe.server.strangers import Entry
from stillframe.server.supervisor import SessionKeeper
from stillframe.video.fit import fit_to_grid

__all__ = ["Hall"]


@dataclass
class Hall:
    """What connections share.

    Attributes:
        keeper: opens sessions.
        entry, limits: see there.
        seats: of sessions.
        sockets: of connections that have shown a token.
        pool: threads for what takes long.
        height, width: of edited frames if a client asks for none.
        greeting: fields of every ``ready``.
        defaults: values of options for sessions whose clients do not say otherwise.
        sessions: open sessions by id.
    """

    keeper: SessionKeeper
    entry: Entry
    seats: Seats
    sockets: Seats
    limits: Limits
    pool: Executor
    height: int | None
    width: int | None
    greeting: Mapping[str, Any]
    defaults: Mapping[str, Any]
    sessions: dict[str, Session] = field(default_factory=dict)

    def size(self, hello: Hello) -> tuple[int, int]:
        """Width and height of the edited frames; a side that nobody asked for makes it 16:9.

        Raises:
            ProtocolError: they are too large.
        """
        width, height = hello.width, hello.height
        if width is None and height is None:
            width, height = self.width, self.height
        if height is None:
            height = self.keeper.default_height if width is None else round(width * 9 / 16)
        width = width or round(height * 16 / 9)
        try:
            fit = fit_to_grid(width, height, target_height=height, target_width=width)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        if fit.width * fit.height > self.limits.output_pixels:
            raise ProtocolError(
                f"edited frames may have {self.limits.output_pixels} pixels, and "
                f"{fit.width}x{fit.height} is more"
            )
        return fit.width, fit.height
