"""Edits confined to a region: the rest of the picture is what the autoencoder makes of the source.

Latents outside of the region are the source's, and so the decoder blends the two at the border. Its
layers reach far, though, 100 pixels and more, and what is outside shall not change at all. So the
source is decoded a second time, in a stream of its own, and pixels outside are taken from that. Not
known here: what was computed, or why.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline

__all__ = ["Confinement", "Decoder"]


class Decoder(Protocol):
    """What of an autoencoder's stream is needed, see ``StreamingAutoencoder``."""

    timeline: Timeline

    def decode(self, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        """Frames (B, T, 3, H, W) of the next block (B, C, S, h, w)."""
        ...


class Confinement:
    """The decoding of one stream whose edit is confined. Costs a second decoding."""

    def __init__(self) -> None:
        self._source_decoder: Any = None

    def decode(self, decoder: Decoder, edited: Tensor, source: Tensor, places: Tensor) -> Tensor:
        """Frames of the next block.

        Args:
            decoder: the stream that gives the frames.
            edited, source: latents (B, C, S, h, w) of the result and of the source.
            places: patches that are edited, (S, h', w') bool.

        Returns:
            (B, T, 3, H, W); outside of the places, bit for bit what ``decoder`` would have given
            for the source alone.
        """
        if self._source_decoder is None:
            self._source_decoder = copy.copy(decoder)
            self._source_decoder.reset()
        inside = _enlarged(places, edited.shape[-2] // places.shape[1])
        frames = decoder.decode(torch.where(inside, edited, source.to(edited.dtype)))
        around = self._source_decoder.decode(source)
        missing = places.shape[0] * decoder.timeline.temporal - around.shape[1]
        by_frame = inside.repeat_interleave(decoder.timeline.temporal, 0)[missing:]
        # at the end of a stream some of the frames are not wanted
        count = frames.shape[1]
        pixels = _enlarged(by_frame[:count], decoder.timeline.spatial).unsqueeze(1)
        return torch.where(pixels, frames, around[:, :count])


def _enlarged(places: Tensor, times: int) -> Tensor:
    """Every place (S, h, w) as a square of ``times`` a side."""
    return places.repeat_interleave(times, 1).repeat_interleave(times, 2)
