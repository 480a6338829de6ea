"""How a stream is denoised: the numbers that a block loop is set up with.

Knows which of them fit together, not the model they are meant for: the engine compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from stillframe.kernels.rows import FP8
from stillframe.tokens.schedule import Pass

__all__ = ["CACHES", "EXECUTIONS", "PRODUCTS", "STORES", "StreamSettings", "check_store"]

#: What `StreamSettings.store` may be.
STORES = ("auto", "exact", "fp8")

#: What `StreamSettings.cache` may be.
CACHES = ("auto", "exact", "fp8")

#: What `StreamSettings.products` may be.
PRODUCTS = ("auto", "exact", "fp8")

#: What `StreamSettings.execution` may be.
EXECUTIONS = ("auto", "graphs", "fused", "reference")

# what a stream that runs may change: how the next block is denoised
_CHANGEABLE = ("sigmas", "told", "source_noise", "first", "conditioning")


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
        cache: how keys and values of committed frames are kept: "exact" in the weights' format,
            "fp8" in one byte a number, of which every pass makes what it reads anew, "auto" as the
            model was loaded for, which is "exact" where nobody asked for less memory.
        execution: how passes are run: "reference" through the model's own modules, "fused" in fewer
            kernels, "graphs" as CUDA graphs of those, "auto" the last on CUDA and the first
            elsewhere. What a model or method does not allow is run the first way, whatever this
            says.
        products: the matrix products of fused passes: "exact" in the weights' format, or "fp8"
            where it pays, on cards that have it (Hopper and later); "auto" as ``cache``.
        told: level that the model is told in each pass; None: ``sigmas``.
        source_noise: level that the source is brought to before the first pass; None: its sigma.
        source_scale: (mean, standard deviation) of each latent channel, where a model starts from
            source latents that are not normalised.
        first: the passes of a stream's first block; none: those of the others.
        context_sink: whether the context pass sees the sink, also when frames have left the window.
        context_noise: level that results are brought to for the context pass, by the last pass's
            noise: a model that has not learnt what errors its own results have makes more of them
            from block to block where its context is taken for clean.
        sink_average: share that a sink keeps of itself when frames leave the window; the rest
            comes from the latest block. None: sinks stay as they are.
        recompute_context: whether another prompt computes keys and values of the window anew.

    Raises:
        ValueError: if the window cannot hold a block or the positions cannot hold the window, or
            fields do not fit together.
    """

    sigmas: tuple[float, ...]
    conditioning: str = "sdedit"
    block_frames: int = 3
    sink_frames: int = 1
    window_frames: int = 6
    position_limit: int = 21
    timestep_scale: float = 1000.0
    store: str = "auto"
    cache: str = "auto"
    execution: str = "auto"
    products: str = "auto"
    told: tuple[float, ...] | None = None
    source_noise: float | None = None
    source_scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    first: tuple[Pass, ...] = ()
    context_sink: bool = True
    context_noise: float = 0.0
    sink_average: float | None = None
    recompute_context: bool = False

    def __post_init__(self) -> None:
        if self.conditioning not in ("source", "sdedit"):
            raise ValueError(f"conditioning is 'source' or 'sdedit', got {self.conditioning!r}")
        check_store(self.store)
        if self.execution not in EXECUTIONS:
            known = ", ".join(EXECUTIONS)
            raise ValueError(f"unknown execution {self.execution!r}; known: {known}")
        if self.cache not in CACHES:
            raise ValueError(f"cache is 'auto', 'exact' or 'fp8', got {self.cache!r}")
        if self.products not in PRODUCTS:
            raise ValueError(f"products are 'auto', 'exact' or 'fp8', got {self.products!r}")
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
        self._check_passes()
        self._check_context()
        self._check_average()

    def _check_passes(self) -> None:
        count = len(self.sigmas)
        if self.told is not None and len(self.told) != count:
            raise ValueError(f"a model is told {len(self.told)} levels in {count} passes")
        if self.source_noise is not None and not 0 < self.source_noise <= 1:
            raise ValueError(f"a source is noised to a level in (0, 1], got {self.source_noise}")
        if self.first and len(self.first) < count:
            raise ValueError(f"a first block has at least {count} passes, got {len(self.first)}")

    def _check_context(self) -> None:
        if not 0 <= self.context_noise < 1:
            raise ValueError(f"context is noised to a level in [0, 1), got {self.context_noise}")
        if self.context_noise and self.recompute_context:
            raise ValueError(
                f"context that is computed anew is clean, and this one is noised to "
                f"{self.context_noise}"
            )

    def _check_average(self) -> None:
        if self.sink_average is None:
            return
        if not 0 <= self.sink_average <= 1:
            raise ValueError(f"a sink keeps a share in [0, 1] of itself, got {self.sink_average}")
        if self.sink_frames not in (0, self.block_frames):
            raise ValueError(
                f"a sink that is an average has the {self.block_frames} frames of a block, "
                f"got {self.sink_frames}"
            )
        if self.sink_frames and self.window_frames < 2 * self.block_frames:
            raise ValueError(
                f"a sink that is an average needs a window of {2 * self.block_frames} frames, "
                f"got {self.window_frames}"
            )
        if self.cache == "fp8" and self.sink_frames:
            raise ValueError(
                f"a sink that keeps {self.sink_average} of itself cannot be kept in FP8"
            )

    def passes(self, first: bool = False) -> tuple[Pass, ...]:
        """The denoising passes of a block; of a stream's first one or of any other."""
        if first and self.first:
            return self.first
        told = self.sigmas if self.told is None else self.told
        passes = [Pass(sigma, t, sigma) for sigma, t in zip(self.sigmas, told, strict=True)]
        if self.source_noise is not None:
            passes[0] = passes[0]._replace(noise=self.source_noise)
        return tuple(passes)

    def check_change(self, after: StreamSettings) -> None:
        """Raise a ValueError unless a stream that runs can go on with other settings."""
        for name in (f.name for f in fields(self)):
            old, new = getattr(self, name), getattr(after, name)
            if old != new and name not in _CHANGEABLE:
                raise ValueError(f"{name} of a stream cannot change, from {old} to {new}")

    def store_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Format of what a recovery stores, for weights of a format."""
        if self.store == "exact" or (self.store == "auto" and weights.itemsize != 2):
            return weights
        return FP8

    def cache_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Format of what the cache keeps, for weights of a format."""
        return FP8 if self.cache == "fp8" else weights

    def resolved_store(self, weights: torch.dtype) -> str:
        """The same as a name: "exact" or "fp8"."""
        return "fp8" if self.store_dtype(weights) == FP8 else "exact"
