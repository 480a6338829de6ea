"""What to do so that a task stays below a number of bytes, and what that costs.

The mildest measures come first, and one is taken only where those before it are not enough: a
measure that comes in degrees, as far as it has to be. All of it is worked out from plans
(``memory``); nothing is loaded. It does not know command lines or how measures are carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from stillframe.errors import ModelError
from stillframe.loading.assemble import Source, Task, plan, stream_settings
from stillframe.loading.memory import MemoryPlan

__all__ = ["GB", "Fit", "find_fit"]

#: Sizes that are asked for are in these: a card of 12 GiB has 7% more than 12 of them, which is for
#: the CUDA context and what the allocator cannot use.
GB = 10**9

#: Share of a GPU's memory that measures leave free where they can: what torch's allocator held
#: beside what was in use came to 2.6% when a plan of 23.8 GB did not fit into 24.
_SPARE = 0.04

#: Bytes a second from page-locked memory to a card, PCIe 4.0 with 16 lanes.
_BUS = 25 * GB

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fit:
    """How a task is to be done.

    Attributes:
        budget: bytes that were allowed.
        task: with all measures in it.
        plan: of that task.
        measures: a sentence each, what is done and what it costs.
        text_on_cpu: whether prompts are encoded there, always.
    """

    budget: int
    task: Task
    plan: MemoryPlan
    measures: tuple[str, ...]
    text_on_cpu: bool

    @property
    def peak(self) -> int:
        """Bytes planned on the device."""
        return self.plan.editing if self.text_on_cpu else self.plan.peak

    def lines(self) -> list[str]:
        """The plan in plain words."""
        room = f"{self.peak / GB:.2f} GB of {self.budget / GB:g} GB"
        if not self.measures:
            return [f"{room}: nothing has to be done to save memory"]
        return [f"{room}, and to save memory:", *(f"- {each}" for each in self.measures)]


def find_fit(
    source: Source, dtype: torch.dtype, task: Task, device: torch.device, budget: int
) -> Fit:
    """The mildest measures with which a task stays below so many bytes on a device.

    Args:
        source: of the model; its configurations are known.
        dtype: of weights.
        task: what it says of formats, other than "auto", is not changed.
        device: a CPU's memory is that of the whole process; need not be there.
        budget: bytes, everything included.

    Raises:
        ModelError: nothing is enough, or see `plan`.
    """
    search = _Search(source, dtype, device, budget)
    measures: list[str] = []
    planned = search.plan(task)
    for step in _STEPS:
        if search.at_ease(planned):
            break
        found = step(search, task)
        # what saves nothing is left alone
        if found is not None and (after := search.plan(found[0])).editing < planned.editing:
            task, planned = found[0], after
            measures.append(found[1])
    if not search.fits(planned):
        raise ModelError(_refusal(search, task, planned))
    text_on_cpu = search.text_on_cpu(planned)
    if text_on_cpu:
        measures.append("prompts are encoded on the CPU, once each: that takes seconds")
    elif planned.encoding and not search.on_cpu and planned.encoding + planned.editing > budget:
        measures.append(
            "the text encoder is released before the rest is loaded: prompts that come later are "
            "encoded on the CPU, in seconds"
        )
    return Fit(budget, task, planned, tuple(measures), text_on_cpu)


class _Search:
    """Plans of one model on one device, of tasks that are asked about."""

    def __init__(
        self, source: Source, dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        self.source, self.dtype, self.budget = source, dtype, budget
        self.on_cpu = device.type == "cpu"
        self._device = device
        self._plans: dict[Task, MemoryPlan] = {}

    @property
    def layers(self) -> int:
        """Of the transformer."""
        count: int = self.source.config("transformer")["num_layers"]
        return count

    def plan(self, task: Task) -> MemoryPlan:
        """What a task takes."""
        if task not in self._plans:
            self._plans[task] = plan(self.source, self.dtype, task, self._device)
        return self._plans[task]

    def text_on_cpu(self, planned: MemoryPlan) -> bool:
        """Whether prompts cannot be encoded on the device."""
        return not self.on_cpu and planned.encoding > self.budget

    def fits(self, planned: MemoryPlan) -> bool:
        """Whether a plan does; text can be encoded elsewhere, but for on a CPU."""
        return (planned.peak if self.on_cpu else planned.editing) <= self.budget

    def at_ease(self, planned: MemoryPlan) -> bool:
        """Whether a plan fits and leaves a GPU's allocator what it cannot use."""
        if self.on_cpu:
            return self.fits(planned)
        return planned.editing <= (1 - _SPARE) * self.budget

    def least(self, tasks: Sequence[Task]) -> Task:
        """The first of some tasks that fits at ease, each taking less than the one before; else
        the last."""
        low, high = 0, len(tasks) - 1
        while low < high:
            middle = (low + high) // 2
            eased = self.at_ease(self.plan(tasks[middle]))
            low, high = (low, middle) if eased else (middle + 1, high)
        return tasks[low]


