"""Which stream goes with which autoencoder."""

from __future__ import annotations

from diffusers import AutoencoderKLWan
from torch import nn

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_stream import TinyStream
from stillframe.autoencoders.wan_stream import WanStream
from stillframe.errors import ModelError

__all__ = ["StreamingAutoencoder", "TinyStream", "WanStream", "open_autoencoder", "timeline_of"]


def open_autoencoder(vae: nn.Module, block_frames: int) -> StreamingAutoencoder:
    """A stream through ``vae``.

    Raises:
        ModelError: if it is neither a `TinyVideoAutoencoder` nor an ``AutoencoderKLWan``.
    """
    return _stream_class(vae)(vae, block_frames)


def timeline_of(vae: nn.Module, block_frames: int) -> Timeline:
    """How frames go together in any stream through ``vae``, with blocks of so many latent frames.

    Raises:
        ModelError: as `open_autoencoder`.
    """
    return _stream_class(vae).timeline_of(vae, block_frames)


def _stream_class(vae: nn.Module) -> type[StreamingAutoencoder]:
    for kind, stream in ((TinyVideoAutoencoder, TinyStream), (AutoencoderKLWan, WanStream)):
        if isinstance(vae, kind):
            return stream
    raise ModelError(
        f"autoencoders are TinyVideoAutoencoder or AutoencoderKLWan, got {type(vae).__name__}"
    )
