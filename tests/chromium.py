"""Tabs of a real Chromium over its DevTools protocol.

Of several tabs in one window all but the front one are hidden, as on a screen: their timers sleep
and nothing of them is painted. Playwright's pages are always visible.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

__all__ = ["CHROMIUM", "Browser", "Tab", "browsing"]

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--remote-debugging-port=0",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)  # fmt: skip
_WAIT = 60.0


class Browser:
    """A browser that runs."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; what happens meanwhile is in ``events``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=_WAIT))
            if answer.get("id") != self._number:
                self.events.append(answer)
                continue
            assert "error" not in answer, answer
            result: dict[str, Any] = answer["result"]
            return result

    def tab(self, url: str = "about:blank", script: str = "") -> Tab:
        """Open a tab in front of the others; ``script`` runs before the page's own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, target, session)
        for domain in ("Page", "Runtime", "Network", "DOM"):
            tab.call(f"{domain}.enable")
        if script:
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        tab.call("Page.navigate", url=url)
        # what was there before is complete, too
        there = "true" if url == "about:blank" else "location.href !== 'about:blank'"
        tab.until(f"{there} && document.readyState === 'complete'")
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def js(self, expression: str) -> Any:
        """The value of an expression, or of what it promises."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = _WAIT) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"not in time: {expression}; {self.message}"
            time.sleep(0.05)
        return value

    def front(self) -> None:
        """Show it, and hide all others."""
        self._browser.call("Target.activateTarget", targetId=self._target)
        self.until("!document.hidden")

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    @property
    def message(self) -> str:
        """The page's state and message."""
        return str(self.js("document.getElementById('status')?.innerText ?? ''"))

    def sent(self, while_: Callable[[], None]) -> list[bytes]:
        """Binary messages that the page's socket sent meanwhile."""
        self.js("1")
        self._browser.events.clear()
        while_()
        self.js("1")
        events = [e["params"] for e in self._browser.events if e.get("sessionId") == self._session
                  and e["method"] == "Network.webSocketFrameSent"]  # fmt: skip
        frames = [event["response"] for event in events]
        return [base64.b64decode(f["payloadData"]) for f in frames if f["opcode"] == 2]

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a profile in a folder."""
    with subprocess.Popen(
        [str(CHROMIUM), *_FLAGS, f"--user-data-dir={folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            with connect(_address(process, folder), max_size=None, compression=None) as socket:
                yield Browser(socket)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Where a browser that has just been started is to be called."""
    place, end = folder / "DevToolsActivePort", time.monotonic() + _WAIT
    while True:
        # port and path, a line each
        words = place.read_text().split() if place.exists() else []
        if len(words) == 2:
            return f"ws://127.0.0.1:{words[0]}{words[1]}"
        assert process.poll() is None, "the browser did not start"
        assert time.monotonic() < end, "the browser did not start in time"
        time.sleep(0.05)
