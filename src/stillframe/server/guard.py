"""Who comes in, and how much they may do: seats, token, origin, rates, files.

Decides on names and numbers; it knows no sockets, and no framework.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from stillframe.errors import StillframeError

__all__ = [
    "COOKIE",
    "Gate",
    "Rate",
    "RefusedError",
    "Seats",
    "cookie_of",
    "is_loopback",
    "new_token",
    "packaged_file",
    "token_in",
]

#: The cookie that keeps a token.
COOKIE = "stillframe_token"


class RefusedError(StillframeError):
    """There is no room for a client now; its message is for the client."""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this computer's own, which nobody else reaches."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """A token that cannot be guessed, safe in a URL."""
    return secrets.token_urlsafe(24)


def cookie_of(token: str) -> str:
    """A token as a cookie's value, which holds neither spaces nor letters beyond ASCII."""
    return quote(token, safe="")


def token_in(cookies: Mapping[str, str]) -> str | None:
    """The token that a client's cookies hold, None if they hold none."""
    value = cookies.get(COOKIE)
    return None if value is None else unquote(value)


def _host_and_port(netloc: str) -> tuple[str, int | None] | None:
    """Name and port of ``name:port``, None if it is no such thing."""
    try:
        parts = urlsplit(f"//{netloc}")
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return None


class Gate:
    """Who may speak to the server.

    Args:
        host: that the server listens on.
        token: that clients must know, None if nothing is asked for.

    Raises:
        ValueError: others than this computer can reach the host, and there is no token.
    """

    def __init__(self, host: str, token: str | None = None) -> None:
        self.local = is_loopback(host)
        if not self.local and not token:
            raise ValueError(f"a server on {host} can be reached by others and needs a token")
        self._token = token or None

    @property
    def asks(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def knows(self, token: str | None) -> bool:
        """Whether a client's token is right, in a time that tells nothing about it."""
        if self._token is None:
            return True
        given = (token or "").encode("utf-8", "surrogatepass")
        return hmac.compare_digest(given, self._token.encode("utf-8", "surrogatepass"))

    def host_allowed(self, host: str | None) -> bool:
        """Whether the name a client used is this server's.

        A local server is only called by local names: else a foreign page, whose name was made to
        lead here, would count as the server's own (DNS rebinding). Others have the token.
        """
        name = _host_and_port(host or "")
        return not self.local or (name is not None and is_loopback(name[0]))

    def origin_allowed(self, origin: str | None, host: str | None) -> bool:
        """Whether a page may open a socket: the server's own, or a local one to a local server.

        Programs other than browsers send no origin and may.
        """
        if origin is None:
            return True
        page = _host_and_port(origin.partition("://")[2])
        own = _host_and_port(host or "")
        if page is None or own is None or not page[0]:
            return False
        return page == own or (is_loopback(page[0]) and is_loopback(own[0]))


class Seats:
    """A number of places; any thread may ask.

    Args:
        count: how many there are.
        what: that is counted, for the refusal.
    """

    def __init__(self, count: int, what: str = "sessions") -> None:
        self.count, self._what = count, what
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Take a place for as long as the context lasts.

        Raises:
            RefusedError: all are taken.
        """
        with self._lock:
            if self._taken >= self.count:
                raise RefusedError(
                    f"the server is full: {self._taken} of {self.count} {self._what} are open; "
                    f"try again later"
                )
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1


class Rate:
    """So many a second in the long run, and twice that at once.

    Args:
        per_second: how many.
        now: seconds since some moment in the past.
    """

    def __init__(self, per_second: float, now: Callable[[], float]) -> None:
        self._per_second, self._now = per_second, now
        self._left, self._at = 2 * per_second, now()

    def allows(self) -> bool:
        """Count one; false if it is one too many."""
        now = self._now()
        self._left = min(self._left + (now - self._at) * self._per_second, 2 * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def packaged_file(folder: Path, name: str) -> Path | None:
    """A file below a folder, None if there is none; hidden ones and links do not count.

    Args:
        name: parts with slashes between them, as in a URL.
    """
    parts = name.split("/")
    if any(not part or part[0] == "." or not part.isprintable() or "\\" in part for part in parts):
        return None
    try:
        root = folder.resolve()
        path = root.joinpath(*parts).resolve()
        return path if path.is_file() and path == root.joinpath(*parts) else None
    except (OSError, ValueError):
        return None
