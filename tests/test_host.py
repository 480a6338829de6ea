"""What is asked of the operating system takes effect, in a process of its own."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path


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
