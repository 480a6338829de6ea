"""Live sessions whose model runs in several processes, against the same model in one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests import parallel_models
from tests.live_fixtures import embeds, file_path, levels, pixels
from tests.live_models import spread
from tests.server_fixtures import alive, wait_until
from tests.test_live_process import play
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.live import SessionError
from stillframe.server.supervisor import ProcessSupervisor

pytestmark = pytest.mark.timeout(240)


def children(pid: int) -> list[int]:
    """Processes that a process has started, but for the one that cleans up behind it."""
    told = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, check=True
    )
    lines = [line.split(maxsplit=1) for line in told.stdout.decode().splitlines()]
    return [int(found) for found, command in lines if "spawn_main" in command]


def families(supervisor: ProcessSupervisor) -> list[int]:
    """The process that leads, and those that follow it."""
    assert supervisor.pid is not None
    return [supervisor.pid, *children(supervisor.pid)]


def ended(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def push_for_ever(session: Any, frame: Any) -> None:
    for number in itertools.count():
        session.push(frame, number / 10)


def test_sessions_of_two_processes_are_those_of_one_and_go_on_after_the_loss_of_one() -> None:
    frames = levels(30)
    expected = file_path(parallel_models.pipeline(), frames).astype(int)
    supervisor = ProcessSupervisor(spread, starts_others=True, patience=120)
    supervisor.start()
    try:
        # sums over fewer heads come out alike to a level
        opened: Any = partial(supervisor.open, None, prompt_embeds=embeds(), policy="all")
        assert np.abs(pixels(play(opened(), frames)).astype(int) - expected).max() <= 1
        first = families(supervisor)
        assert len(first) == 2
        session = opened()
        os.kill(first[1], signal.SIGKILL)
        # the block that fails may be told of before the process has ended
        with pytest.raises(
            SessionError, match=r"that runs the model ended|2 processes .* has gone"
        ):
            push_for_ever(session, frames[0])
        wait_until(partial(ended, first))
        assert np.abs(pixels(play(opened(), frames)).astype(int) - expected).max() <= 1
        second = families(supervisor)
    finally:
        supervisor.stop()
    assert len(second) == 2
    wait_until(partial(ended, second))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--devices", "cpu,cpu"], "does not go with --devices"),
        (["--one-process"], "does not go with --one-process"),
        (["--warm"], "does not go with --warm"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0", "--parallel", "2", *options])
    assert (done.exit_code, sentence in " ".join(done.stderr.split())) == (2, True)
