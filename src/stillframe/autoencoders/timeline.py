"""How pixel frames, latent frames and blocks of a stream go together: numbers, and no tensors."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timeline"]


@dataclass(frozen=True)
class Timeline:
    """The geometry of one stream through an autoencoder; frames and blocks count from 0.

    A latent frame stands for ``temporal`` pixel frames, except at the start of a stream, where an
    encoder may take fewer and a decoder may leave some out.

    Attributes:
        temporal: pixel frames of a latent frame.
        spatial: pixels along the side of a latent pixel.
        block_frames: S, latent frames of a block.
        pad: pixel frames that the first latent frame is encoded without, as if they came before the
            stream; 3 for Wan, whose first latent frame stands for a single frame.
        trim: pixel frames that the decoder makes and leaves out at the start of a stream.
        fps: pixel frames a second, None if nobody says.
    """

    temporal: int = 4
    spatial: int = 8
    block_frames: int = 1
    pad: int = 0
    trim: int = 0
    fps: float | None = None

    @property
    def first_frames(self) -> int:
        """Pixel frames that the first block is encoded from."""
        return self.later_frames - self.pad

    @property
    def later_frames(self) -> int:
        """Pixel frames of any other block, in and out."""
        return self.block_frames * self.temporal

    @property
    def missing_frames(self) -> int:
        """Pixel frames by which what the first block is decoded to is short of a full one."""
        return self.pad + self.trim

    def taken_by(self, block: int) -> int:
        """Pixel frames that a block is encoded from."""
        return self.later_frames if block else self.first_frames

    def decoded_from(self, blocks: int) -> int:
        """Pixel frames that so many blocks are decoded to, from the start of the stream."""
        return max(blocks * self.later_frames - self.missing_frames, 0)

    def source_frames(self, latent: int) -> range:
        """Pixel frames of the source that a latent frame is encoded from."""
        return self._span(latent, self.pad)

    def output_frames(self, latent: int) -> range:
        """Pixel frames of the result that a latent frame is decoded to; may be none."""
        return self._span(latent, self.missing_frames)

    def output_latent(self, frame: int) -> int:
        """The latent frame that a pixel frame of the result is decoded from."""
        return (frame + self.missing_frames) // self.temporal

    def _span(self, latent: int, short: int) -> range:
        start = latent * self.temporal - short
        return range(max(start, 0), max(start + self.temporal, 0))
