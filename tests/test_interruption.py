"""Ctrl-C and SIGTERM end a command whenever they come, also where Python drops exceptions."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, redirect_stdout

import pytest
import typer
from fastapi import FastAPI
from tests.server_fixtures import WAIT

from stillframe.cli.interruption import Interruption, interruptible
from stillframe.cli.listening import Access, run_until_interrupted
from stillframe.cli.screen import one_sentence_errors
from stillframe.server.access import AccessPolicy
from stillframe.server.admission import Admission
from stillframe.server.limits import Limits
from stillframe.server.serving import listen

HERE = "127.0.0.1"
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _foreground() -> Iterator[None]:
    # whoever runs the tests in the background has them ignore Ctrl-C, which commands respect
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Finalized:
    """Does something where Python drops exceptions, as it does in callbacks that imports run."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def __del__(self) -> None:
        self._work()


class _Screen(io.StringIO):
    """Standard output, whose reader acts on the line that says where the page is."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def write(self, text: str) -> int:
        count = super().write(text)
        if "(Ctrl-C ends it)" in text:
            _Finalized(self._act)
        return count


def serve_until(number: signal.Signals, moments: Sequence[str]) -> list[str]:
    """Serve, with a signal at each of some moments; what happened, in order."""
    happened: list[str] = []

    def reach(name: str) -> None:
        happened.append(name)
        if name in moments:
            signal.raise_signal(number)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        reach("starting")
        yield
        reach("ending")

    def give_up() -> None:
        happened.append("lost")
        os.kill(os.getpid(), signal.SIGINT)

    app = FastAPI(lifespan=lifespan)
    app.state.server = Admission(AccessPolicy(HERE, None), Limits())
    late = threading.Timer(WAIT, give_up)
    late.start()
    try:
        with (
            interruptible(), listen(HERE, 0) as place,
            redirect_stdout(_Screen(lambda: reach("announced"))),
        ):  # fmt: skip
            run_until_interrupted(app, place, Access(HERE, None, None), "a page", opens=False)
    finally:
        late.cancel()
    return happened


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "moments", [["announced"], ["starting"], ["announced", "ending"], ["starting", "ending"]]
)
def test_a_server_ends_whenever_signals_come(number: signal.Signals, moments: list[str]) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    assert serve_until(number, moments) == ["announced", "starting", "ending"]
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_that_was_lost_before_is_heard(number: signal.Signals) -> None:
    asked: list[int] = []
    with interruptible():
        with Interruption() as interrupted:
            assert not interrupted()
        # what it raises goes nowhere
        _Finalized(lambda: signal.raise_signal(number))
        with Interruption(lambda: asked.append(1)) as interrupted:
            assert (interrupted(), interrupted.code, asked) == (True, 128 + number, [1])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_is_interrupted_says_by_what(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as ended, interruptible():
        signal.raise_signal(number)
    assert ended.value.code == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_interrupted_says_so_in_a_sentence(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, interruptible(), one_sentence_errors():
        signal.raise_signal(number)
    assert ended.value.exit_code == 128 + number
    assert "Interrupted: nothing unfinished was kept" in capsys.readouterr().err


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_program_in_the_background_goes_on() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
