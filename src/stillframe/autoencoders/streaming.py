"""Which stream goes with which autoencoder."""

from __future__ import annotations

from inspect import signature
from typing import Any

from diffusers import AutoencoderKLWan
from torch import nn

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_stream import TinyStream
from stillframe.autoencoders.wan_stream import WanStream
from stillframe.errors import ModelError

__all__ = [
    "StreamingAutoencoder",
    "TinyStream",
    "WanStream",
    "latent_statistics",
    "open_autoencoder",
    "timeline_of",
]


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


def latent_statistics(vae: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, by which latents of ``vae`` are normalised.

    The published tiny autoencoder has none of its own: it is trained to hand out the latents of Wan
    2.1's, normalised, whose numbers are diffusers' defaults.

    Raises:
        ModelError: it has as many channels as no such autoencoder.
    """
    _stream_class(vae)
    config = vae.config
    found = config["latents_mean"], config["latents_std"]
    if None in found:
        known = signature(AutoencoderKLWan.__init__).parameters
        found = known["latents_mean"].default, known["latents_std"].default
        if len(found[0]) != config["latent_channels"]:
            raise ModelError(
                f"an autoencoder of {config['latent_channels']} latent channels does not say how "
                f"they are normalised, and Wan 2.1's has {len(found[0])}"
            )
    mean, deviation = found
    return tuple(map(float, mean)), tuple(map(float, deviation))


def _stream_class(vae: nn.Module) -> type[StreamingAutoencoder]:
    for kind, stream in ((TinyVideoAutoencoder, TinyStream), (AutoencoderKLWan, WanStream)):
        if isinstance(vae, kind):
            return stream
    raise ModelError(
        f"autoencoders are TinyVideoAutoencoder or AutoencoderKLWan, got {type(vae).__name__}"
    )
