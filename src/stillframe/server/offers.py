"""WebRTC offers as text: what a client wants, as far as that is no matter of WebRTC.

Pure functions; they know no connections, and need no WebRTC package. What a session description
says is for ``sdp`` to judge.
"""

from __future__ import annotations

from stillframe.server import messages
from stillframe.server.messages import Hello, ProtocolError

__all__ = ["parse_offer"]


def parse_offer(data: bytes) -> tuple[str, Hello]:
    """An offer: the session description, not looked at, and the settings as in ``hello``.

    Args:
        data: JSON with ``sdp``, ``type`` and the settings.

    Raises:
        ProtocolError: it cannot be read, or a setting is wrong.
    """
    message = messages.parse_object(data, "an offer")
    sdp, kind = message.pop("sdp", None), message.pop("type", None)
    if not isinstance(sdp, str) or kind != "offer":
        raise ProtocolError("an offer has the type offer, and a text named sdp")
    hello = messages.hello_of(message)
    if hello.policy == "all":
        raise ProtocolError("WebRTC cannot hold a client back: policy is latest")
    return sdp, hello
