"""Who may use the server: token, name, origin, and how many may be connected without a token.

Decides on names, addresses and numbers, without sockets or a framework.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote, unquote, urlsplit

from stillframe.server.limits import RefusedError

__all__ = [
    "COOKIE",
    "TOKEN_LENGTH",
    "AccessPolicy",
    "TokenCheck",
    "UnauthenticatedConnections",
    "cookie_of",
    "host_and_port",
    "is_loopback",
    "network_of",
    "new_token",
    "token_in",
]

#: The cookie that keeps a token.
COOKIE = "stillframe_token"
#: Characters that a token has at least, and at most.
TOKEN_LENGTH = (16, 200)

_FREE = 3
"""Wrong tokens of an address that cost it nothing: people mistype."""
_SHORTEST, _LONGEST = 0.25, 4.0
_MEMORY = 300.0
_ADDRESSES = 1024
_WAITING, _WAITING_EACH = 64, 8


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


class AccessPolicy:
    """Which tokens, names and origins the server accepts.

    Args:
        host: that the server listens on.
        token: that clients must show, None if they need none.
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
    def needs_token(self) -> bool:
        """Whether clients need a token."""
        return self._token is not None

    def accepts(self, token: str | None) -> bool:
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


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the /64, which is what a household is given."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class UnauthenticatedConnections:
    """Connections that have shown no token; used by the event loop alone.

    Nobody is refused for want of room: where there are too many of one address, or in all, the one
    is closed that has been silent longest, of that address or of the one that has most. So whoever
    keeps connections open and says nothing cannot keep others out.

    Args:
        most: that there may be in all.
        each: that there may be of an address.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        # of each address: what closes its connections, by their numbers, longest silent first
        self._open: dict[str, OrderedDict[int, Callable[[], None]]] = {}
        self._networks: dict[int, str] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._networks)

    def add(self, address: str, close: Callable[[], None]) -> int:
        """Count a connection that ``close`` ends; its number."""
        number, network = self._next, network_of(address)
        self._next += 1
        self._networks[number] = network
        own = self._open.setdefault(network, OrderedDict())
        own[number] = close
        if len(own) > self._each:
            self._close_oldest(own)
        elif len(self) > self._most:
            self._close_oldest(max(self._open.values(), key=len))
        return number

    def touch(self, number: int) -> None:
        """A connection has asked for something; nothing happens if it is not there."""
        if number in self._networks:
            self._open[self._networks[number]].move_to_end(number)

    def remove(self, number: int) -> None:
        """A connection has gone, or has shown its token; nothing happens if it is not there."""
        network = self._networks.pop(number, None)
        if network is not None:
            own = self._open[network]
            del own[number]
            if not own:
                del self._open[network]

    def _close_oldest(self, own: OrderedDict[int, Callable[[], None]]) -> None:
        number, close = next(iter(own.items()))
        self.remove(number)
        close()


class TokenCheck:
    """Checks tokens, slower for an address the more often it was wrong.

    Whoever was wrong waits before a token is looked at, be it right or not: else who guesses would
    not wait for the answer. Few are remembered, and not for long.

    Args:
        policy: knows the token.
        now: seconds since some moment in the past.
    """

    def __init__(self, policy: AccessPolicy, now: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._now = policy, now
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._wrong)

    async def accepts(self, token: str | None, address: str) -> bool:
        """Whether a client's token is right; takes a while where some were not.

        Raises:
            RefusedError: too many tokens of its address, or in all, wait to be looked at.
        """
        if not self._policy.needs_token or not token:
            return self._policy.accepts(token)
        network = network_of(address)
        delay = self.delay(network)
        if delay:
            await self._wait(network, delay)
        right = self._policy.accepts(token)
        if not right:
            self._remember(network)
        return right

    def delay(self, address: str) -> float:
        """Seconds for which a token of an address waits."""
        count, last = self._wrong.get(network_of(address), (0, 0.0))
        if count < _FREE or self._now() - last > _MEMORY:
            return 0.0
        return float(min(_SHORTEST * 2.0 ** min(count - _FREE, 30), _LONGEST))

    async def _wait(self, network: str, seconds: float) -> None:
        own = self._waiting.get(network, 0)
        if own >= _WAITING_EACH or sum(self._waiting.values()) >= _WAITING:
            raise RefusedError("too many wrong tokens were shown; try again later")
        self._waiting[network] = own + 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting[network] -= 1
            if not self._waiting[network]:
                del self._waiting[network]

    def _remember(self, network: str) -> None:
        count, last = self._wrong.pop(network, (0, 0.0))
        if self._now() - last > _MEMORY:
            count = 0
        self._wrong[network] = count + 1, self._now()
        if len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
