"""What training loops share: schedule by elapsed time, weight averages, checkpoints, the loop.

A schedule driven by elapsed training time, and not by steps, ends where it should on any machine;
the time already spent is part of the checkpoint, so a run may be cut into chunks.

This file knows nothing of models, data or losses.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillframe.whole_file import open_whole
from training.muon import Together
from training.ranks import Ranks

__all__ = [
    "Average",
    "Budget",
    "Training",
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

    Attributes:
        spent: seconds trained, earlier chunks included, when `tick` was called last.
    """

    def __init__(self, chunk: float, total: float, spent: float = 0.0) -> None:
        self.chunk, self.total, self.before, self.spent = chunk, total, spent, spent
        self.started = time.monotonic()

    def tick(self, ranks: Ranks | None = None) -> None:
        """Look at the clock, the first process's where there are several."""
        now = self.before + time.monotonic() - self.started
        self.spent = now if ranks is None else ranks.agree(now)

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


class Training:
    """One training run that can be resumed: weights, their average, optimiser and time.

    Args:
        name: of what is trained, for the log.
        module: what is trained; every process begins with the first one's weights.
        optimiser: of its parameters.
        path: of the checkpoint, which is read where it is there.
        budget: (seconds of this process, seconds of the whole schedule).
        ranks: the processes that train together.
        most: largest norm of the gradients.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimiser: torch.optim.Optimizer | Together,
        path: Path,
        budget: tuple[float, float],
        ranks: Ranks,
        most: float,
    ) -> None:
        self.name, self.module, self.optimiser, self.path = name, module, optimiser, path
        self.ranks, self.most = ranks, most
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = Average(module)
        self.step, spent = 0, 0.0
        if (state := load_checkpoint(path, ranks.device)) is not None:
            module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            optimiser.load_state_dict(state["optimiser"])
            self.step, spent = state["step"], state["spent"]
        # every process draws its own batches, and other ones after a break
        torch.manual_seed(self.step * ranks.count + ranks.rank)
        self.rng = random.Random(self.step * ranks.count + ranks.rank)
        self.budget = Budget(*budget, spent)

    def restart_average(self) -> None:
        """Begin the average where the weights are now, the same in all processes."""
        self.ranks.copy_first(self.module)
        self.average = Average(self.module)

    def save(self) -> None:
        """Write the checkpoint."""
        if self.ranks.first:
            state = {
                "module": self.module.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "spent": self.budget.spent,
            }
            write_checkpoint(state, self.path)

    def learn(self, loss: Tensor, rate: float) -> Tensor:
        """One step of the optimiser at a learning rate; returns the gradients' norm."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.most)
        self.optimiser.step()
        self.average.update()
        self.step += 1
        return norm

    def run(
        self,
        step: Callable[[], Mapping[str, Tensor]],
        log_every: float = 10,
        save_every: float = 120,
    ) -> None:
        """Train until the time is over.

        Args:
            step: does one step and returns numbers, still on the device, whose means are printed;
                none of them may be infinite or missing.
            log_every, save_every: seconds.
        """
        saved = logged = self.budget.spent
        seen: list[Tensor] = []
        while not self.budget.over:
            numbers = step()
            seen.append(torch.stack([value.detach().float() for value in numbers.values()]))
            self.budget.tick(self.ranks)
            spent = self.budget.spent
            if spent - logged > log_every or self.budget.over:
                means = torch.stack(seen).mean(0).tolist()
                check_finite(sum(means))
                told = ", ".join(f"{name} {x:.4g}" for name, x in zip(numbers, means, strict=True))
                rate = len(seen) / max(spent - logged, 1e-9)
                if self.ranks.first:
                    say(f"{self.name} step {self.step} at {spent:.0f} s: {told}, {rate:.2f}/s")
                seen, logged = [], spent
            if spent - saved > save_every:
                self.save()
                saved = spent
        self.save()
