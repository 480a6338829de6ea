"""Kernels against their torch references, interpreted: no GPU is needed to know what they compute.

The interpreter is chosen when kernels are defined, so all of it runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


# one process each, so that two workers share them; the long ones by `make test-kernels`
parts = pytest.mark.parametrize(
    "part",
    [
        "transformer",
        pytest.param("autoencoders", marks=pytest.mark.slow),
        pytest.param("detection", marks=pytest.mark.slow),
    ],
)


@parts
def test_kernels_equal_their_twins(part: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.fused_kernels", "cpu", part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compared" in done.stdout


@pytest.mark.gpu
@parts
def test_compiled_kernels_equal_their_twins(part: str) -> None:
    command = [sys.executable, "-m", "tests.fused_kernels", "cuda", part]
    subprocess.run(command, check=True)
