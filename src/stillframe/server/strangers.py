"""Who has not shown a token yet: how many connections of them there may be, and who has guessed.

Nobody is turned away for want of room: one more, and another one goes, so that whoever keeps
connections open and says nothing cannot keep others out. Decides on addresses and numbers; it knows
no sockets, and no framework.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from stillframe.server.guard import Gate, RefusedError

__all__ = ["Entry", "Stranger", "Strangers", "network_of"]

_FREE = 3
"""Wrong tokens of an address that cost it nothing: people mistype."""
_SHORTEST, _LONGEST = 0.25, 4.0
_MEMORY = 300.0
_ADDRESSES = 1024
_WAITING, _WAITING_EACH = 64, 8


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


class Stranger:
    """A connection that has not shown a token, as `Strangers` count it."""

    def __init__(self, network: str, leave: Callable[[], None]) -> None:
        self.network, self.leave = network, leave


class Strangers:
    """Connections that have shown no token; used by the event loop alone.

    Where there are too many of one address, or in all, the one goes that has been silent longest:
    of that address, or of the one that has most.

    Args:
        most: that there may be in all.
        each: that there may be of an address.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._present: dict[str, OrderedDict[Stranger, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def come(self, address: str, leave: Callable[[], None]) -> Stranger:
        """Count a connection.

        Args:
            leave: ends it.
        """
        stranger = Stranger(network_of(address), leave)
        own = self._present.setdefault(stranger.network, OrderedDict())
        own[stranger] = None
        self._count += 1
        if len(own) > self._each:
            self._send_away(own)
        elif self._count > self._most:
            self._send_away(max(self._present.values(), key=len))
        return stranger

    def stirs(self, stranger: Stranger) -> None:
        """It has asked for something; nothing happens if it is not there."""
        own = self._present.get(stranger.network)
        if own is not None and stranger in own:
            own.move_to_end(stranger)

    def forget(self, stranger: Stranger) -> None:
        """It has gone, or is a stranger no more; again, this does nothing."""
        own = self._present.get(stranger.network)
        if own is not None and stranger in own:
            del own[stranger]
            self._count -= 1
            if not own:
                del self._present[stranger.network]

    def _send_away(self, own: OrderedDict[Stranger, None]) -> None:
        oldest = next(iter(own))
        self.forget(oldest)
        oldest.leave()


class Entry:
    """Looks at tokens, slower for an address the more often it was wrong.

    Whoever was wrong waits before a token is looked at, be it right or not: else who guesses would
    not wait for the answer. Few are remembered, and not for long.

    Args:
        gate: knows the token.
        now: seconds since some moment in the past.
    """

    def __init__(self, gate: Gate, now: Callable[[], float] = time.monotonic) -> None:
        self._gate, self._now = gate, now
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting: dict[str, int] = {}

    async def admits(self, token: str | None, address: str) -> bool:
        """Whether a client's token is right; takes a while where some were not.

        Raises:
            RefusedError: too many tokens of its address, or in all, wait to be looked at.
        """
        if not self._gate.asks or not token:
            return self._gate.knows(token)
        network = network_of(address)
        pause = self.pause(network)
        if pause:
            await self._wait(network, pause)
        right = self._gate.knows(token)
        if not right:
            self._remember(network)
        return right

    def pause(self, address: str) -> float:
        """Seconds for which a token of an address waits."""
        count, last = self._wrong.get(network_of(address), (0, 0.0))
        if count < _FREE or self._now() - last > _MEMORY:
            return 0.0
        return float(min(_SHORTEST * 2.0 ** min(count - _FREE, 30), _LONGEST))

    def __len__(self) -> int:
        return len(self._wrong)

    async def _wait(self, network: str, pause: float) -> None:
        own = self._waiting.get(network, 0)
        if own >= _WAITING_EACH or sum(self._waiting.values()) >= _WAITING:
            raise RefusedError("too many wrong tokens were shown; try again later")
        self._waiting[network] = own + 1
        try:
            await asyncio.sleep(pause)
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
