"""What memory there is: free before a job, the most in use after it, and whether a plan fits.

Asks torch of GPUs and the operating system of the machine. It does not know what a job needs, which
is ``stillframe.loading.memory``'s business.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from stillframe.errors import ModelError
from stillframe.loading.host import peak_resident_bytes
from stillframe.loading.memory import GIB, MemoryPlan

__all__ = ["check_memory", "forget_peak", "free_memory", "peak_memory"]


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that are free on a device; None where nobody says.

    On a GPU what torch holds in reserve counts as free.
    """
    device = torch.device(device)
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return _available(Path("/proc/meminfo")) if device.type == "cpu" else None


def _available(meminfo: Path) -> int | None:
    """Memory of the machine that can be had without swapping; Linux says so in ``meminfo``."""
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_memory(plan: MemoryPlan, device: torch.device | str) -> None:
    """Refuse a job that does not fit; to be called before anything is loaded.

    Raises:
        ModelError: the plan's peak is more than what is free on the device.
    """
    free = free_memory(device)
    if free is None or plan.peak <= free:
        return
    raise ModelError(
        f"this needs {plan.peak / GIB:.1f} GiB and {device} has {free / GIB:.1f} GiB free: "
        f"try {_hint(plan, free)}"
    )


def _hint(plan: MemoryPlan, free: int) -> str:
    """What would help most, with the least harm to the result."""
    if plan.dtype == torch.float32:
        return "--dtype bfloat16"
    if plan.editing <= free:
        return "encoding the prompt on the CPU"
    saved = plan.autoencoder + plan.stream + max(plan.encode, plan.decode) - plan.activations
    if plan.vae_kind == "full" and plan.editing - free <= saved:
        return "--vae tiny"
    if plan.transformer > free:
        return "a smaller model"
    return "a smaller --height"


def forget_peak(device: torch.device) -> None:
    """Start measuring `peak_memory` anew, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
