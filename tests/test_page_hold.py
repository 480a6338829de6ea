"""What the page holds, in a real browser: set by hand, and seen in what the server tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.test_live_page import (
    CHROMIUM,
    WAIT_MS,
    Tap,
    address,  # noqa: F401
    camera,  # noqa: F401
    open_sessions,
)

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]


@pytest.fixture(name="tap")
def page_that_runs(camera: Path, address: str) -> Iterator[Tap]:  # noqa: F811
    flags = (
        "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    )  # fmt: skip
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=list(flags))
        tap = Tap(browser.new_page())
        tap.page.on("websocket", lambda socket: socket.on("framesent", lambda d: sent(tap, d)))
        tap.page.goto(address)
        yield tap
        tap.page.close()
        tap.becomes(lambda: open_sessions(address) == 0)
        browser.close()


def sent(tap: Tap, data: str | bytes) -> None:
    if isinstance(data, str):
        tap.heard.append(("said", json.loads(data)))


def start(tap: Tap) -> None:
    tap.page.get_by_test_id("start").click()
    tap.page.wait_for_selector("html[data-state=running]", timeout=WAIT_MS)
    tap.until("telemetry", 2)


def until(tap: Tap, right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first block from now on of which something is true."""
    seen = len(tap.all("telemetry"))
    for _ in tap.waiting("telemetry"):
        for block in tap.all("telemetry")[seen:]:
            if right(block):
                return dict(block)
    raise AssertionError


def target(block: dict[str, Any]) -> tuple[float | None, str | None]:
    rate = block.get("rate") or {}
    return rate.get("target_fps"), rate.get("mode")


def seen_text(tap: Tap, name: str, part: str) -> None:
    """Wait until something is to be read on the page."""
    sync_api.expect(tap.page.get_by_test_id(name)).to_contain_text(part, timeout=WAIT_MS)


def test_a_rate_is_held_changed_and_let_go_with_the_keyboard(tap: Tap) -> None:
    page = tap.page
    start(tap)
    assert all("rate" not in block for block in tap.all("telemetry"))
    assert page.get_by_test_id("hold-fps").is_hidden()
    page.get_by_test_id("hold-off").focus()
    page.keyboard.press("ArrowRight")
    until(tap, lambda block: target(block) == (15, "capped"))
    seen_text(tap, "hold-note", "Working at")
    page.get_by_test_id("rate").select_option("8")
    until(tap, lambda block: target(block) == (8, "capped"))

    page.get_by_test_id("hold-source").focus()
    page.keyboard.press("ArrowRight")
    # 12 are asked for, and no more than 8 come in
    until(tap, lambda block: target(block) == (8, "constant"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "hold-fps"
    page.keyboard.press("Control+a")
    page.keyboard.type("0.5")
    page.keyboard.press("Enter")
    slow = until(tap, lambda block: target(block) == (0.5, "constant"))
    assert not slow["rate"]["out_of_reach"]
    # 24 s a block are enough for everything
    until(tap, lambda block: target(block)[0] == 0.5 and block["kept_share"] == 1)
    sync_api.expect(page.get_by_test_id("hold-reach")).to_be_hidden(timeout=WAIT_MS)
    count = len(tap.all("said"))
    page.get_by_test_id("hold-fps").fill("0")
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)
    assert len(tap.all("said")) == count, "what is out of range is not sent"

    page.get_by_test_id("hold-off").check(force=True)
    until(tap, lambda block: "rate" not in block)
    seen_text(tap, "hold-note", "follows the motion")
    numbers = [block["block"] for block in tap.all("telemetry")]
    assert numbers == list(range(len(numbers))), "one stream, and no block is missing"
    assert len(tap.all("ready")) == 1
    assert tap.faults == []


def test_what_is_out_of_reach_is_said(tap: Tap) -> None:
    page = tap.page
    page.locator("#advanced summary").click()
    page.get_by_test_id("size").select_option("832×480")
    page.get_by_test_id("rate").select_option("30")
    page.get_by_test_id("hold-rate").check(force=True)
    page.get_by_test_id("hold-fps").fill("120")
    start(tap)
    (hello, *_) = tap.all("said")
    assert (hello["target_fps"], hello["rate_mode"]) == (30, "constant")
    assert (hello["refresh"], hello["cuts"]) == (None, False)
    until(tap, lambda block: target(block)[0] == 30 and block["rate"]["out_of_reach"])
    seen_text(tap, "hold-reach", "30 fps is out of reach")
    page.get_by_test_id("hold-fps").fill("3")
    page.keyboard.press("Enter")
    until(tap, lambda block: target(block)[0] == 3)
    reach = sync_api.expect(page.get_by_test_id("hold-reach"))
    reach.not_to_contain_text("30 fps", timeout=WAIT_MS)
    # what is told of 3 is of eight blocks, and 3 may be out of reach as well
    page.get_by_test_id("hold-off").check(force=True)
    until(tap, lambda block: "rate" not in block)
    reach.to_be_hidden(timeout=WAIT_MS)
    assert tap.faults == []


SAID = """async (rate) => {
  const {showRate} = await import("/static/controls.js");
  showRate({rate});
  const reach = document.getElementById("hold-reach");
  return reach.hidden ? "" : reach.textContent;
}"""


def test_trouble_with_a_rate_is_said_for_as_long_as_there_is_some(tap: Tap) -> None:
    rate = {"target_fps": 30, "share": 0.5, "achieved": 29, "limit": 8, "behind": False}
    assert tap.page.evaluate(SAID, {**rate, "out_of_reach": False}) == ""
    late = tap.page.evaluate(SAID, {**rate, "out_of_reach": True})
    assert late == "30 fps is out of reach: 8 fps at most."
    stale = tap.page.evaluate(SAID, {**rate, "out_of_reach": False, "behind": True})
    assert stale.startswith("The picture is falling behind")
    assert tap.page.evaluate(SAID, {**rate, "out_of_reach": False}) == ""


def test_refreshes_and_cuts_and_recomputing_all(tap: Tap) -> None:
    page = tap.page
    start(tap)
    page.get_by_test_id("hold-rate").check(force=True)
    until(tap, lambda block: target(block) == (12, "constant"))
    page.get_by_test_id("refresh").select_option("4")
    page.get_by_test_id("cuts").check()
    tap.until("updated", 3)
    first, *others = [said for said in tap.all("said") if said["type"] == "update"]
    assert (first["target_fps"], first["refresh"], first["cuts"]) == (12, None, False)
    assert [said.get("refresh") for said in others] == [4, 4]
    assert [said.get("cuts") for said in others] == [False, True]

    page.get_by_test_id("method-full").check(force=True)
    assert page.get_by_test_id("hold-rate").is_disabled()
    until(tap, lambda block: "rate" not in block and block["kept_share"] == 1)
    page.get_by_test_id("method-prune").check(force=True)
    until(tap, lambda block: target(block) == (12, "constant"))
    assert tap.state() == "Running"
    assert tap.faults == []
