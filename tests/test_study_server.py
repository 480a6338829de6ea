"""A study over HTTP: nothing tells the methods apart, and votes outlive what ends the server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server_fixtures import WAIT
from tests.study_fixtures import Page, make_clip, make_folder, running
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.study.votes import read_votes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several kinds, with a source; nobody votes in it."""
    folder = make_folder(
        tmp_path_factory.mktemp("study"), ["pruned", "dense", "source"], ["a", "b"]
    )
    # one side is another kind of file
    (folder / "dense" / "b.mp4").unlink()
    make_clip(folder / "dense" / "b.webm", codec="libvpx-vp9")
    return folder


def test_nothing_that_is_sent_tells_the_methods_apart(shared: Path) -> None:
    words = re.compile(r"pruned|dense|[ab]\.(mp4|webm)|\.playable|last-modified|etag", re.I)
    with running(shared, checks=1) as (port, study):
        page = Page(port, "anna")
        files = {p.read_bytes() for clip in study.layout.clips for p in clip.files.values()}
        sources = list((shared / "source").iterdir())
        for _ in range(3):
            assert not words.search(json.dumps(page.state))
            left, right = page.media("left"), page.media("right")
            for answer in (left, right):
                assert answer.status_code == 200
                assert not words.search(f"{answer.url} {answer.headers}")
                assert any(answer.content.startswith(file) for file in files)
            dated = {"date": ""}
            assert {**left.headers, **dated} == {**right.headers, **dated}
            assert len(left.content) == len(right.content) == int(left.headers["content-length"])
            source = page.media("source").content
            assert any(source.startswith(each.read_bytes()) for each in sources)
            page.vote("same")
        assert page.state["trial"] is None
        assert not words.search(json.dumps(page.state))
    (shared / "votes.jsonl").unlink()


def test_two_participants_are_told_other_names_of_the_same_pair(shared: Path) -> None:
    with running(shared) as (port, _):
        names: list[set[str]] = []
        for who in ("anna", "ben"):
            page, seen = Page(port, who), set()
            while page.state["trial"] is not None:
                seen.add(page.state["trial"]["id"])
                page.vote("left")
            names.append(seen)
        assert not names[0] & names[1]
        # and of another one's trials nothing is shown
        other = httpx.get(f"http://127.0.0.1:{port}/media/ben/{names[0].pop()}/left")
        assert other.status_code == 404
    (shared / "votes.jsonl").unlink()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"participant": "anna", "trial": "", "vote": "up"}, 400),
        ({"participant": "anna", "trial": "", "vote": "left"}, 409),
        ({"participant": "anna", "trial": "", "vote": "left", "seconds": -1}, 400),
        ({"participant": "anna", "trial": "", "vote": "left", "loops": 0.5}, 400),
        ({"participant": "anna", "trial": "", "vote": "left", "method": "x"}, 400),
        ({"participant": "a" * 41, "trial": "", "vote": "left"}, 400),
        ({"participant": "a" * 5000}, 413),
        ([], 400),
    ],
)
def test_what_is_no_vote_is_refused_and_not_kept(shared: Path, message: Any, status: int) -> None:
    with running(shared) as (port, _):
        answer = httpx.post(f"http://127.0.0.1:{port}/api/vote", json=message, timeout=WAIT)
        assert answer.status_code == status
        assert str(shared) not in answer.text
    assert len((shared / "votes.jsonl").read_text().splitlines()) == 1
    (shared / "votes.jsonl").unlink()


def test_where_others_reach_it_nothing_is_told_without_the_token(shared: Path) -> None:
    token = "a-token-of-some-letters"
    with running(shared, host="0.0.0.0", token=token) as (port, _):
        url = f"http://127.0.0.1:{port}"
        asked = [
            ("GET", "/api/status"), ("GET", "/api/state?participant=anna"),
            ("GET", "/media/anna/x/left"), ("POST", "/api/join"), ("POST", "/api/vote"),
            ("POST", "/api/undo"),
        ]  # fmt: skip
        for method, path in asked:
            assert httpx.request(method, url + path).status_code == 401, path
        known = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/api/status", headers=known).status_code == 200
        foreign = {**known, "Origin": "https://elsewhere.example"}
        join = httpx.post(f"{url}/api/join", json={}, headers=foreign)
        assert join.status_code == 403
        assert httpx.get(url).status_code == 200  # the page itself asks for it
    (shared / "votes.jsonl").unlink()


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, once it says where it is."""
    with subprocess.Popen(
        [sys.executable, "-m", "stillframe", "study", *arguments, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            while (found := re.search(r"http://127.0.0.1:(\d+)/", said)) is None:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield process, int(found[1])
        finally:
            process.kill()


def test_votes_outlive_a_kill_and_are_told_at_the_end(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "study", clips=["a", "b"])
    with command(str(folder)) as (process, port):
        page = Page(port, "anna")
        page.vote("left", seconds=4.5, loops=2)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)
    (kept,) = read_votes(folder / "votes.jsonl").all
    assert (kept.vote, kept.seconds, kept.loops) == ("left", 4.5, 2)
    with command(str(folder)) as (process, port):
        page = Page(port, "anna")
        assert page.state["done"] == 1
        page.vote("same")
        assert page.state["trial"] is None
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=WAIT)[0]
        assert process.returncode == 0
    assert "2 votes of 1 person" in said
    assert f"{'dense' if kept.left == 'dense' else 'pruned'} preferred" in said
    assert f"votes are in {folder / 'votes.jsonl'}" in said
    done = CliRunner().invoke(app, ["study", str(folder), "--results", "--json"])
    assert done.exit_code == 0
    (found,) = json.loads(done.stdout)["comparisons"]
    assert found["ties"]["number"] == 1
    assert found["wins" if kept.left == "dense" else "losses"]["number"] == 1


def test_results_of_no_study_are_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["study", str(tmp_path), "--results"])
    assert done.exit_code == 2
    assert done.stderr == (
        f"Error: {tmp_path}/votes.jsonl does not exist: nobody has voted in that study\n"
    )
