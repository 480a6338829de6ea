"""The server's state: what its connections share, from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from stillframe.config import OPTIONS
from stillframe.live import Session
from stillframe.loading.styles import Style, match
from stillframe.methods import methods
from stillframe.recovery import recoveries
from stillframe.server.access import AccessPolicy
from stillframe.server.admission import Admission
from stillframe.server.limits import ConnectionLimit, Limits
from stillframe.server.messages import Hello, live_options
from stillframe.server.protocol import VERSION, ProtocolError
from stillframe.server.supervisor import ModelSupervisor
from stillframe.server.watchers import Watchers
from stillframe.video.fit import fit_to_grid

__all__ = ["ServerState"]


class ServerState(Admission):
    """What the connections of a server share.

    Args:
        supervisor: opens sessions.
        policy: who may use the server.
        max_sessions: that may be open at a time.
        limits: of what a client may send.
        size: height and width of edited frames if a client asks for none.
        styles: that the model knows.
        defaults: values of options for sessions whose clients do not say otherwise.
        blend: blocks that another prompt takes to come in, where clients do not say otherwise.

    Attributes:
        open_sessions: counts sessions.
        connections: counts connections that have shown a token, and have a session or are about to
            be refused one.
        transports: names of those that clients may use.
        pool: threads for what takes long, while the server runs.
        ready: whether the model is there.
        sessions: open sessions by id, the newest last.
        watchers: those who are shown what sessions make.
    """

    def __init__(
        self,
        supervisor: ModelSupervisor,
        policy: AccessPolicy,
        max_sessions: int,
        limits: Limits,
        size: tuple[int | None, int | None] = (None, None),
        styles: Sequence[Style] = (),
        defaults: Mapping[str, Any] | None = None,
        blend: int = 0,
    ) -> None:
        super().__init__(policy, limits)
        self.supervisor = supervisor
        self.open_sessions = ConnectionLimit(max_sessions)
        self.connections = ConnectionLimit(4 * max_sessions + 8, "connections")
        self.defaults, self.blend = dict(defaults or {}), blend
        self.transports = ["websocket"]
        self.ready = False
        self.sessions: dict[str, Session] = {}
        self.watchers = Watchers(self.sessions)
        self._size, self._styles = size, styles

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model and run it for as long as the context lasts."""
        # two a session: one may wait for a block while it is closed
        self.pool = ThreadPoolExecutor(2 * self.open_sessions.most + 2, "stillframe-pool")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self.pool, self.supervisor.start)
            try:
                self.ready = True
                yield
            finally:
                await loop.run_in_executor(None, self.supervisor.stop)
        finally:
            self.pool.shutdown(wait=True)

    @property
    def has_size(self) -> bool:
        """Whether edited frames have a size that was chosen when the server was started."""
        return self._size != (None, None)

    @property
    def first_prompt(self) -> str:
        """A prompt that the model knows."""
        return self._styles[0].prompt if self._styles else ""

    def size(self, hello: Hello) -> tuple[int, int]:
        """Width and height of the edited frames; a side that nobody asked for makes it 16:9.

        Raises:
            ProtocolError: they are too large.
        """
        width, height = hello.width, hello.height
        if width is None and height is None:
            height, width = self._size
        if height is None:
            height = self.supervisor.default_height if width is None else round(width * 9 / 16)
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

    def greeting(self) -> dict[str, Any]:
        """What every client is told with ``ready``."""
        return {
            "fps_hint": self.limits.fps_hint,
            "styles": self.styles(),
            "methods": list(methods()),
            "recoveries": list(recoveries()),
            "holding": self._controls(),
            "blend": self.blend,
            "version": VERSION,
        }

    def _controls(self) -> dict[str, Any]:
        """Controls of sessions whose clients, who may change them, do not say otherwise."""
        live = set(live_options()) - set(OPTIONS)
        return {name: x for name, x in self.defaults.items() if name in live and x is not False}

    def styles(self) -> list[dict[str, str]]:
        """The styles that the model knows."""
        return [
            {"name": style.name, "prompt": style.prompt, "summary": style.summary}
            for style in self._styles
        ]

    def matched(self, prompt: str) -> dict[str, Any] | None:
        """Name and score of the style that a prompt was matched to, see ``loading.styles.Match``;
        None if the model knows none, or any."""
        found = match(prompt, self._styles)
        return None if found is None else {"name": found.style.name, "score": found.score}

    def status(self) -> dict[str, Any]:
        """Sessions, workers, limits, and what the sessions have measured lately."""
        workers = self.supervisor.workers
        return {
            "version": version("stillframe"),
            "protocol": VERSION,
            "transports": self.transports,
            "sessions": {"open": self.open_sessions.open, "max": self.open_sessions.most},
            "workers": [each._asdict() for each in workers],
            "worker_failures": sum(each.failures for each in workers),
            "limits": asdict(self.limits),
            "telemetry": [_figures(name, each) for name, each in dict(self.sessions).items()],
        }


def _figures(name: str, session: Session) -> dict[str, Any]:
    return {
        "session": name,
        "device": session.device,
        "state": session.state,
        "paused": session.paused,
        "dropped": session.dropped,
        "memory": session.memory,
        **session.telemetry.summary(),
    }
