"""What tests of the server share: a real one on a local port, and clients of it.

Clients read and write the protocol on their own, with none of the server's code.
"""

from __future__ import annotations

import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from tests.live_fixtures import levels
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from stillframe.server.app import create_app
from stillframe.server.limits import Limits
from stillframe.server.serving import listen, make_server

__all__ = [
    "WAIT",
    "Client",
    "Server",
    "alive",
    "frame_message",
    "get",
    "jpeg",
    "pictures",
    "serving",
    "wait_until",
]

WAIT = 60.0  # seconds after which a test gives up; on a busy machine much is late
Pixels = NDArray[np.uint8]


def jpeg(pixels: Pixels, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture as a client sends it."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **{"quality": 90, **options})
    return data.getvalue()


def pictures(count: int, height: int = 64, width: int = 96, seed: int = 0) -> list[bytes]:
    """JPEG pictures of a clip in which something moves."""
    return [jpeg(frame) for frame in levels(count, height, width, seed)]


def frame_message(timestamp: float, picture: bytes) -> bytes:
    return struct.pack("<BBBBBBBBd", 1, 0, 0, 0, 0, 0, 0, 0, timestamp) + picture


def wait_until(condition: Any, seconds: float = WAIT) -> None:
    """Wait for something that happens on another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Server:
    """A server that runs."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.app, self.port = app, port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/live"

    @property
    def state(self) -> Any:
        return self.app.state.server

    @contextmanager
    def client(self, hello: dict[str, Any] | None = None, **options: Any) -> Iterator[Client]:
        """A client that has said hello, unless ``hello`` is empty."""
        options = {"open_timeout": WAIT, "compression": None, "max_size": None, **options}
        with connect(self.url, close_timeout=1, **options) as socket:
            client = Client(socket)
            if hello != {}:
                client.say("hello", **{"prompt": "oil", "width": 96, "height": 64, **(hello or {})})
            yield client


def alive(pid: int | None) -> bool:
    """Whether a process is there, one that nobody has waited for excluded."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def get(server: Server, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{server.port}{path}", timeout=WAIT, **options)


@contextmanager
def serving(
    pipe: Any, *, limits: Limits | None = None, host: str = "127.0.0.1", **options: Any
) -> Iterator[Server]:
    """A server on a free local port; ``host`` is what it believes to listen on."""
    app = create_app(pipe, limits=limits, host=host, **options)
    server = make_server(app)
    place = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield Server(app, place.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(WAIT)
        place.close()
        assert not thread.is_alive()


class Client:
    """One socket, and what came from it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.texts: list[dict[str, Any]] = []
        self.frames: list[tuple[float, Pixels]] = []
        self.maps: list[tuple[float, NDArray[np.uint8]]] = []
        self.moved: list[NDArray[np.uint8]] = []
        self.code: int | None = None

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def send(self, timestamp: float, picture: bytes) -> None:
        self.socket.send(frame_message(timestamp, picture))

    def hear(self, seconds: float = WAIT) -> str:
        """Take one message; says which kind it was, "" if there was none, "closed" at the end."""
        try:
            message = self.socket.recv(timeout=seconds)
        except TimeoutError:
            return ""
        except ConnectionClosed as end:
            self.code = 1006 if end.rcvd is None else end.rcvd.code
            return "closed"
        if isinstance(message, str):
            self.texts.append(json.loads(message))
            return str(self.texts[-1]["type"])
        kind, zeros, timestamp = message[0], message[1:8], struct.unpack("<d", message[8:16])[0]
        assert zeros == bytes(7)
        if kind == 1:
            picture = Image.open(io.BytesIO(message[16:]))
            assert picture.format == "JPEG"
            self.frames.append((timestamp, np.asarray(picture.convert("RGB"))))
            return "frame"
        assert kind == 2
        size = struct.unpack("<HHH", message[16:22])
        count = size[0] * size[1] * size[2]
        length = -(-count // 8)
        # what moved follows, where anything did
        parts = [message[at : at + length] for at in range(22, len(message), length)]
        assert [len(part) for part in parts] in ([length], [length] * 2)
        bits = [np.unpackbits(np.frombuffer(part, np.uint8))[:count] for part in parts]
        self.maps.append((timestamp, bits[0].reshape(size)))
        self.moved.append(bits[1].reshape(size) if bits[1:] else np.zeros(size, np.uint8))
        return "map"

    def until(self, kind: str, count: int = 1, seconds: float = WAIT) -> dict[str, Any]:
        """Listen until so many messages of a kind came; the last text of that kind."""
        end = time.monotonic() + seconds
        while count:
            heard = self.hear(max(end - time.monotonic(), 0))
            assert heard, f"no {kind} came in time"
            count -= heard == kind
            assert heard != "closed" or not count, f"closed with {self.code}: {self.texts[-1:]}"
        return next((text for text in reversed(self.texts) if text["type"] == kind), {})

    def ending(self) -> tuple[int, dict[str, Any]]:
        """The code that the socket is closed with, and the last text before that."""
        self.until("closed")
        assert self.code is not None
        return self.code, self.texts[-1] if self.texts else {}

    def works(self, start: float = 0.0, blocks: int = 1) -> None:
        """Send some blocks of frames and see them come back."""
        for number, picture in enumerate(pictures(12 * blocks)):
            self.send(start + number / 10, picture)
            if number % 12 == 11:
                self.until("frame", 12)
