"""A study's page in a real browser: in step, by keys and by touch, and nobody is kept out."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chromium import CHROMIUM, Browser, Tab
from tests.page_fixtures import (
    axe_core,
    browser_fixture,  # noqa: F401
    findings,
    opened,
    resized,
    themed,
)
from tests.server_fixtures import WAIT
from tests.study_fixtures import make_folder, running

from stillframe.study.participants import Participants
from stillframe.study.votes import Vote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]

FPS = 25
SCREEN = "document.documentElement?.dataset.screen"
READY = "document.querySelector('[data-vote]').getAttribute('aria-disabled') === 'false'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return make_folder(folder, ["pruned", "dense", "source"], frames=2 * FPS, size=(416, 240))


@pytest.fixture
def study(folder: Path) -> Iterator[tuple[int, Participants]]:
    with running(folder) as found:
        yield found
    (folder / "votes.jsonl").unlink()


def fitted(tab: Tab, width: int, height: int = 900, density: float = 1) -> None:
    resized(tab, width, height, density, phone=width < 500)
    tab.js("dispatchEvent(new Event('resize'))")


def begun(browser: Browser, port: int, name: str = "", width: int = 1440, script: str = "") -> Tab:
    """The page with the first pair on it."""
    tab = opened(browser, port, script)
    fitted(tab, width)
    tab.until(f"{SCREEN} === 'welcome'")
    tab.js(f"document.getElementById('name').value = {json.dumps(name)}")
    tab.click("#begin")
    tab.until(READY)
    return tab


def press(tab: Tab, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": key} if len(key) == 1 else {}
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, **text)


def votes(study: Participants) -> list[Vote]:
    return study._votes.ballots.all


def seen_together(tab: Tab, seconds: float) -> list[list[float | None]]:
    """Media times of what both videos show, picture by picture of the screen."""
    return tab.js(f"""new Promise((done) => {{
      const shown = [null, null], seen = [], until = performance.now() + {1000 * seconds};
      ["left", "right"].forEach((name, i) => {{
        const video = document.getElementById(name);
        const took = (now, {{ mediaTime }}) => {{
          shown[i] = mediaTime;
          if (now < until) video.requestVideoFrameCallback(took);
        }};
        video.requestVideoFrameCallback(took);
      }});
      const look = (now) => {{
        seen.push([...shown]);
        if (now < until) requestAnimationFrame(look); else done(seen);
      }};
      requestAnimationFrame(look);
    }})""")


def apart(seen: list[list[float | None]]) -> float:
    """Frames by which the sides differ at the median: on a busy machine some pictures are late."""
    both = [abs(a - b) * FPS for a, b in seen if a is not None and b is not None]
    return float(statistics.median(both)) if both else math.inf


def test_both_sides_play_in_step_also_after_a_seek_and_a_push(
    browser: Browser, study: tuple[int, Participants]
) -> None:
    tab = begun(browser, study[0])
    times: list[float] = []
    end = time.monotonic() + WAIT
    # to the end, and from the beginning again
    while not times or max(times) - min(times) < 1.5 or times == sorted(times):
        assert time.monotonic() < end, "it does not play, or not to the end"
        times += [a for a, _ in seen_together(tab, 1) if a is not None]
    while apart(seen_together(tab, 1)) > 1.01:
        assert time.monotonic() < end, "it does not play in step"
    tab.click("#play")
    tab.js("""(() => { const seek = document.getElementById('seek'); seek.value = 500;
      seek.dispatchEvent(new Event('input', { bubbles: true })); })()""")
    where = "['left', 'right'].map((name) => document.getElementById(name).currentTime)"
    tab.until(f"{where}.every((time) => Math.abs(time - 1) < 0.02)")
    still = tab.js(where)
    seen_together(tab, 0.5)
    assert tab.js(where) == still
    tab.close()


# moves one side, counts seeks from then on, and keeps how far the sides are apart, in seconds
PUSH = """(by) => {
  const [left, right] = ["left", "right"].map((name) => document.getElementById(name));
  Object.assign(window, { seeks: { left: 0, right: 0 }, apart: [] });
  for (const video of [left, right]) {
    video.addEventListener("seeking", () => { window.seeks[video.id] += 1; });
  }
  right.currentTime = left.currentTime + by;
  const look = () => {
    window.apart.push(Math.abs(right.currentTime - left.currentTime));
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


@pytest.mark.parametrize(("by", "seeks"), [(0.2, 1), (2.0, 2)])
def test_a_side_that_is_elsewhere_is_brought_back_by_its_rate_or_by_a_seek(
    browser: Browser, tmp_path: Path, by: float, seeks: int
) -> None:
    # long enough that it is not beginning again together that brings it back
    seconds = 30
    make_folder(tmp_path, ["pruned", "dense"], ["a"], frames=seconds * FPS, size=(64, 48))
    with running(tmp_path) as (port, _):
        tab = begun(browser, port)
        tab.js(f"({PUSH})({by})")
        tab.until(
            f"window.apart.length > 20 && window.apart.slice(-20).every((a) => a * {FPS} < 1)"
        )
        sought = tab.js("window.seeks")
        assert sought["left"] == 0, "it began again"
        assert sought["right"] >= seeks, "as far as that, it is sought anew"
        tab.close()


def test_keys_vote_and_take_back(browser: Browser, study: tuple[int, Participants]) -> None:
    begin = time.monotonic()
    tab = begun(browser, study[0], "Anna")
    said = []
    for key, expected in (("1", "left"), ("ArrowDown", "same")):
        count = tab.js("document.getElementById('count').textContent")
        tab.until("document.getElementById('left').currentTime > 0.3")
        press(tab, key)
        tab.until(f"document.getElementById('count').textContent !== '{count}' && {READY}")
        said.append(expected)
        assert [vote.vote for vote in votes(study[1])] == said
    assert votes(study[1])[0].participant == "anna"
    assert 0 < votes(study[1])[0].seconds < time.monotonic() - begin
    assert tab.js("document.getElementById('count').textContent") == "3 of 3"
    press(tab, "u")
    tab.until(f"document.getElementById('count').textContent === '2 of 3' && {READY}")
    assert tab.js("document.getElementById('undo').hidden")
    # who is away and comes back goes on there
    tab.js("location.reload()")
    tab.until(f"{SCREEN} === 'paused'")
    assert tab.js("document.getElementById('paused-title').textContent") == "1 of 3 done"
    tab.click("#resume")
    tab.until(READY)
    for key in ("3", "ArrowRight"):
        tab.until(READY)
        press(tab, key)
        tab.until(f"{SCREEN} === 'done' || document.getElementById('count').textContent[0] === '3'")
    tab.until(f"{SCREEN} === 'done'")
    assert [vote.vote for vote in votes(study[1])] == ["left", "right", "right"]
    text = tab.js("document.body.innerText")
    assert "Thank you" in text
    assert not {"pruned", "dense"} & set(text.casefold().split())
    tab.close()


def test_a_vote_needs_a_pair_that_plays(browser: Browser, study: tuple[int, Participants]) -> None:
    tab = begun(browser, study[0])
    tab.js("document.querySelector('[data-vote=left]').focus()")
    # twice at once is one vote
    tab.js("for (let n = 0; n < 3; n += 1) document.querySelector('[data-vote=left]').click()")
    tab.until(f"document.getElementById('count').textContent === '2 of 3' && {READY}")
    assert len(votes(study[1])) == 1
    assert tab.js("document.activeElement.dataset.vote") == "left", "the keyboard lost its place"
    tab.close()


# does something when both sides have been told to play, and neither has begun
STARTING = """
const play = HTMLMediaElement.prototype.play;
let told = 0;
HTMLMediaElement.prototype.play = function () {
  told += 1;
  if (told === 2) queueMicrotask(() => { %s });
  return play.call(this);
};
"""
SEEKS = """const seek = document.getElementById("seek");
seek.value = 500;
seek.dispatchEvent(new Event("input", { bubbles: true }));"""


def test_a_seek_while_a_pair_starts_leaves_it_open_to_a_vote(
    browser: Browser, study: tuple[int, Participants]
) -> None:
    tab = begun(browser, study[0], script=STARTING % SEEKS)
    press(tab, "1")
    tab.until(f"document.getElementById('count').textContent === '2 of 3' && {READY}")
    assert [vote.vote for vote in votes(study[1])] == ["left"]
    tab.close()


def test_time_does_not_count_while_a_pair_that_was_stopped_as_it_began_stands_still(
    browser: Browser, study: tuple[int, Participants]
) -> None:
    tab = begun(browser, study[0], script=STARTING % "document.getElementById('play').click();")
    assert tab.js("document.getElementById('left').paused")
    time.sleep(0.5)
    press(tab, "1")
    tab.until(f"document.getElementById('count').textContent === '2 of 3' && {READY}")
    assert [vote.seconds for vote in votes(study[1])] == [0]
    tab.close()


@pytest.mark.parametrize(
    ("width", "density", "shown", "warns"),
    [(1440, 1, 416, False), (1800, 1, 832, False), (950, 1, 416, False), (390, 3, 366, False),
     (390, 1, 366, True), (905, 1, 416, False)],
)  # fmt: skip
def test_no_pixel_is_lost_unless_it_is_said(
    browser: Browser, study: tuple[int, Participants], width: int, density: float, shown: int,
    warns: bool,
) -> None:  # fmt: skip
    tab = begun(browser, study[0])
    fitted(tab, width, 1000, density)
    boxes = tab.js("""['left', 'right'].map((name) => {
      const { left, top, width } = document.getElementById(name).getBoundingClientRect();
      return [left, top, width];
    })""")
    assert boxes[0][2] == boxes[1][2] == pytest.approx(shown, abs=2)
    stacked = boxes[0][0] == boxes[1][0] and boxes[1][1] > boxes[0][1]
    assert stacked == (width <= 900)
    note = tab.js("document.getElementById('size-note').textContent")
    assert ("too small" in note) == warns
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    tab.close()


def test_the_source_plays_along(browser: Browser, study: tuple[int, Participants]) -> None:
    tab = begun(browser, study[0])
    assert tab.js("document.getElementById('source-film').hidden")
    press(tab, "s")
    tab.until("document.getElementById('source').currentTime > 0.3")
    left, source = (f"document.getElementById('{name}').currentTime" for name in ("left", "source"))
    tab.until(f"{source} > 0.3 && Math.abs({left} - {source}) < {2.01 / FPS}")
    tab.close()


@pytest.mark.skipif(axe_core() is None, reason="needs axe-core: STILLFRAME_AXE=.../axe.min.js")
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(
    browser: Browser, study: tuple[int, Participants], theme: str, width: int
) -> None:
    axe = axe_core()
    assert axe is not None
    tab = begun(browser, study[0], width=width)
    themed(tab, theme)
    tab.js(axe.read_text())
    assert findings(tab) == []
    tab.js("document.getElementById('alert').textContent = 'That did not work.'")
    press(tab, "s")
    tab.until("document.getElementById('source').currentTime > 0")
    assert findings(tab) == []
    tab.click("#leave")
    assert findings(tab) == []
    tab.click("#other")
    assert findings(tab) == []
    tab.close()


def test_where_others_reach_it_the_page_asks_for_the_token(browser: Browser, folder: Path) -> None:
    token = "a-token-of-some-letters"
    with running(folder, host="0.0.0.0", token=token) as (port, study):
        for fragment in ("", f"#token={token}"):
            tab = opened(browser, port, fragment=fragment)
            if not fragment:
                tab.until("!document.getElementById('token-form').hidden")
                assert tab.js(f"{SCREEN}") == "loading"
                tab.js(f"document.getElementById('token').value = '{token}'")
                tab.click("#token-send")
            tab.until(f"{SCREEN} === 'welcome' || {SCREEN} === 'paused'")
            tab.click("#resume" if tab.js(SCREEN) == "paused" else "#begin")
            tab.until(READY)
            press(tab, "2")
            tab.until(f"document.getElementById('undo').hidden === false && {READY}")
            assert "token" not in tab.js("location.href")
            tab.close()
        assert [vote.vote for vote in votes(study)] == ["same", "same"]
    (folder / "votes.jsonl").unlink()


def test_what_goes_wrong_is_said_and_nothing_is_lost(browser: Browser, folder: Path) -> None:
    with running(folder) as (port, study):
        tab = begun(browser, port, "anna")
        # judged elsewhere meanwhile: the page goes on to what comes next
        study.vote("anna", study.state("anna")["trial"]["id"], "left", 1.0, 0)
        press(tab, "3")
        tab.until(f"document.getElementById('count').textContent === '2 of 3' && {READY}")
        assert tab.js("document.getElementById('alert').textContent") == ""
        assert [vote.vote for vote in votes(study)] == ["left"]
    press(tab, "3")
    tab.until("document.getElementById('alert').textContent.includes('cannot be reached')")
    assert tab.js(SCREEN) == "compare"
    tab.close()
    (folder / "votes.jsonl").unlink()
