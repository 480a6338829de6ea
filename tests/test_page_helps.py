"""What the page does for whoever uses it, in a real browser against a real server.

The server runs the bundled model, or a tiny one where its pictures do not matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests import tiny
from tests.chromium import CHROMIUM, Browser, Tab
from tests.page_fixtures import (
    ASKS,
    STATE,
    browser_fixture,  # noqa: F401
    opened,
    put,
    says,
    shows,
    start,
    text,
)
from tests.server_fixtures import WAIT, Server, serving, wait_until

from stillframe.loading.load import find_model, model_styles, style_pictures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]

TOKEN = "a-token-of-letters-0123"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    styles, pictures = model_styles("tiny"), style_pictures("tiny")
    with serving(pipe, max_sessions=1, styles=styles, style_pictures=pictures) as running:
        yield running


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    tab = opened(browser, server.port)
    yield tab
    tab.close()
    wait_until(lambda: server.state.connections.open == 0)


# before it starts


def test_a_size_is_chosen_by_what_the_machine_keeps_up_with(tab: Tab, server: Server) -> None:
    start(tab)
    told = tab.js("fetch('api/speed').then((answer) => answer.json())")
    chosen = told["sizes"][told["chosen"]]
    assert text(tab, "source-note") == f"{chosen['width']}×{chosen['height']}"
    said = text(tab, "size-note")
    assert f"{chosen['width']}×{chosen['height']} at " in said
    assert "would be" in said, "what larger would cost"
    options = tab.js("[...document.getElementById('size').options].map((each) => each.textContent)")
    assert len(options) == 1 + len(told["sizes"])
    assert all("fps" in option for option in options[1:])


def test_smaller_is_one_click_and_the_source_goes_on(browser: Browser, server: Server) -> None:
    tab = opened(browser, server.port, ASKS)
    tab.until("document.querySelectorAll('#size option').length > 5")
    put(tab, "size", "320×192")
    start(tab)
    assert text(tab, "source-note") == "320×192"
    tab.click("#smaller")
    tab.until("document.getElementById('source-note').textContent === '240×144'")
    tab.until(f"{STATE} === 'running'")
    shows(tab)
    assert tab.js("[result.width, result.height]") == [240, 144]
    assert tab.js("window.asked") == 1, "the camera was opened once"
    assert server.state.open_sessions.open == 1
    tab.close()
    wait_until(lambda: server.state.connections.open == 0)


@pytest.mark.parametrize("fragment", ["", "#token=not-the-right-token-9"])
def test_a_wrong_token_offers_a_field_before_the_camera_is_asked_for(
    browser: Browser, pipe: Any, fragment: str
) -> None:
    browser.call("Storage.clearCookies")
    with serving(pipe, token=TOKEN, height=64, width=96) as server:
        tab = opened(browser, server.port, ASKS, fragment)
        tab.until("!document.getElementById('token-form').hidden")
        tab.click("#start")
        tab.until("document.documentElement.hasAttribute('data-failed')")
        assert "token" in tab.message
        for wrong in ("no", "wrong-token-wrong-token", "snö-snö-snö-snö-snö"):
            put(tab, "token", wrong)
            tab.click("#token-send")
            tab.until(says("token-note", "not the server"))
            tab.until("!document.getElementById('token-send').disabled")
        assert tab.js("window.asked") == 0
        put(tab, "token", TOKEN)
        tab.click("#token-send")
        tab.until("document.getElementById('token-form').hidden")
        put(tab, "prompt", "oil")
        start(tab)
        assert tab.js("window.asked") == 1
        # the browser keeps it where no page can read it
        kept = tab.js("document.cookie + location.href + JSON.stringify(localStorage)")
        assert TOKEN not in kept
        tab.close()


# while it runs


@contextmanager
def _process(port: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a process that can be killed: where it listens, and itself."""
    command = [
        sys.executable, "-m", "stillframe", "serve", "--port", str(port), "--threads", "1",
        "--height", "64", "--width", "96", "--max-sessions", "1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "COLUMNS": "200"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            # what it does until then goes before
            line = next((line for line in process.stdout if "http://" in line), "it ended")
            yield int(line.split("127.0.0.1:")[1].split("/")[0]), process
        finally:
            process.kill()


@pytest.mark.parametrize("suddenly", [True, False])
def test_a_lost_connection_comes_back_by_itself(browser: Browser, suddenly: bool) -> None:
    with _process(0) as (port, first):
        tab = opened(browser, port, ASKS)
        start(tab)
        (first.kill if suddenly else first.terminate)()
        tab.until(f"{STATE} === 'waiting'")
        first.wait(WAIT)
        pauses: list[int] = []
        while len(pauses) < 3:  # each is longer than the one before
            said = tab.until(
                "document.getElementById('message').textContent.match(/again in (\\d+) s/)?.[1]"
            )
            if not pauses or int(said) != pauses[-1]:
                pauses.append(int(said))
        assert pauses == sorted(pauses)
        assert pauses[-1] > pauses[0]
    with _process(port):
        tab.until(f"{STATE} === 'running'")
        shows(tab)
        assert tab.js("window.asked") == 1, "the camera stayed open"
        tab.click("#stop")
        assert tab.js(STATE) == "idle"
    tab.close()


def test_waiting_for_a_server_can_be_ended(browser: Browser) -> None:
    with _process(0) as (port, first):
        tab = opened(browser, port)
        start(tab)
        first.kill()
        tab.until(f"{STATE} === 'waiting'")
        tab.click("#stop")
        assert tab.js(STATE) == "idle"
        time.sleep(2.5)
        assert tab.js(STATE) == "idle"
        tab.close()


def test_a_damaged_picture_is_dropped_and_counted(tab: Tab) -> None:
    start(tab)
    tab.js("""(() => {
      const whole = HTMLCanvasElement.prototype.toBlob;
      let number = 0;
      HTMLCanvasElement.prototype.toBlob = function (done, ...rest) {
        number += 1;
        if (number !== 3) return whole.call(this, done, ...rest);
        whole.call(this, (blob) => done(blob.slice(0, 200)), ...rest);
      };
    })()""")
    tab.until(says("message", "1 frame could not be used"))
    tab.until(says("sub-fps", "1 damaged"))
    shows(tab)
    assert tab.js(STATE) == "running"


def test_a_damaged_picture_of_the_server_is_left_out(tab: Tab) -> None:
    start(tab)
    tab.js("""(() => {
      const make = window.createImageBitmap;
      let left = 1;
      window.createImageBitmap = (what, ...rest) => {
        const torn = what instanceof Blob && left-- === 1;
        return make(torn ? what.slice(0, 99) : what, ...rest);
      };
    })()""")
    tab.until(says("sub-fps", "1 damaged"))
    shows(tab)
    assert tab.js(STATE) == "running"


def test_what_a_prompt_is_matched_to_is_shown(tab: Tab) -> None:
    start(tab)
    put(tab, "prompt", "a village by van Gogh")
    tab.click("#apply")
    tab.until(says("match", "oil, 0.7 of 1"))
    put(tab, "prompt", "brutalism")
    tab.click("#apply")
    tab.until(says("match", "no style"))
    shows(tab)


def test_styles_have_pictures_of_the_model_s_own(tab: Tab) -> None:
    names = [style.name for style in model_styles("tiny")]
    tab.until(f"document.querySelectorAll('#styles [data-drawn]').length === {len(names)}")
    colours = tab.js("""[...document.querySelectorAll('#styles canvas')].map((canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const sum = [0, 0, 0];
      for (let i = 0; i < data.length; i += 1) if (i % 4 < 3) sum[i % 4] += data[i];
      return sum.map((each) => each / (data.length / 4));
    })""")
    by_name = dict(zip(names, colours, strict=True))
    assert max(by_name["noir"]) - min(by_name["noir"]) < 12, "grey"
    assert by_name["blueprint"][2] > by_name["blueprint"][0] + 60, "blue"
    assert by_name["sepia"][0] > by_name["sepia"][2] + 20, "brown"
    assert (Path(find_model("tiny")) / "styles.webp").stat().st_size < 60_000


def test_presets_are_kept_used_and_deleted(browser: Browser, server: Server) -> None:
    tab = opened(browser, server.port)
    put(tab, "tolerance", "7.5")
    put(tab, "blend", "4")
    put(tab, "preset-name", "Evening")
    tab.click("#preset-save")
    put(tab, "preset", "Usual")
    assert tab.js("[tolerance.value, blend.value]") == ["", "0"]
    tab.close()
    tab = opened(browser, server.port)
    put(tab, "preset", "Evening")
    assert tab.js("[tolerance.value, blend.value]") == ["7.5", "4"]
    tab.click("#preset-delete")
    assert not tab.js("[...preset.options].some((each) => each.value === 'Evening')")
    put(tab, "preset", "Usual")
    tab.close()


def test_a_seed_a_blend_and_a_preset_reach_the_server(browser: Browser, server: Server) -> None:
    tab = opened(browser, server.port, """
      const send = WebSocket.prototype.send;
      window.said = [];
      WebSocket.prototype.send = function (data) {
        if (typeof data === "string") window.said.push(JSON.parse(data));
        send.call(this, data);
      };
    """)  # fmt: skip
    put(tab, "seed", "7")
    put(tab, "blend", "4")
    start(tab)
    hello = tab.js("window.said[0]")
    assert (hello["seed"], hello["blend"]) == (7, 4)
    assert tab.js("document.getElementById('seed').disabled")
    put(tab, "preset", "Fast")
    tab.until("window.said.some((each) => each.tolerance === 8)")
    tab.until("window.said.some((each) => each.type === 'update' && each.blend === 0)")
    tab.until("document.getElementById('message').textContent.startsWith('New')")
    put(tab, "preset", "Usual")
    put(tab, "seed", "")
    tab.close()
    wait_until(lambda: server.state.connections.open == 0)


def test_a_snapshot_is_what_the_result_shows_and_full_screen_its_frame(
    tab: Tab, tmp_path: Path
) -> None:
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    start(tab)
    tab.click("#snapshot")
    wait_until(lambda: list(tmp_path.glob("stillframe-*.png")))
    [found] = tmp_path.glob("stillframe-*.png")
    with Image.open(found) as picture:
        assert list(picture.size) == tab.js("[result.width, result.height]")
        assert len(picture.getcolors(2**20) or ()) > 50
    tab.click("#fullscreen")
    tab.until("document.fullscreenElement?.contains(document.getElementById('result'))")
    tab.js("document.exitFullscreen()")
