"""How a stream is denoised: the numbers that a block loop is set up with.

Knows which of them fit together, not the model they are meant for: the engine compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from stillframe.kernels.rows import FP8

__all__ = ["EXECUTIONS", "PRODUCTS", "STORES", "StreamSettings", "check_store"]

#: What `StreamSettings.store` may be.
STORES = ("auto", "exact", "fp8")

#: What `StreamSettings.products` may be.
PRODUCTS = ("exact", "fp8")

#: What `StreamSettings.execution` may be.
EXECUTIONS = ("auto", "graphs", "fused", "reference")


def check_store(store: str) -> str:
    """The name back if there is such a store.

    Raises:
        ValueError: there is none.
    """
    if store not in STORES:
        raise ValueError(f"store is 'auto', 'exact' or 'fp8', got {store!r}")
    return store


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is denoised.

    Attributes:
        sigmas: noise level of each denoising pass, falling.
        conditioning: "source" concatenates the source latents to the input, "sdedit" only starts
            from them.
        block_frames: S, latent frames a block.
        sink_frames, window_frames: attention sees the first and the latest so many frames, the
            block included (the papers' ``m = (1, 6)``).
        position_limit: temporal positions in use, see `rope.frame_positions`.
        timestep_scale: the model's timestep at sigma 1.
        store: how a recovery stores keys and values beyond the cache: "exact" in the weights'
            format, "fp8" in one byte a number, "auto" in fp8 where weights have 16 bits.
        execution: how passes are run: "reference" through the model's own modules, "fused" in fewer
            kernels, "graphs" as CUDA graphs of those, "auto" the last on CUDA and the first
            elsewhere. What a model or method does not allow is run the first way, whatever this
            says.
        products: the matrix products of fused passes: "exact" in the weights' format, or "fp8"
            where it pays, on cards that have it (Hopper and later).

    Raises:
        ValueError: if the window cannot hold a block or the positions cannot hold the window.
    """

    sigmas: tuple[float, ...]
    conditioning: str = "sdedit"
    block_frames: int = 3
    sink_frames: int = 1
    window_frames: int = 6
    position_limit: int = 21
    timestep_scale: float = 1000.0
    store: str = "auto"
    execution: str = "auto"
    products: str = "exact"

    def __post_init__(self) -> None:
        if self.conditioning not in ("source", "sdedit"):
            raise ValueError(f"conditioning is 'source' or 'sdedit', got {self.conditioning!r}")
        check_store(self.store)
        if self.execution not in EXECUTIONS:
            known = ", ".join(EXECUTIONS)
            raise ValueError(f"unknown execution {self.execution!r}; known: {known}")
        if self.products not in PRODUCTS:
            raise ValueError(f"products are 'exact' or 'fp8', got {self.products!r}")
        if self.block_frames < 1 or self.sink_frames < 0:
            raise ValueError(
                f"a block needs at least 1 frame and sinks at least 0, "
                f"got {self.block_frames} and {self.sink_frames}"
            )
        if self.window_frames < self.block_frames:
            raise ValueError(
                f"a window of {self.window_frames} frames cannot hold a block of "
                f"{self.block_frames}"
            )
        if self.position_limit < self.sink_frames + self.window_frames:
            raise ValueError(
                f"{self.position_limit} positions cannot hold {self.sink_frames} sink and "
                f"{self.window_frames} window frames"
            )

    def check_change(self, after: StreamSettings) -> None:
        """Raise a ValueError unless a stream that runs can go on with other settings."""
        for name in (f.name for f in fields(self)):
            old, new = getattr(self, name), getattr(after, name)
            if old != new and name not in ("sigmas", "conditioning"):
                raise ValueError(f"{name} of a stream cannot change, from {old} to {new}")

    def store_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Format of what a recovery stores, for weights of a format."""
        if self.store == "exact" or (self.store == "auto" and weights.itemsize != 2):
            return weights
        return FP8

    def resolved_store(self, weights: torch.dtype) -> str:
        """The same as a name: "exact" or "fp8"."""
        return "fp8" if self.store_dtype(weights) == FP8 else "exact"
