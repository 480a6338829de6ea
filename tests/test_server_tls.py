"""TLS: a self-made certificate, one of files, and what is said about them; real connections."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from tests import tiny
from tests.server_fixtures import WAIT, Client, wait_until
from typer.testing import CliRunner
from websockets.asyncio.client import ClientConnection, connect

pytest.importorskip("cryptography")

import httpx

from stillframe.cli.app import app
from stillframe.errors import StillframeError
from stillframe.server.app import create_app
from stillframe.server.certificate import check_certificate, own_certificate
from stillframe.server.serving import address, listen, make_server

KEY = "a-key-of-16-chars"


class TlsSocket:
    """A WebSocket over TLS that one thread reads and writes.

    ``websockets.sync`` reads on one thread and writes on another, which OpenSSL's connections are
    not made for: of a thousand connections one never sent its request.
    """

    def __init__(self, portal: BlockingPortal, socket: ClientConnection) -> None:
        self._portal, self._socket = portal, socket

    def send(self, message: str | bytes) -> None:
        self._portal.call(self._socket.send, message)

    def recv(self, timeout: float | None = None) -> str | bytes:
        return self._portal.call(asyncio.wait_for, self._socket.recv(), timeout)


@contextmanager
def secure_client(port: int, trusting: ssl.SSLContext, **options: Any) -> Iterator[Client]:
    """A client of the live socket over TLS."""
    url = f"wss://127.0.0.1:{port}/live"
    options = {"open_timeout": WAIT, "close_timeout": 1, "max_size": None, **options}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(connect(url, ssl=trusting, **options)) as socket,
    ):
        yield Client(cast(Any, TlsSocket(portal, socket)))


def test_a_certificate_is_made_once_for_all_names_and_kept_from_others(tmp_path: Path) -> None:
    made = own_certificate(["box.example"], tmp_path)
    assert made.is_own
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    data = made.path.read_bytes()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(data.decode())).hexdigest()
    assert made.fingerprint.replace(":", "").lower() == digest
    assert own_certificate(["box.example"], tmp_path) == made
    assert made.path.read_bytes() == data
    # another name needs another one, and a damaged one is replaced
    other = own_certificate(["another.example"], tmp_path)
    assert other.fingerprint != made.fingerprint
    other.path.write_text("damaged")
    assert own_certificate(["another.example"], tmp_path).fingerprint != other.fingerprint
    assert {each.name for each in tmp_path.iterdir()} == {"tls-certificate.pem", "tls-key.pem"}


def test_page_and_socket_come_over_tls_and_over_nothing_else(tmp_path: Path) -> None:
    made = own_certificate([], tmp_path)
    trusting = ssl.create_default_context(cafile=str(made.path))
    application = create_app(tiny.pipeline())
    server = make_server(application, made)
    place = listen("127.0.0.1", 0)
    port = place.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        url = address("127.0.0.1", port, tls=True)
        assert url == f"https://127.0.0.1:{port}/"
        assert httpx.get(f"{url}healthz", verify=trusting, timeout=WAIT).json() == {"ok": True}
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url, timeout=WAIT)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/", timeout=WAIT)
        with secure_client(port, trusting, origin=url.rstrip("/")) as client:
            client.say("hello", prompt="oil", width=96, height=64)
            client.until("ready")
            client.works()
    finally:
        server.should_exit = True
        thread.join(WAIT)
        place.close()


def test_files_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    made, other = (own_certificate([], tmp_path / name) for name in "ab")
    assert check_certificate(made.path, made.key).fingerprint == made.fingerprint
    with pytest.raises(StillframeError, match="no certificate with its key"):
        check_certificate(made.path, other.key)
    (tmp_path / "text").write_text("text")
    with pytest.raises(StillframeError, match="no certificate with its key"):
        check_certificate(tmp_path / "text", made.key)
    with pytest.raises(StillframeError, match="cannot be read: No such file"):
        check_certificate(tmp_path / "missing", made.key)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem", "--tls-self-made"], "give either"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "a.pem or b.pem cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


HELD = {
    "target_kept": 0.4,
    "rate_mode": "capped",
    "refresh": 16,
    "gop": 20,
    "cuts": True,
    "guard": 0.05,
}


def test_serve_says_what_it_does_and_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    """On any port that is free; with a token, which is in no argument and in no request."""
    command = [sys.executable, "-m", "stillframe", "serve", "--port", "0", "--tls-self-made"]
    command += ["--host", "0.0.0.0", "--threads", "1", *options(HELD)]
    environment = {
        **os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1",
        "STILLFRAME_TOKEN": KEY,
    }  # fmt: skip
    made, key = (tmp_path / "stillframe" / f"tls-{name}.pem" for name in ("certificate", "key"))
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if ":" in line and len(line) > 90 and line.startswith("  "):
                    break
            arguments = Path(f"/proc/{process.pid}/cmdline")
            if arguments.exists():
                assert KEY not in arguments.read_text()
            port = int(lines[1].partition(";")[0].rpartition(" ")[2])
            use(port, ssl.create_default_context(cafile=str(made)), process)
            rest = process.communicate(timeout=3 * WAIT)[0]
        except BaseException as error:
            error.add_note(f"exit status {process.poll()}")
            process.kill()
            error.add_note("\n".join([*lines, process.communicate()[0]]))
            raise
        finally:
            process.kill()
    assert process.returncode == 0
    assert [line.partition(";")[0] for line in lines[:2]] == [
        "starting", f"listening on 0.0.0.0, port {port}",
    ]  # fmt: skip
    assert lines[2].startswith("the model is there, after")
    shown = address("0.0.0.0", port, KEY, tls=True)
    assert lines[3].startswith(f"live editing at {shown} ")
    assert shown.partition("#") == (f"https://{socket.gethostname()}:{port}/", "#", f"token={KEY}")
    assert lines[-1].strip() == check_certificate(made, key).fingerprint
    assert "the server has ended" in rest


def options(held: dict[str, Any]) -> list[str]:
    """As they stand on the command line."""
    words = []
    for name, value in held.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def use(port: int, trusting: ssl.SSLContext, process: subprocess.Popen[str]) -> None:
    """Ask for what there is, edit with what the command holds, and interrupt the command."""
    url = f"https://127.0.0.1:{port}/"
    asked: dict[str, Any] = {"verify": trusting, "timeout": WAIT}
    assert httpx.get(f"{url}healthz", **asked).json() == {"ok": True}
    bearer = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{url}api/models", headers=bearer, **asked).json()["loaded"] == "tiny"
    with secure_client(port, trusting) as client:
        client.say("hello", prompt="oil", width=96, height=64, token=KEY)
        client.works()
        assert client.texts[0]["holding"] == HELD
        told = next(text for text in client.texts if text["type"] == "telemetry")
        assert (told["rate"]["target_kept"], told["guard"]["share"]) == (0.4, 0.05)
        process.send_signal(signal.SIGINT)
        assert client.ending()[0] == 1012
