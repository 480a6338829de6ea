"""Session descriptions of offers, checked_offer as aiortc reads them, and written anew from that.

Nothing is searched for in a client's text: what one parser skips another may find. Needs
``[webrtc]``; it opens nothing.
"""

from __future__ import annotations

import ipaddress

from aiortc.sdp import MediaDescription, SessionDescription

from stillframe.server.protocol import TOO_LARGE, UNREADABLE, ProtocolError

__all__ = ["checked_offer"]

_BYTES = 32 * 2**10
_LINES = 768
"""Browsers send some 200. Parsing takes the square of them."""
_CANDIDATES = 64
_UNUSABLE = "the offer's sdp cannot be used"


def checked_offer(sdp: str, *, one_way: bool = False) -> str:
    """The description of an offer of one video track and one data channel, in aiortc's own words.

    One way, as WHIP and WHEP have it, there is no data channel, and there may be one of sound.

    Candidates that are names go, and with them the word that these were all. Browsers hide their
    addresses behind such names until a camera is allowed. They call this computer first in any
    case, and show their address by that: the names need not be asked for in the network
    (draft-ietf-mmusic-mdns-ice-candidates), and the search must not end before.

    Raises:
        ProtocolError: it is too large, broken, or offers anything else.
    """
    if len(sdp) > _BYTES or (lines := len(sdp.splitlines())) > _LINES:
        size = f"{len(sdp)} characters" if len(sdp) > _BYTES else f"{lines} lines"
        raise ProtocolError(
            f"an sdp may have {_BYTES} characters and {_LINES} lines, this one has {size}",
            TOO_LARGE,
        )
    try:
        description = SessionDescription.parse(sdp)
    except Exception as error:  # broken descriptions fail in every way there is
        raise ProtocolError(_UNUSABLE, UNREADABLE) from error
    media = description.media
    kinds = sorted(each.kind for each in media)
    if one_way and kinds not in (["video"], ["audio", "video"]):
        raise ProtocolError("an offer has one video track, one of sound or none, and nothing else")
    if not one_way and kinds != ["application", "video"]:
        raise ProtocolError("an offer has one video track and one data channel, and nothing else")
    candidates = sum(len(each.ice_candidates) for each in media)
    if candidates > _CANDIDATES:
        raise ProtocolError(f"an sdp may have {_CANDIDATES} candidates, this one has {candidates}")
    _check_names(description)
    for each in media:
        _drop_names(each)
    try:
        return str(description)
    except Exception as error:  # what could be read, but not be said
        raise ProtocolError(_UNUSABLE, UNREADABLE) from error


def _check_names(description: SessionDescription) -> None:
    """Raise if a section has no name of its own, or a group names another: aiortc takes any."""
    names = [each.rtp.muxId for each in description.media]
    grouped = [name for group in description.group for name in group.items]
    if not all(names) or len(set(names)) < len(names) or not {*grouped} <= {*names}:
        raise ProtocolError(_UNUSABLE, UNREADABLE)


def _drop_names(media: MediaDescription) -> None:
    """Leave only candidates that are addresses."""
    shown = [each for each in media.ice_candidates if _is_address(each.ip)]
    media.ice_candidates_complete &= len(shown) == len(media.ice_candidates)
    media.ice_candidates = shown


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
