"""Kernels compiled ahead are those that launches look for; these wait for what is under way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.compiling import there_after

ROOT = Path(__file__).parents[1]


def ran(cache: Path, *command: str) -> str:
    """What a process without Triton's interpreter prints, with a cache of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    command = (sys.executable, *command)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launched(cache: Path, how: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran(cache, "-m", "tests.compiling_ahead", how))
    return found


@pytest.mark.parametrize("how", ["works", pytest.param("fails", marks=pytest.mark.slow)])
def test_a_launch_waits_for_its_kernel_and_finds_it(how: str, tmp_path: Path) -> None:
    found = launched(tmp_path, how)
    assert found["hits"] == [True, True]
    assert found["last"] == [2, 2]
    # once all is compiled nothing is begun again; what broke off is
    assert found["again"] == (how == "fails")
    assert found["free"] == (how == "works")


REHEARSAL = """
import json, sys, torch
from stillframe.kernels.rehearsal import Card
from stillframe.loading.ahead import rehearse, unread_pipeline
from stillframe.loading.assemble import Source, Task
from stillframe.loading.load import find_model
source, task = Source("tiny", find_model("tiny")), Task(96, 160)
found, blocks = [], []
pipe = unread_pipeline(source, torch.bfloat16, task)
rehearse(pipe, task, Card((9, 0), 132, 80 * 10**9), lambda x: found.append([*x[:2], len(blocks)]),
         blocks.append)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_an_edit_is_rehearsed_to_its_end(tmp_path: Path) -> None:
    found = json.loads(ran(tmp_path, "-c", REHEARSAL))
    kernels = [(kernel, key) for kernel, key, _ in found]
    assert len(set(kernels)) == len(kernels)
    first = {kernel.rpartition(".")[2] for kernel, _, block in found if block == 1}
    later = {kernel.rpartition(".")[2] for kernel, _, block in found if block > 1}
    assert {"_convolve", "_redraw", "_place", "_rotated_queries", "_residual_norm"} <= first
    assert {"_measure", "_judge", "_follow", "_search", "_rotate_rows", "_convolve"} <= later
    assert not any(tmp_path.iterdir())  # nothing is compiled for it


def test_workers_take_what_there_is() -> None:
    jobs = [(0.0, 3.0), (0.0, 1.0), (0.5, 1.0), (10.0, 1.0)]
    assert there_after(jobs, 1) == 11
    assert there_after(jobs[:3], 1) == 5
    assert there_after(jobs[:3], 2) == 3
    assert there_after(jobs[:3], 3) == 3
