"""Who comes in, and how much they may do: seats, token, origin, rates, files.

Decides on names and numbers; it knows no sockets, and no framework.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from stillframe.errors import StillframeError

__all__ = [
    "COOKIE",
    "TOKEN_LENGTH",
    "Gate",
    "Rate",
    "RefusedError",
    "Seats",
    "cookie_of",
    "host_and_port",
    "is_loopback",
    "new_token",
    "packaged_file",
    "token_in",
]

#: The cookie that keeps a token.
COOKIE = "stillframe_token"
#: Characters that a token has at least, and at most.
TOKEN_LENGTH = (16, 200)


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


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


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


def host_and_port(netloc: str) -> tuple[str, int | None] | None:
    """Name and port of ``name:port``, None if it is no such thing."""
    try:
        parts = urlsplit(f"//{netloc}")
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return None


def _check_token(token: str) -> None:
    """Raise a ValueError for a token that can be guessed, or that HTTP cannot carry."""
    least, most = TOKEN_LENGTH
    if not least <= len(token) <= most:
        raise ValueError(f"a token has {least} to {most} characters, this one has {len(token)}")
    if not all("!" <= letter <= "~" for letter in token):
        raise ValueError("a token has letters, digits and signs of ASCII, and no spaces")


class Gate:
    """Who may speak to the server.

    Args:
        host: that the server listens on.
        token: that clients must know, None if nothing is asked for.
        names: other names by which clients may call the server, where others can reach it.

    Raises:
        ValueError: others than this computer can reach the host, and there is no token; or the
            token is too short, too long, or not of ASCII.
    """

    def __init__(self, host: str, token: str | None = None, names: Iterable[str] = ()) -> None:
        self.local = is_loopback(host)
        if not self.local and not token:
            raise ValueError(f"a server on {host} can be reached by others and needs a token")
        if token:
            _check_token(token)
        self._token = token or None
        # by its own name it is called in its network, and by that with .local (RFC 6762)
        own = socket.gethostname().lower().rstrip(".")
        short = own.partition(".")[0]
        told = (name.lower().rstrip(".") for name in names)
        self._names = frozenset({host.lower(), own, short, f"{short}.local", *told} - {""})

    @property
    def asks(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def knows(self, token: str | None) -> bool:
        """Whether a client's token is right, in a time that tells nothing about it."""
        if self._token is None:
            return True
        given = (token or "").encode("utf-8", "surrogatepass")
        return hmac.compare_digest(given, self._token.encode("ascii"))

    def host_allowed(self, host: str | None) -> bool:
        """Whether the name a client used is this server's.

        Else a foreign page, whose name was made to lead here, would count as the server's own (DNS
        rebinding). A local server is only called by local names; another one by addresses as well,
        which nobody can make lead elsewhere, and by its own names.
        """
        called = host_and_port(host or "")
        if called is None:
            return False
        name = called[0]
        if is_loopback(name):
            return True
        return not self.local and (_is_address(name) or name in self._names)

    def origin_allowed(self, origin: str | None, host: str | None) -> bool:
        """Whether a page may open a socket: the server's own, or a local one to a local server.

        Programs other than browsers send no origin and may.
        """
        if origin is None:
            return True
        page = host_and_port(origin.partition("://")[2])
        own = host_and_port(host or "")
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
