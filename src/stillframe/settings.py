"""How a stream is denoised: the numbers that a block loop is set up with.

Knows which of them fit together, not the model they are meant for: the engine compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StreamSettings"]


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

    def __post_init__(self) -> None:
        if self.conditioning not in ("source", "sdedit"):
            raise ValueError(f"conditioning is 'source' or 'sdedit', got {self.conditioning!r}")
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
