"""Tuning of the process that stillframe runs in, for programs (never for importers).

Knows the C library's allocator and what the operating system says of a process; not torch.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

__all__ = ["keep_freed_memory", "not_interrupted", "peak_resident_bytes", "run_with"]

# names and numbers of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let glibc hand freed memory out again instead of giving it back to the system.

    By default every large tensor is a mapping of its own, and each of its pages faults when it is
    first written: an autoencoder on a CPU spends a quarter of its time there. Raising the threshold
    above which mappings are used is not enough (a layer's output is larger than glibc allows), so
    mappings are turned off. The process keeps its peak, which stays what it was. Call it before
    the first large allocation; it cannot be undone.

    Returns:
        whether it took effect: True on Linux with glibc, False elsewhere, where nothing is changed.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)


def peak_resident_bytes() -> int | None:
    """The most memory this process has held so far, in bytes; None where that cannot be asked."""
    # what getrusage says begins with the peak of the process that started this one
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_with(variables: dict[str, str], work: bytes, *arguments: Any) -> None:
    """Run work in a new process that has these environment variables.

    The work is a pickled function: what it imports reads them, too. Libraries ask once which CUDA
    devices there are, some of them when they are imported.
    """
    os.environ.update(variables)
    pickle.loads(work)(*arguments)


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Let processes that are started in here not hear Ctrl-C.

    A terminal sends it to all processes. One that still imports would end with a traceback, and
    cannot ignore it before. The signal is kept back, not dropped: this process hears it afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not a Unix
        yield
        return
    # whoever starts it lets signals through again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
