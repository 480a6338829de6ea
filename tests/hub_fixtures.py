"""A hub on this machine: what huggingface_hub asks of the real one, and processes that ask it.

huggingface_hub reads the environment when it is imported. So the tests act in a process of its own,
which is started with the environment in question and takes one action a line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillframe.errors import ModelError
from stillframe.loading import hub

__all__ = ["Asker", "Hub", "asker", "hub_fixture", "online_fixture"]

ROOT = Path(__file__).parents[1]


@dataclass
class Repo:
    """Files by name, and what the hub does when asked for them.

    Attributes:
        sizes: what it says instead of a file's real size.
        status: other than 200, the answer to any question about the repository.
        gated: files are refused, the listing is not.
        past: what it was before, and still has under the commits of then.
        cuts: how far into the file each of the next downloads gets before the connection is cut.
    """

    files: dict[str, bytes]
    sizes: dict[str, int] = field(default_factory=dict)
    status: int = 200
    gated: bool = False
    cuts: list[int] = field(default_factory=list)
    past: tuple[Repo, ...] = ()

    def at(self, revision: str) -> Repo | None:
        """What it was at a commit."""
        if revision in ("main", self.commit):
            return self
        return next((repo for repo in self.past if repo.commit == revision), None)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def size(self, name: str) -> int:
        return self.sizes.get(name, len(self.files[name]))


class Hub:
    """The server: ``repos`` is what it has, ``log`` what it was asked (method, path, range)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[tuple[str, str, str | None]] = []
        hub_ = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub_.answer(self)

            def do_HEAD(self) -> None:
                hub_.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def downloads(self, repo: str) -> list[tuple[str, str | None]]:
        """Names of the files of ``repo`` that were asked for with their content, and the ranges."""
        marker = f"/{repo}/resolve/"
        return [
            (path.removeprefix(marker).partition("/")[2], span)
            for method, path, span in list(self.log)
            if method == "GET" and path.startswith(marker)
        ]

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        path, span = asked.path.partition("?")[0], asked.headers.get("Range")
        self.log.append((asked.command, path, span))
        parts = path.strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if listing else parts[:2])
        repo = self.repos.get(name)
        revision = "".join(parts[5:6] if listing else parts[3:4]) or "main"
        if repo is None:
            _send(asked, 404, {"X-Error-Code": "RepoNotFound"})
        elif (repo := repo.at(revision)) is None:
            _send(asked, 404, {"X-Error-Code": "RevisionNotFound"})
        elif repo.status != 200:
            _send(asked, repo.status, {})
        elif listing:
            _send(asked, 200, {}, _listing(name, repo, "".join(parts[4:5])))
        elif repo.gated:
            _send(asked, 403, {"X-Error-Code": "GatedRepo"})
        elif (file := "/".join(parts[4:])) not in repo.files:
            _send(asked, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
        else:
            _send_file(asked, repo, file, span)


def _listing(name: str, repo: Repo, question: str) -> bytes:
    files = [
        {"type": "file", "path": path, "size": repo.size(path), "oid": _etag(content)}
        for path, content in repo.files.items()
    ]
    if question == "tree":
        return json.dumps(files).encode()
    named = [{"rfilename": path} for path in repo.files]
    return json.dumps({"id": name, "sha": repo.commit, "siblings": named}).encode()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _send(
    asked: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b""
) -> None:
    asked.send_response(status)
    for key, value in headers.items():
        asked.send_header(key, value)
    if "Content-Length" not in headers:
        asked.send_header("Content-Length", str(len(body)))
    asked.end_headers()
    if asked.command == "GET":
        asked.wfile.write(body)


def _send_file(asked: BaseHTTPRequestHandler, repo: Repo, name: str, span: str | None) -> None:
    content = repo.files[name]
    start = 0 if span is None else int(span.removeprefix("bytes=").partition("-")[0])
    headers = {
        "ETag": f'"{_etag(content)}"',
        "X-Repo-Commit": repo.commit,
        "Accept-Ranges": "bytes",
        "Content-Length": str(repo.size(name) - start),
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    body = content[start:]
    if asked.command == "GET" and repo.cuts:
        body = content[start : max(start, repo.cuts.pop(0))]
        asked.close_connection = True
    _send(asked, 200 if span is None else 206, headers, body)


class Asker:
    """A process with an environment of its own, in which stillframe acts; see `main` below.

    Attributes:
        cache: huggingface_hub's folder.
        cause: the class of what the last error was raised from, "NoneType" for nothing.
    """

    def __init__(self, home: Path, **environment: str) -> None:
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGING", "XDG_", "STILLFRAME_", "TRANSFORMERS_"))
            and "proxy" not in key.lower()
        }
        settings = {
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "COLUMNS": "200",
        }
        self.cache = home / "hf" / "hub"
        self.cause = ""
        self._said = home / f"stderr-{os.urandom(4).hex()}"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.hub_fixtures"],
                cwd=ROOT,
                env={**inherited, **settings, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def __call__(self, action: str, **given: Any) -> Any:
        """What the action returned.

        Raises:
            ModelError: it raised one.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([action, given]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or "{}")
        if "error" in answer:
            self.cause = answer["cause"]
            raise ModelError(answer["error"])
        if "value" not in answer:
            raise AssertionError(f"{action}: {answer.get('bug')}; {self.complaints()}")
        return answer["value"]

    def complaints(self) -> str:
        """Everything the process wrote on standard error."""
        return self._said.read_text()

    def close(self) -> None:
        self._process.communicate(timeout=30)


@contextmanager
def asker(home: Path, **environment: str) -> Iterator[Asker]:
    """A process for a block of a test."""
    process = Asker(home, **environment)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module", name="hub")
def hub_fixture() -> Iterator[Hub]:
    """A hub with nothing in it."""
    server = Hub()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module", name="online")
def online_fixture(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A process that is connected to the hub."""
    with asker(tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.url) as process:
        yield process


def _act(action: str, given: dict[str, Any]) -> Any:
    if action == "cli":
        from stillframe.cli.app import app

        os.environ.update(given.get("environment", {}))
        result = CliRunner().invoke(app, given["arguments"])
        return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
    if action == "from_pretrained":
        from stillframe.pipelines.causal_wan import CausalWanPipeline

        # what diffusers shows while it loads is not what is tested
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return sorted(CausalWanPipeline.from_pretrained(given["name"]).components)
    if "wanted" not in given:
        path = getattr(hub, action)(**given)
        return None if path is None else str(path)
    wanted = [hub.Wanted(repo, tuple(files)) for repo, files in given["wanted"]]
    if action != "fetch":
        return [dataclasses.asdict(file) for file in getattr(hub, action)(wanted)]
    heard: list[tuple[str, int, int | None]] = []
    paths = hub.fetch(wanted, lambda *progress: heard.append(progress))
    return {"paths": [str(path) for path in paths], "progress": heard}


def main() -> None:
    """Answer every line of standard input with a line: value, error, or bug."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"value": _act(*json.loads(line))}
        except ModelError as error:
            answer = {"error": str(error), "cause": type(error.__cause__).__name__}
        except BaseException as error:  # the test is to see it
            answer = {"bug": repr(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
