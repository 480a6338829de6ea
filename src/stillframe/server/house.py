"""What the application has from its start to its end: a model, seats, and connections over WebRTC.

It does not know what is asked for over HTTP, nor in what form it is told.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from stillframe.live import Session
from stillframe.loading.styles import Style
from stillframe.methods import methods
from stillframe.recovery import recoveries
from stillframe.server.fields import CONTROLS
from stillframe.server.guard import Gate, Seats
from stillframe.server.hall import Hall
from stillframe.server.limits import Limits
from stillframe.server.messages import VERSION
from stillframe.server.strangers import Entry, Strangers
from stillframe.server.supervisor import SessionKeeper

if TYPE_CHECKING:
    from stillframe.server.webrtc import Peers

__all__ = ["House"]


class House:
    """What the application has from its start to its end."""

    def __init__(
        self,
        keeper: SessionKeeper,
        gate: Gate,
        max_sessions: int,
        limits: Limits,
        size: tuple[int | None, int | None],
        known: Sequence[Style],
        defaults: Mapping[str, Any],
    ) -> None:
        self.keeper, self.gate, self.limits = keeper, gate, limits
        self.seats = Seats(max_sessions)
        self.entry = Entry(gate)
        self.strangers = Strangers(limits.strangers, limits.strangers_each)
        # who has shown a token, and has a session or is about to be refused one
        self.sockets = Seats(4 * max_sessions + 8, "connections")
        self.size, self.known, self.defaults = size, known, defaults
        self.hall: Hall | None = None
        self.peers = _peers()

    @asynccontextmanager
    async def open(self, _app: FastAPI) -> AsyncIterator[None]:
        """Load the model and run the worker for as long as the application lives."""
        # two a session: one may wait for a block while it is closed
        pool = ThreadPoolExecutor(2 * self.seats.count + 2, "stillframe-pool")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(pool, self.keeper.start)
            try:
                self.hall = Hall(
                    self.keeper, self.entry, self.seats, self.sockets, self.limits, pool,
                    *self.size,
                    greeting=self.greeting(), defaults=self.defaults,
                )  # fmt: skip
                yield
            finally:
                if self.peers is not None:
                    await self.peers.close()
                await loop.run_in_executor(None, self.keeper.stop)
        finally:
            pool.shutdown(wait=True)

    def greeting(self) -> dict[str, Any]:
        """What every client is told with ``ready``."""
        return {
            "fps_hint": self.limits.fps_hint,
            "styles": self.styles(),
            "methods": list(methods()),
            "recoveries": list(recoveries()),
            "holding": {name: x for name, x in self.defaults.items() if name in CONTROLS},
            "version": VERSION,
        }

    def styles(self) -> list[dict[str, str]]:
        """The styles that the model knows."""
        return [
            {"name": style.name, "prompt": style.prompt, "summary": style.summary}
            for style in self.known
        ]

    def status(self) -> dict[str, Any]:
        """Sessions, limits, and what the sessions have measured lately."""
        sessions = {} if self.hall is None else dict(self.hall.sessions)
        return {
            "version": version("stillframe"),
            "protocol": VERSION,
            "transports": ["websocket"] + ["webrtc"] * (self.peers is not None),
            "sessions": {"open": self.seats.taken, "max": self.seats.count},
            "worker_failures": self.keeper.failures,
            "limits": asdict(self.limits),
            "telemetry": [_figures(name, session) for name, session in sessions.items()],
        }


def _peers() -> Peers | None:
    """What keeps WebRTC connections, if the package for them is installed."""
    if importlib.util.find_spec("aiortc") is None:
        return None
    from stillframe.server.webrtc import Peers

    return Peers()


def _figures(name: str, session: Session) -> dict[str, Any]:
    return {
        "session": name,
        "state": session.state,
        "paused": session.paused,
        "dropped": session.dropped,
        "memory": session.memory,
        **session.telemetry.summary(),
    }
