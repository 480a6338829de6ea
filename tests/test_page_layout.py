"""How the page is laid out, and that nobody is kept out: in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests import tiny
from tests.chromium import CHROMIUM, Browser, Tab
from tests.page_fixtures import (
    axe_core,
    browser_fixture,  # noqa: F401
    findings,
    opened,
    resized,
    start,
    themed,
)
from tests.server_fixtures import Server, serving, wait_until

from stillframe.loading.load import model_styles, style_pictures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    styles, pictures = model_styles("tiny"), style_pictures("tiny")
    with serving(
        tiny.pipeline(), max_sessions=1, styles=styles, style_pictures=pictures
    ) as running:
        yield running


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    tab = opened(browser, server.port)
    yield tab
    tab.close()
    wait_until(lambda: server.state.connections.open == 0)


def test_on_a_phone_the_result_stays_in_view_while_typing(browser: Browser, server: Server) -> None:
    tab = opened(browser, server.port)
    resized(tab, 390, 460, phone=True)
    tab.js("document.getElementById('prompt').focus()")
    tab.js("document.getElementById('prompt').scrollIntoView({ block: 'center' })")
    box = "(({ top, bottom }) => [top, bottom])(%s.getBoundingClientRect())"
    result, prompt = tab.js(box % "window.result"), tab.js(box % "document.activeElement")
    assert 0 <= result[0] < result[1] <= 460
    assert result[1] <= prompt[0] < prompt[1] <= 460
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    tab.close()


def test_ids_and_headings_are_there_once(tab: Tab) -> None:
    twice = "(names) => names.filter((name, i) => names.indexOf(name) !== i)"
    for what, name in (("[id]", "id"), ("h1, h2, summary", "textContent")):
        names = f"[...document.querySelectorAll('{what}')].map((each) => each.{name}.trim())"
        assert tab.js(f"({twice})({names})") == []


@pytest.mark.skipif(axe_core() is None, reason="needs axe-core: STILLFRAME_AXE=.../axe.min.js")
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, server: Server, theme: str, width: int) -> None:
    axe = axe_core()
    assert axe is not None
    tab = opened(browser, server.port)
    resized(tab, width)
    themed(tab, theme)
    tab.js("document.getElementById('advanced').open = true")
    tab.js(axe.read_text())
    assert findings(tab) == []
    tab.js("document.getElementById('token-form').hidden = false")
    start(tab)
    assert findings(tab) == []
    tab.close()
    wait_until(lambda: server.state.connections.open == 0)


def test_without_styles_or_pictures_there_is_no_room_for_them(browser: Browser) -> None:
    styles = model_styles("tiny")
    for known, seen in ((styles, [len(styles), 0]), ((), [0, 0])):
        with serving(tiny.pipeline(), styles=known) as server:
            tab = opened(browser, server.port)
            tab.until("document.getElementById('size-note').textContent.includes('fps')")
            chips = "document.querySelectorAll('#styles button').length"
            pictures = "[...document.querySelectorAll('#styles canvas')].filter((e) => !e.hidden)"
            assert tab.js(f"[{chips}, {pictures}.length]") == seen
            assert (tab.js("document.getElementById('styles').clientHeight") > 0) == bool(known)
            tab.close()
