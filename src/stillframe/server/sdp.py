"""WebRTC offers as text: what a client wants, checked before anything is made of it.

Pure functions; they know no connections, and need no WebRTC package.
"""

from __future__ import annotations

import json
import re
from typing import cast

from stillframe.server import messages
from stillframe.server.messages import Hello, ProtocolError

__all__ = ["parse_offer", "without_hidden_addresses"]

_UNREADABLE = 1007
_HIDDEN = re.compile(r"a=(candidate:(\S+ ){4}\S+\.local |end-of-candidates)", re.IGNORECASE)


def parse_offer(data: bytes, text_bytes: int) -> tuple[str, Hello]:
    """An offer: the session description, and the settings as in the socket's ``hello``.

    Args:
        data: JSON with ``sdp``, ``type`` and the settings.
        text_bytes: that the settings may have.

    Raises:
        ProtocolError: it cannot be read, a setting is wrong, or it offers something else than one
            video track and one data channel.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("an offer is a JSON object, and this is none", _UNREADABLE) from error
    if not isinstance(message, dict):
        raise ProtocolError("an offer is a JSON object, and this is none", _UNREADABLE)
    sdp, kind = message.pop("sdp", None), message.pop("type", None)
    if not isinstance(sdp, str) or kind != "offer":
        raise ProtocolError("an offer has the type offer, and a text named sdp")
    # before the parser, which takes any number of them
    if sorted(re.findall(r"^m=(\w+)", sdp, re.MULTILINE)) != ["application", "video"]:
        raise ProtocolError("an offer has one video track and one data channel, and nothing else")
    said = messages.parse_text(json.dumps({**message, "type": "hello"}), text_bytes)
    hello = cast(Hello, said)
    if hello.policy == "all":
        raise ProtocolError("WebRTC cannot hold a client back: policy is latest")
    return sdp, hello


def without_hidden_addresses(sdp: str) -> str:
    """An offer without candidates that are mDNS names, and without the word that these were all.

    Browsers hide their addresses behind such names until a camera is allowed. They call this
    computer first in any case, and show their address by that: the names need not be asked for in
    the network (draft-ietf-mmusic-mdns-ice-candidates), and the search must not end before.
    """
    hidden = re.compile(
        r"a=(candidate:(\S+ ){4}\S+\.local .*|end-of-candidates)\s*$", re.IGNORECASE
    )
    return "".join(line for line in sdp.splitlines(keepends=True) if not hidden.match(line))
