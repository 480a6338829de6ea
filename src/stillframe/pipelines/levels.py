"""From what is asked for to noise levels: what a model is told, and what it is denoised at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillframe.tokens.schedule import Pass, check_sigmas, nearest_sigma, scheduler_shift

__all__ = ["NoiseLevels"]


class NoiseLevels:
    """What a `CausalWanPipeline` makes of noise levels, by its configuration."""

    config: Any
    scheduler: Any

    def levels(self, told: Sequence[float]) -> dict[str, tuple[float, ...] | None]:
        """``sigmas`` and ``told`` of `StreamSettings`, from levels that a model is told.

        Raises:
            ValueError: they are no schedule.
        """
        if not self.config.nearest_sigmas:
            return {"sigmas": check_sigmas(told), "told": None}
        # 0 is a level that some are told; their grid's nearest is above it
        check_sigmas([max(level, 1e-12) for level in told])
        shift, steps = scheduler_shift(self.scheduler.config), self._timesteps
        sigmas = check_sigmas([nearest_sigma(level, shift, steps) for level in told])
        return {"sigmas": sigmas, "told": tuple(map(float, told))}

    def first_passes(self, told: Sequence[float] | None) -> tuple[Pass, ...]:
        """``first`` of `StreamSettings`, likewise; none for None."""
        if told is None:
            return ()
        found = self.levels(told)
        sigmas = found["sigmas"] or ()
        return tuple(map(Pass, sigmas, found["told"] or sigmas, sigmas))

    @property
    def traits(self) -> dict[str, Any]:
        """What of `StreamSettings` is a model's own, whatever it is asked for."""
        names = "context_sink", "context_noise", "sink_average", "recompute_context"
        return {name: self.config[name] for name in names}

    @property
    def _timesteps(self) -> int:
        steps: int = self.scheduler.config.num_train_timesteps
        return steps
