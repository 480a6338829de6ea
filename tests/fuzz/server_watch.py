"""What must hold of a server whatever it is sent, and generators that print their seeds."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.server_fixtures import Server, get, wait_until

__all__ = ["ODD", "check_sentence", "seeds", "watched", "wild"]

# of the program's inside, or of a library's
_INSIDE = re.compile(r"0x[0-9a-f]{6,}|object at|Traceback|<[a-z_.]+[A-Z]\w*|\w+\.py\b|\w+Error\b")
_LINES = 60  # a fuzzer's log, whatever it sends

NUMBERS: list[Any] = [
    0, -1, 1, 2, 96, 10**30, -(10**30), 2**63, 2**31, 1e308, -1e308, 5e-324, 0.5, 1e-9, 65_536,
]  # fmt: skip
ODD: list[Any] = [
    *NUMBERS, None, True, False, "", "x", "latest", "all", "prune", "full", "\0", "\ud800",
    "\u202e", "a" * 300, "é→鍵", "%s%n", "{}", "'", "<b>", [], {}, [[]],
    {"a": {"b": [1]}}, ["x"] * 50,    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip


def wild(rng: random.Random) -> Any:
    """A value of any kind."""
    return rng.choice(ODD)


def seeds(name: str, count: int) -> Iterator[random.Random]:
    """Generators for so many cases; where one fails, its seed is in the output."""
    for number in range(count):
        print(f"{name}: seed {number}")  # noqa: T201 - shown with a failure
        yield random.Random(f"{name} {number}")


def check_sentence(text: str) -> None:
    """A refusal is one line of words, not long, and tells nothing of the inside."""
    assert 0 < len(text) <= 700, text
    assert text.isprintable(), text
    assert not _INSIDE.search(text), text


@contextmanager
def watched(server: Server) -> Iterator[None]:
    """See that a neighbour's session goes on, all seats are given back, and little is logged."""
    lines: list[str] = []
    failures: list[logging.LogRecord] = []

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "websockets.client":
                return  # what the clients of these tests say of their own broken connections
            lines.append(record.getMessage())
            if record.exc_info:
                failures.append(record)

    handler = Count(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.getLogger("uvicorn").addHandler(handler)
    try:
        with server.client({"policy": "all"}) as neighbour:
            neighbour.works()
            yield
            neighbour.works(10)
            assert not [text for text in neighbour.texts if text["type"] in ("notice", "error")]
        wait_until(lambda: server.state.connections.open == 0)
        wait_until(lambda: len(server.state.unauthenticated) == 0)
        assert (server.state.open_sessions.open, server.state.sessions) == (0, {})
        assert get(server, "/healthz").json() == {"ok": True}
        assert not any(each.failures for each in server.state.supervisor.workers)
        assert len(lines) <= _LINES, lines[-5:]
        assert not failures, [logging.Formatter().format(record) for record in failures]
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger("uvicorn").removeHandler(handler)
