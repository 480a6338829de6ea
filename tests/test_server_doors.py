"""The server's page, listings, doors and command: what is not the stream itself."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.server_fixtures import Server, get, serving
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus

from stillframe.cli.app import app as command_line
from stillframe.loading.styles import Style
from stillframe.server.app import create_app

STYLES = [Style("oil", "an oil painting", "thick paint", ("oil",))]
KEY = "a-key-of-16-chars"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, max_sessions=3, styles=STYLES) as running:
        yield running


def test_the_page_and_the_listings(server: Server, tmp_path: Path) -> None:
    assert get(server, "/healthz").json() == {"ok": True}
    assert get(server, "/api/styles").json()[0]["summary"] == "thick paint"
    assert "tiny" in get(server, "/api/models").json()["known"]
    status = get(server, "/api/status").json()
    assert status["sessions"] == {"open": 0, "max": 3}
    assert status["limits"]["picture_pixels"] == 1920 * 1088
    schema = get(server, "/openapi.json").json()
    listed = {"/healthz"} | {f"/api/{name}" for name in ("models", "status", "speed")}
    listed |= {"/api/styles", "/api/styles/pictures"}
    one_way = {f"/{name}{end}" for name in ("whip", "whep") for end in ("", "/{name}")}
    assert set(schema["paths"]) == listed | one_way | {"/webrtc/offer", "/webrtc/{name}"}
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
                 "/static/nothing.js", "/static/..%2fapp.py", "/static/%00"):  # fmt: skip
        answer = get(server, path)
        assert answer.status_code == 404
        assert "import" not in answer.text
    assert "default-src 'self'" in get(server, "/").headers["content-security-policy"]


def test_the_page_comes_from_its_folder(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>page</p>")
    (tmp_path / "a.js").write_text("let a;")
    with serving(pipe, static=tmp_path) as server:
        assert get(server, "/").text == "<p>page</p>"
        assert "javascript" in get(server, "/static/a.js").headers["content-type"]
        (tmp_path / "index.html").unlink()
        assert get(server, "/").status_code == 404


def test_a_server_for_others_wants_its_token(pipe: Any) -> None:
    with serving(lambda: pipe, host="0.0.0.0", token=KEY) as server:
        for wrong in ({}, {"token": "x" + KEY[1:]}, {"token": ""}):
            with server.client(wrong or None) as client:
                code, last = client.ending()
            assert (code, last["message"]) == (1008, "the token is missing or wrong")
        with server.client({"token": KEY}) as client:
            client.works()
        assert get(server, "/api/status").status_code == 401
        # what is in an address is kept and told on
        assert get(server, f"/api/status?token={KEY}").status_code == 401
        assert get(server, "/api/status", headers=bearer(KEY[:-1])).status_code == 401
        right = get(server, "/api/status", headers=bearer(KEY))
        assert right.status_code == 200
        cookie = right.headers["set-cookie"].split(";")[0]
        assert "HttpOnly" in right.headers["set-cookie"]
        assert "set-cookie" not in get(server, "/api/status", headers={"Cookie": cookie}).headers
        assert get(server, "/api/styles", headers={"Cookie": cookie}).status_code == 200
        with server.client(None, additional_headers={"Cookie": cookie}) as client:
            client.until("ready")
    with pytest.raises(ValueError, match="needs a token"):
        create_app(pipe, host="0.0.0.0")


@pytest.mark.parametrize(
    "token", ["a&b=c-d+e;f,g/h?i#j", "50%41+50%41+50%41+", '"\\~!@$^*()[]{}<>|']
)
def test_any_token_is_kept_by_a_browser(pipe: Any, token: str) -> None:
    with serving(pipe, host="0.0.0.0", token=token) as server:
        told = get(server, "/api/styles", headers=bearer(token))
        assert told.status_code == 200
        cookie = told.headers["set-cookie"].split("; ")[0]
        assert get(server, "/api/styles", headers={"Cookie": cookie}).status_code == 200
        assert get(server, "/api/styles").status_code == 401
        with server.client(None, additional_headers={"Cookie": cookie}) as client:
            client.until("ready")


def test_pages_and_names_of_others_are_turned_away(server: Server) -> None:
    with pytest.raises(InvalidStatus) as error, server.client(origin="http://evil.example"):
        pass
    assert error.value.response.status_code == 403
    with server.client(origin=f"http://127.0.0.1:{server.port}") as client:
        client.until("ready")
    assert get(server, "/api/status", headers={"Host": "evil.example"}).status_code == 403


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(command_line, ["serve", "--port", str(port)])
    assert (done.exit_code, f"port {port}" in done.stderr) == (2, True)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(command_line, ["serve"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "stillframe[serve]" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--rate-mode", "capped"],
            "--rate-mode needs --target-fps, --target-latency or --target-kept",
        ),
        (["--target-fps", "0"], "'--target-fps': Input should be greater than or equal to 0.001"),
        (["--target-fps", "8", "--target-kept", "0.5"], "one of fps, latency and kept is held"),
        (["--refresh", "0"], "'--refresh': Input should be greater than or equal to 1"),
        (["--guard", "0.9"], "'--guard': Input should be less than or equal to 0.5"),
    ],
)
def test_the_command_refuses_what_cannot_be_held(options: list[str], sentence: str) -> None:
    done = CliRunner().invoke(command_line, ["serve", "--port", "0", *options])
    assert (done.exit_code, sentence in " ".join(done.stderr.split())) == (2, True)
