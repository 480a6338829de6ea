"""What is asked of the operating system takes effect, in a process of its own."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillframe.loading.host import not_interrupted

WITHOUT_MASKS = not hasattr(signal, "pthread_sigmask")


def test_kept_memory_is_not_faulted_in_again() -> None:
    host = Path(importlib.util.find_spec("stillframe.loading.host").origin or "")  # type: ignore[union-attr]
    code = f"""
import resource, runpy
import numpy as np
keep = runpy.run_path({str(host)!r})["keep_freed_memory"]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8): np.ones(5_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cold = faults(); took = keep(); faults(); held = peak(); print(took, cold, faults(), peak() - held)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, cold, warm, grown = said.stdout.split()
    if took == "True":
        assert int(warm) < int(cold) // 20
        assert int(grown) < 1000
    else:
        assert platform.libc_ver()[0] != "glibc"


def ignore_interrupts() -> None:
    """As processes of a model do first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.skipif(WITHOUT_MASKS, reason="signals cannot be kept back here")
def test_ctrl_c_does_not_end_a_process_that_still_imports(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with not_interrupted():
        process = multiprocessing.get_context("spawn").Process(target=ignore_interrupts)
        process.start()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(WITHOUT_MASKS, reason="signals cannot be kept back here")
def test_ctrl_c_is_heard_afterwards() -> None:
    before, heard = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), not_interrupted():  # noqa: PT012
            signal.raise_signal(signal.SIGINT)
            heard.append("nothing yet")
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["nothing yet"]
