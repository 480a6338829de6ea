"""How much one client may ask of the server; numbers only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds a client meets; beyond them its own socket is closed, nobody else's.

    A picture beyond its bounds is dropped, and ends nothing.

    Attributes:
        message_bytes: of a binary message.
        text_bytes: of a text message.
        offer_bytes: of a WebRTC offer with its settings.
        picture_pixels, picture_side: of a frame that comes in.
        output_pixels: of the edited frames that a session asks for.
        frames_per_second, texts_per_second: of a socket; twice as many at once.
        queued_frames: edited frames that wait to be sent.
        stall_seconds: a client that takes nothing for so long is closed.
        hello_seconds: so long a socket may take to say hello.
        request_seconds: so long a connection may take to ask for something, or to ask again.
        strangers, strangers_each: connections that have shown no token, in all and of an address;
            one more, and the one goes that has been silent longest.
        stranger_bytes: of a message of theirs.
        idle_seconds: a client that sends nothing for so long is closed.
        fps_hint: frames a second that a client should send if it does not know better.
    """

    message_bytes: int = 4 * 2**20
    text_bytes: int = 16 * 2**10
    offer_bytes: int = 64 * 2**10
    picture_pixels: int = 1920 * 1088
    picture_side: int = 4096
    output_pixels: int = 1280 * 736
    frames_per_second: float = 120.0
    texts_per_second: float = 20.0
    queued_frames: int = 32
    stall_seconds: float = 10.0
    hello_seconds: float = 10.0
    request_seconds: float = 10.0
    strangers: int = 256
    strangers_each: int = 64
    stranger_bytes: int = 256 * 2**10
    idle_seconds: float = 600.0
    fps_hint: int = 16