#: From a task to one that takes less, and what is done then; None: it is not for this task.
_Step = Callable[[_Search, Task], "tuple[Task, str] | None"]


def _size(count: float) -> str:
    """Bytes in words."""
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 10**6:.1f} MB"


def _store(_: _Search, task: Task) -> tuple[Task, str] | None:
    if task.store != "auto":
        return None
    return replace(task, store="fp8"), "what recovery stores is stored in FP8"


def _cache(search: _Search, task: Task) -> tuple[Task, str] | None:
    settings = stream_settings(search.source, task)
    # a sink that is an average loses in FP8 what comes to it
    if task.cache != "auto" or (settings.sink_average is not None and settings.sink_frames):
        return None
    kept = replace(task, cache="fp8")
    before, after = search.plan(task).cache, search.plan(kept).cache
    return kept, (
        f"keys and values of earlier frames are kept in FP8, {_size(after)} instead of "
        f"{_size(before)}: every pass unpacks them, and results change by the rounding"
    )


def _weights(search: _Search, task: Task) -> tuple[Task, str] | None:
    packed = replace(task, weights="fp8")
    before, after = search.plan(task).transformer, search.plan(packed).transformer
    return packed, (
        f"the transformer's weights are stored in FP8, {_size(after)} instead of {_size(before)}: "
        f"results change by the rounding, and cards without products in FP8 unpack them in every "
        f"pass"
    )


def _window(search: _Search, task: Task) -> tuple[Task, str] | None:
    settings = stream_settings(search.source, task)
    now, block = settings.window_frames, settings.block_frames
    least = block if settings.sink_average is None else 2 * block - 1
    smaller = [replace(task, window=n) for n in range(now - 1, least, -1)]
    if not smaller:
        return None
    seen = search.least(smaller)
    return seen, (
        f"attention sees the latest {seen.window} frames instead of {now}: results change"
    )


def _offload(search: _Search, task: Task) -> tuple[Task, str] | None:
    if search.on_cpu or task.offloaded:
        return None
    layers = search.layers
    kept = search.least([replace(task, offloaded=n) for n in range(1, layers + 1)])
    # of all layers but the two that are there at a time
    whole = search.plan(task).transformer
    layer = (whole - search.plan(replace(task, offloaded=layers)).transformer) / max(layers - 2, 1)
    copied = kept.offloaded * layer
    return kept, (
        f"{kept.offloaded} of {layers} layers stay on the CPU: every pass copies "
        f"{_size(copied)}, {1000 * copied / _BUS:.0f} ms at {_BUS / GB:g} GB/s, while others "
        f"compute"
    )


#: In order of harm.
_STEPS: tuple[_Step, ...] = (_store, _cache, _weights, _window, _offload)


def _refusal(search: _Search, task: Task, planned: MemoryPlan) -> str:
    needed = planned.peak if search.on_cpu else planned.editing
    told = (
        f"{search.source.name} at {task.width}x{task.height} needs {needed / GB:.2f} GB with "
        f"everything done to save memory, and {search.budget / GB:g} GB are allowed: try "
    )
    if planned.vae_kind == "full" and search.source.recipe is not None:
        small = _Search(replace(search.source, vae="tiny"), search.dtype, search._device, 0)
        other = small.plan(task)
        least = other.peak if search.on_cpu else other.editing
        return f"{told}--vae tiny, which needs {least / GB:.2f} GB"
    return told + ("--dtype bfloat16" if search.dtype == torch.float32 else "a smaller --height")
