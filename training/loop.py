"""What both training loops share: schedule by elapsed time, weight averages, safe checkpoints.

A schedule driven by elapsed training time, and not by steps, ends where it should on any machine;
the time already spent is part of the checkpoint, so a run may be cut into chunks.

This file knows nothing of models, data or losses.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillframe.whole_file import open_whole

__all__ = [
    "Average",
    "Budget",
    "check_finite",
    "learning_rate",
    "load_checkpoint",
    "say",
    "write_checkpoint",
]


def say(message: str) -> None:
    """Print one line at once, so that a run that is cut short still leaves its log."""
    print(message, flush=True)  # noqa: T201


def learning_rate(progress: float, peak: float, warm_up: float = 0.02) -> float:
    """Linear warm-up, then a cosine to 1% of ``peak``; ``progress`` is in [0, 1]."""
    if progress < warm_up:
        return peak * (0.02 + 0.98 * progress / warm_up)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))
    return peak * (0.01 + 0.99 * fall)


class Budget:
    """Time spent training, over chunks.

    Args:
        chunk: seconds that this process may train.
        total: seconds of the whole schedule.
        spent: seconds that earlier chunks trained.
    """

    def __init__(self, chunk: float, total: float, spent: float = 0.0) -> None:
        self.chunk, self.total, self.before = chunk, total, spent
        self.started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds trained, earlier chunks included."""
        return self.before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the whole schedule that is done, at most 1."""
        return min(1.0, self.spent / self.total)

    @property
    def over(self) -> bool:
        """Whether this chunk, or the whole schedule, has used its time."""
        return self.spent - self.before >= self.chunk or self.spent >= self.total


class Average:
    """Exponential moving average of a module's parameters, with a warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay, self.steps = decay, 0
        self.live = list(module.parameters())
        self.names = [name for name, _ in module.named_parameters()]
        self.mean = [parameter.detach().clone() for parameter in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the live parameters; a second call undoes it."""
        for mean, live in zip(self.mean, self.live, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Names, averaged tensors and step count."""
        return {"mean": dict(zip(self.names, self.mean, strict=True)), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.steps = state["steps"]
        for name, mean in zip(self.names, self.mean, strict=True):
            mean.copy_(state["mean"][name])


def check_finite(loss: float) -> None:
    """Stop a run that diverged.

    Raises:
        FloatingPointError: if ``loss`` is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise FloatingPointError(f"training diverged: loss {loss}")


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Save ``state`` so that a crash leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What ``write_checkpoint`` saved, or None where there is none yet."""
    if not path.exists():
        return None
    return torch.load(path, map_location=device, weights_only=True)
