"""What tests of the page share: a page of a server, and what somebody does on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chromium import Browser, Tab, browsing

__all__ = [
    "ASKS",
    "SHOWN",
    "STATE",
    "axe_core",
    "browser_fixture",
    "findings",
    "opened",
    "put",
    "resized",
    "says",
    "shows",
    "start",
    "text",
    "themed",
]

SHOWN = "Number(document.getElementById('result').dataset.frames ?? 0)"
STATE = "document.documentElement.dataset.state"
# counts who asks for a camera
ASKS = """
const { mediaDevices } = navigator, open = mediaDevices.getUserMedia.bind(mediaDevices);
window.asked = 0;
mediaDevices.getUserMedia = (wanted) => { window.asked += 1; return open(wanted); };
"""


@pytest.fixture(scope="module", name="browser")
def browser_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Import it where a module of tests needs a browser."""
    with browsing(tmp_path_factory.mktemp("profile")) as running:
        yield running


def opened(browser: Browser, port: int, script: str = "", fragment: str = "") -> Tab:
    return browser.tab(f"http://127.0.0.1:{port}/{fragment}", script)


def shows(tab: Tab, more: int = 12) -> None:
    """See that pictures come."""
    tab.until(f"{SHOWN} > {tab.js(SHOWN) + more}")


def text(tab: Tab, name: str) -> str:
    return str(tab.js(f"document.getElementById({json.dumps(name)}).textContent"))


def put(tab: Tab, name: str, value: object) -> None:
    """Set a control as somebody would."""
    tab.js(f"""(() => {{
      const control = document.getElementById({json.dumps(name)});
      control.value = {json.dumps(value)};
      for (const kind of ["input", "change"]) {{
        control.dispatchEvent(new Event(kind, {{ bubbles: true }}));
      }}
    }})()""")


def says(name: str, part: str) -> str:
    """Whether something is to be read on the page, as an expression."""
    return f"document.getElementById('{name}').textContent.includes('{part}')"


def start(tab: Tab) -> None:
    """Press start and see that pictures come."""
    tab.click("#start")
    tab.until(f"{SHOWN} > 24")


def axe_core() -> Path | None:
    """axe-core, from ``STILLFRAME_AXE`` or an installed npm package; it is not part of this one."""
    given = os.environ.get("STILLFRAME_AXE")
    path = Path(given) if given else Path("node_modules/axe-core/axe.min.js")
    return path if path.is_file() else None


# changes of colour that are under way; what never ends is how the page is
_CHANGING = """document.getAnimations().filter((each) => each.playState === 'running'
  && each.effect.getComputedTiming().endTime !== Infinity).length"""


def findings(tab: Tab) -> Any:
    """What axe-core, which the page has been given, finds on it."""
    tab.until(f"{_CHANGING} === 0")
    return tab.js("""axe.run().then(({ violations }) => violations.map((each) =>
      [each.id, each.nodes.map((node) => [node.target.join(' '), node.any[0]?.message])]))""")


def resized(
    tab: Tab, width: int, height: int = 900, density: float = 1, phone: bool = False
) -> None:
    """Give a page a window of a size."""
    tab.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height,
        deviceScaleFactor=density, mobile=phone,
    )  # fmt: skip
    tab.until(
        f"innerWidth === {width} && innerHeight === {height} && devicePixelRatio === {density}"
    )


def themed(tab: Tab, theme: str) -> None:
    """Let the computer prefer a theme, and see that the page follows."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    tab.call("Emulation.setEmulatedMedia", features=features)
    tab.until(f"document.documentElement.dataset.theme === '{theme}'")
