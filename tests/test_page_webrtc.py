"""The page over WebRTC: a real browser, a real server, and a camera whose pictures tell their time.

The camera is dark and bright by turns of irregular length. So is what the bundled model makes of
it, which tells whether the page shows an edited frame beside the frame that it was made from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("aiortc")

CHROMIUM = Path("/usr/bin/chromium")
WAIT_MS = 120_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]

# what comes over the data channel, read before the page does
LISTEN = """
window.heard = [];
const create = RTCPeerConnection.prototype.createDataChannel;
RTCPeerConnection.prototype.createDataChannel = function (...args) {
  const channel = create.apply(this, args);
  channel.addEventListener("message", ({data}) => {
    if (typeof data === "string") return heard.push(JSON.parse(data));
    const view = new DataView(data);
    const shape = [16, 18, 20].map(at => view.getUint16(at, true));
    const bits = [...new Uint8Array(data, 22)].map(n => n.toString(2).padStart(8, "0")).join("");
    heard.push({type: "map", time: view.getFloat64(8, true), shape,
                bits: bits.slice(0, shape[0] * shape[1] * shape[2])});
  });
  return channel;
};
"""

# the mean colours of what is shown, each time that a frame is: result, and the source beside it
WATCH = """() => {
  window.shown = [];
  const mean = canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const sum = [0, 0, 0];
    for (let i = 0; i < data.length; i += 1) if (i % 4 < 3) sum[i % 4] += data[i];
    return sum.map(n => n / (data.length / 4));
  };
  let last = 0;
  const look = () => {
    requestAnimationFrame(look);
    const {frames, matched} = result.dataset;
    if (!frames || frames === last) return;
    last = frames;
    shown.push({result: mean(result), source: mean(document.getElementById("matched")),
                matched: Number(matched)});
  };
  look();
}"""

# all that the page says from now on
NOTE = """() => {
  const message = document.getElementById("message");
  window.said = [];
  new MutationObserver(() => said.push(message.textContent))
    .observe(message, { childList: true, characterData: true, subtree: true });
}"""

DRAWN = """canvas => {
  const {rows, columns, slot, recomputed} = canvas.dataset;
  return {patches: rows * columns, slot: Number(slot), recomputed: Number(recomputed)};
}"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of grey noise, dark or bright, as a file that Chromium takes for a camera."""
    path = tmp_path_factory.mktemp("camera") / "turns.y4m"
    random = np.random.default_rng(0)
    turns = np.repeat([50, 200] * 4, [9, 6, 7, 8, 5, 10, 9, 6])
    texture = random.integers(-20, 21, (192 // 16, 320 // 16, 1)).repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w", format="yuv4mpegpipe") as out:
        stream = out.add_stream("wrapped_avframe", rate=15)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for level in turns:
            pixels = np.broadcast_to(level + texture, (192, 320, 3)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    return path


@contextmanager
def _serving() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server with the bundled model and room for one: where it listens, and itself."""
    command = [
        sys.executable, "-m", "stillframe", "serve", "--port", "0", "--threads", "1",
        "--height", "96", "--width", "160", "--max-sessions", "1",
    ]  # fmt: skip
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        # what it does until then goes before
        line = next((line for line in server.stdout if "http://" in line), "it ended")
        yield next(word for word in line.split() if word.startswith("http://")), server
    finally:
        server.terminate()
        server.communicate(timeout=WAIT_MS / 1000)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with _serving() as (address, _):
        yield address


class Visit:
    """A page, and what it was told over its data channel."""

    def __init__(self, browser: Any, address: str) -> None:
        self.page = browser.new_page()
        self.faults: list[str] = []
        self.offers: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._asked)
        self.page.add_init_script(LISTEN)
        self.page.goto(address)

    def _asked(self, request: Any) -> None:
        if request.url.endswith("webrtc/offer"):
            self.offers.append(request.post_data_json["sdp"])

    def start(self) -> None:
        self.page.locator("#advanced summary").click()
        self.page.get_by_test_id("transport").select_option("webrtc")
        self.page.get_by_test_id("start").click()

    def runs(self) -> None:
        self.page.wait_for_selector("html[data-state=running]", timeout=WAIT_MS)
        self.page.evaluate(WATCH)
        self.page.wait_for_selector("#result[data-frames]", timeout=WAIT_MS)

    def all(self, kind: str) -> list[Any]:
        return [each for each in self.page.evaluate("heard") if each["type"] == kind]

    def shown(self) -> list[Any]:
        return list(self.page.evaluate("shown"))

    def until(self, condition: Any) -> None:
        end = time.monotonic() + WAIT_MS / 1000
        while not condition():
            assert time.monotonic() < end, self.page.evaluate("heard").__repr__()[-500:]
            self.page.wait_for_timeout(100)

    def state(self) -> str:
        return str(self.page.get_by_test_id("state").inner_text())


@contextmanager
def _browsing(*flags: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", *flags])
        yield browser
        browser.close()


@pytest.fixture
def browser(camera: Path) -> Iterator[Any]:
    """A browser in which the camera was allowed."""
    with _browsing(
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ) as browser:  # fmt: skip
        yield browser


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """A page that runs, and whose session ends with it: there is room for one."""
    visit = Visit(browser, address)
    visit.start()
    visit.runs()
    yield visit
    visit.page.close()
    _freed(address)


def _status(address: str) -> Any:
    with urllib.request.urlopen(f"{address}api/status", timeout=WAIT_MS / 1000) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of brightening grey, as a file to choose."""
    path = tmp_path_factory.mktemp("video") / "grey.webm"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=15)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for level in range(60, 180, 4):
            pixels = np.full((192, 320, 3), level, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def _freed(address: str) -> None:
    end = time.monotonic() + WAIT_MS / 1000
    while (status := _status(address))["sessions"]["open"] and time.monotonic() < end:
        time.sleep(0.1)
    assert (status["sessions"]["open"], status["telemetry"]) == (0, [])


def test_frames_are_shown_beside_what_they_were_made_from(visit: Visit, address: str) -> None:
    visit.until(lambda: len(visit.shown()) >= 60 and len(visit.all("map")) >= 3)
    shown = visit.shown()
    result = np.array([np.mean(each["result"]) for each in shown])
    source = np.array([np.mean(each["source"]) for each in shown])
    matched = np.diff([each["matched"] for each in shown]) > 0
    assert np.ptp(result) > 50
    assert matched.mean() > 0.8
    bright = [each > (each.min() + each.max()) / 2 for each in (result[1:], source[1:])]
    assert (bright[0] == bright[1])[matched].mean() > 0.85

    for block, told in zip(visit.all("telemetry"), visit.all("map"), strict=False):
        assert told["bits"].count("1") / len(told["bits"]) == pytest.approx(
            block["kept_share"], abs=1e-3
        )
    visit.page.wait_for_selector("#overlay[data-block]", timeout=WAIT_MS)
    drawn = visit.page.get_by_test_id("overlay").evaluate(DRAWN)
    first, patches = drawn["slot"] * drawn["patches"], drawn["patches"]
    assert drawn["recomputed"] in {
        told["bits"][first : first + patches].count("1") for told in visit.all("map")
    }
    latency = visit.page.get_by_test_id("value-latency").get_attribute("data-value")
    assert 0.1 < float(latency) < 20
    assert ".local" not in visit.offers[0]
    assert _status(address)["sessions"]["open"] == 1
    assert visit.faults == []


def test_another_prompt_shows_and_stop_frees_the_session(visit: Visit, address: str) -> None:
    def saturation(shown: list[Any]) -> float:
        colours = np.array([each["result"] for each in shown])
        return float(np.median(np.ptp(colours, axis=1)))

    visit.page.get_by_test_id("style-noir").click()
    visit.until(lambda: len(visit.all("updated")) == 1)
    # frames of the style before are still on their way
    early = len(visit.shown())
    visit.until(lambda: len(visit.shown()) >= early + 48)
    before = len(visit.shown())
    visit.page.get_by_test_id("style-sepia").click()
    visit.until(lambda: len(visit.all("updated")) == 2)
    since = len(visit.shown())
    block = visit.all("updated")[1]["from_block"]
    visit.until(lambda: visit.all("telemetry")[-1]["block"] >= block + 2)
    visit.until(lambda: len(visit.shown()) >= since + 48)
    grey, brown = saturation(visit.shown()[before - 12 : before]), saturation(visit.shown()[-12:])
    assert brown > 2 * grey + 5, (grey, brown)
    assert len(visit.all("ready")) == 1

    visit.page.keyboard.press("Escape")
    assert visit.state() == "Idle"
    _freed(address)
    assert visit.faults == []


def test_a_file_source_connects_although_the_browser_hides_its_address(
    address: str, video: Path
) -> None:
    def choose(visit: Visit) -> Visit:
        visit.page.get_by_test_id("kind-file").check(force=True)
        visit.page.get_by_test_id("file").set_input_files(str(video))
        visit.start()
        return visit

    with _browsing() as browser:
        visit = choose(Visit(browser, address))
        visit.runs()
        assert ".local" in visit.offers[0]
        visit.until(lambda: len(visit.shown()) >= 12)
        assert visit.shown()[-1]["matched"] > 0
        assert visit.page.get_by_test_id("transport").is_disabled()
        second = choose(Visit(browser, address))
        second.page.wait_for_selector("html[data-state=refused]", timeout=WAIT_MS)
        assert "full" in second.page.get_by_test_id("message").inner_text()
        visit.page.close()
        _freed(address)


def test_a_page_that_goes_takes_its_session_along(visit: Visit, address: str) -> None:
    visit.page.reload()
    _freed(address)
    assert visit.state() == "Idle"
    assert visit.page.get_by_test_id("transport").input_value() == "webrtc"


def test_a_server_that_dies_is_told_of(browser: Any) -> None:
    with _serving() as (address, server):
        visit = Visit(browser, address)
        visit.start()
        visit.runs()
        visit.page.evaluate(NOTE)
        server.kill()
        visit.page.wait_for_selector("html[data-state=waiting]", timeout=WAIT_MS)
        # it may have tried again by now
        said = [text for text in visit.page.evaluate("said") if "Trying again" in text]
        assert said[0] == "The connection to the server was lost. Trying again in 1 s."


FIND = """async ([ticks, lost]) => {
  const {Clock} = await import("/static/clock.js");
  const clock = new Clock();
  const wrapped = tick => tick % 2 ** 32;
  ticks.forEach(tick => {
    clock.requested(tick / 90000 - .004);
    clock.sent(wrapped(tick + 2 ** 32 - 99), tick / 90000 + .002);
  });
  const there = ticks.slice(lost[0]);  // the server did not see those before
  const back = there.slice(lost[1]);   // nor the page these
  clock.came(wrapped(back[0] + 12345));
  const maps = there.map(tick => clock.ofMap((tick - there[0]) / 90000));
  const results = back.map(tick => clock.ofResult(wrapped(tick + 12345)));
  return [maps, results];
}"""


@pytest.mark.parametrize("lost", [(0, 0), (3, 0), (0, 2), (2, 3)])
def test_times_are_found_although_first_frames_are_lost(
    browser: Any, address: str, lost: tuple[int, int]
) -> None:
    steps = np.random.default_rng(0).integers(4000, 8000, 60)
    ticks = np.cumsum(steps)
    page = browser.new_page()
    page.goto(address)
    maps, results = page.evaluate(FIND, [ticks.tolist(), list(lost)])
    for found, first in ((maps, lost[0]), (results, sum(lost))):
        truth = ticks[first:] / 90000 - 0.004
        known = [(each, true) for each, true in zip(found, truth, strict=True) if each is not None]
        wrong = [abs(each - true) > 1e-9 for each, true in known]
        # without losses the first guess is right; else the second frame shows that it was not
        assert sum(wrong) <= (first > 0)
        assert not any(wrong[2:])
        assert len(known) >= len(found) - 6
