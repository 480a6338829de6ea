"""What tests of studies share: a folder of small pairs, and a server that runs one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.server_fixtures import WAIT, wait_until
from tests.video_samples import gradient, make_video

from stillframe.server.serving import listen, make_server
from stillframe.study.app import create_study_app
from stillframe.study.layout import VOTES, read_layout
from stillframe.study.participants import Participants
from stillframe.study.playable import make_playable, unplayable
from stillframe.study.votes import VoteFile

__all__ = ["Page", "make_clip", "make_folder", "running"]


def make_clip(path: Path, frames: int = 6, size: tuple[int, int] = (64, 48), **how: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    # no two are of one length in bytes
    start = sum(str(path).encode()) % 20
    return make_video(path, [gradient(start + i, *size) for i in range(frames)], **how)


def make_folder(
    folder: Path,
    methods: Sequence[str] = ("pruned", "dense"),
    clips: Sequence[str] = ("a", "b", "c"),
    **how: Any,
) -> Path:
    """A study's folder."""
    for method in methods:
        for clip in clips:
            make_clip(folder / method / f"{clip}.mp4", **how)
    return folder


class Page:
    """A client with none of the page's code."""

    def __init__(self, port: int, name: str = "") -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.state: dict[str, Any] = self.post("join", name=name)

    def post(self, what: str, **message: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/api/{what}", json=message, timeout=WAIT)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def vote(self, side: str, **more: Any) -> None:
        """Vote on what is shown."""
        shown = {"participant": self.state["participant"], "trial": self.state["trial"]["id"]}
        self.state = self.post("vote", **shown, vote=side, **more)

    def undo(self) -> None:
        self.state = self.post("undo", participant=self.state["participant"])

    def media(self, side: str) -> httpx.Response:
        path = f"media/{self.state['participant']}/{self.state['trial']['id']}/{side}"
        return httpx.get(f"{self.url}/{path}", timeout=WAIT)


@contextmanager
def running(
    folder: Path, *, seed: int = 1, checks: int = 0, **options: Any
) -> Iterator[tuple[int, Participants]]:
    """A study on a free local port: the port, and its participants."""
    layout = read_layout(folder)
    votes = VoteFile(folder / VOTES, seed)
    participants = Participants(make_playable(layout, unplayable(layout)), votes, checks)
    server = make_server(create_study_app(participants, **options))
    place = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield place.getsockname()[1], participants
    finally:
        server.should_exit = True
        thread.join(WAIT)
        place.close()
        votes.close()
        assert not thread.is_alive()
