"""What a network must predict at a place for it to end where its provider does.

The input of a network is x = alpha x0 + sigma eps, and what it predicts is a sum of x and x0: flow
matching predicts eps - x0, others eps, alpha eps - sigma x0, or x0. A pruned place has noise of its
own and takes the x0 of its provider r, so what is predicted there differs from what is predicted at
r by the share of x in it, times x - x_r.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["noise_weight"]


def _sigma(scheduler: Any, timestep: Tensor) -> Tensor | None:
    """The scheduler's own sigma of the step that it is about to take, on the CPU; None: it has
    none."""
    if not hasattr(scheduler, "sigmas"):
        return None
    index = scheduler.step_index
    if index is None:
        index = scheduler.begin_index
    if index is None:
        # timesteps of a token that is given, not denoised, are 0
        index = scheduler.index_for_timestep(timestep.max().to(scheduler.timesteps.device))
    sigma: Tensor = scheduler.sigmas[index]
    return sigma.float().cpu()


def noise_weight(scheduler: Any, timestep: Tensor) -> float:
    """The share of x in what a network predicts.

    Args:
        scheduler: of diffusers, in the denoising loop, before its step.
        timestep: that the network is called with.
    """
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    sigma = _sigma(scheduler, timestep)
    if "FlowMatch" in type(scheduler).__name__ or kind == "flow_prediction":
        assert sigma is not None
        return 1 / float(sigma)
    if sigma is None:
        clean = scheduler.alphas_cumprod[int(timestep.max())]
        alpha, noise = float(clean) ** 0.5, float(1 - clean) ** 0.5
    else:  # of x / alpha
        alpha = 1 / (1 + float(sigma) ** 2) ** 0.5
        noise = alpha * float(sigma)
    return {"epsilon": 1 / noise, "v_prediction": alpha / noise, "sample": 0.0}[kind]
