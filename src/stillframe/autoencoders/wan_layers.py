"""The layers of Wan's autoencoder over buffers that stay, one latent frame at a time.

A convolution reads a buffer of its own, in which frames before and the surroundings of what is
computed are found: the *map* of its input. What lies between a convolution and the next buffer is
looked at pixel by pixel, so it is scratch. Weights belong to layers, buffers to a stream (`Maps`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor, nn

from stillframe.kernels.causal_convolution import convolve
from stillframe.kernels.causal_weights import CausalConvolution
from stillframe.kernels.channel_norm import Norm, place
from stillframe.kernels.frames import ChosenCells, Frames, padded_channels, scratch

__all__ = ["Layer", "Level", "Maps", "Turn", "decoder_layers", "encoder_layers"]


@dataclass(frozen=True)
class Level:
    """A resolution: ``frames`` of a latent frame, ``side`` pixels along the side of a cell."""

    frames: int
    side: int

    def scaled(self, frames: float, side: float) -> Level:
        """With so many times the frames and pixels."""
        return Level(int(self.frames * frames), int(self.side * side))


@dataclass
class Maps:
    """The buffers of one stream through an encoder or a decoder.

    As long as everything is computed, layers of the same shape take turns with one buffer, and of
    each only what the next latent frame sees of the past is kept.

    Attributes:
        shape: B, h, w of latent frames.
        like: nothing, of the dtype and on the device that buffers are made with.
        shared: those buffers, which others that work at other times may share.
        kept: whether every layer has a buffer of its own, which stays. The first latent frame after
            this has become true has to be computed whole.
    """

    shape: tuple[int, int, int]
    like: Tensor
    shared: dict[object, Frames]
    kept: bool = False
    _known: dict[object, Frames] = field(default_factory=dict)
    _pasts: dict[object, Tensor] = field(default_factory=dict)

    def buffer(
        self, key: object, level: Level, channels: int, past: int = 0, border: int = 0
    ) -> Frames:
        """The buffer of a layer, zeros before it is written."""
        known = self._known if self.kept else self.shared
        name = key if self.kept else (level, channels, past, border)
        if name not in known:
            base = self._zeros(level, channels, past + level.frames, border)
            if self.kept and key in self._pasts:
                base[:, -past:] = self._pasts.pop(key)
            known[name] = Frames(base, past, border)
        return known[name]

    def past(
        self, key: object, level: Level, channels: int, past: int, border: int
    ) -> Tensor | None:
        """What is kept of a layer's latest frames, as `Frames.base`; None where all of them are."""
        if self.kept or not past:
            return None
        if key not in self._pasts:
            self._pasts[key] = self._zeros(level, channels, past, border)
        return self._pasts[key]

    def _zeros(self, level: Level, channels: int, frames: int, border: int) -> Tensor:
        batch, h, w = self.shape
        height, width = (side * level.side + 2 * border for side in (h, w))
        # whoever comes next may be in inference mode or not
        with torch.inference_mode(False):
            return self.like.new_zeros(batch, frames, height, width, channels)

    @property
    def size(self) -> int:
        """Bytes of all buffers but shared ones."""
        tensors = [*(x.base for x in self._known.values()), *self._pasts.values()]
        return sum(x.numel() * x.element_size() for x in tensors)


@dataclass(frozen=True)
class Turn:
    """How one latent frame is computed.

    Attributes:
        maps: the stream's buffers.
        first: whether it is the stream's first one, which stands for a single pixel frame.
        cells: active cells; None for all.
        recent: those, and those whose past is not what it was when they were last active, since
            they were so a latent frame or two ago; None for all.
    """

    maps: Maps
    first: bool = False
    cells: ChosenCells | None = None
    recent: ChosenCells | None = None
    _pasts: dict[Frames, Tensor] = field(default_factory=dict)

    def buffer(
        self, key: object, level: Level, channels: int, past: int = 0, border: int = 0
    ) -> Frames:
        """The buffer of a layer that reads it in convolutions, as far as this latent frame goes."""
        given = key, level, padded_channels(channels), past, border
        whole = self.maps.buffer(*given)
        frames = whole.last(1) if self.first else whole
        kept = self.maps.past(*given)
        if kept is not None:
            self._pasts[frames] = kept
        return frames

    def place(self, norm: Norm, x: Tensor | None, out: Frames, level: Level) -> None:
        """See `kernels.channel_norm.place`."""
        kept = self._pasts.get(out)
        if kept is not None:
            out.base[:, : out.past] = kept
            if x is None:
                return
            out = Frames(out.base[:, out.past :], 0, out.border)
        place(norm, x, out, self.cells, self.recent, level.side)

    def end(self, frames: Frames) -> None:
        """The frames of a buffer are there: keep what is their past later."""
        kept = self._pasts.get(frames)
        if kept is not None:
            kept.copy_(frames.base[:, -frames.past :])

    def convolve(
        self,
        convolution: CausalConvolution,
        x: Frames,
        level: Level,
        *,
        added: Frames | None = None,
        out: Frames | None = None,
    ) -> Frames:
        """See `kernels.causal_convolution.convolve`; ``x`` is there by now."""
        self.end(x)
        return convolve(convolution, x, out, added, self.cells, level.side)


#: From frames to frames, see `Turn`.
Layer = Callable[[Frames, Turn], Frames]

_COPY = Norm()


class _Normed:
    """A norm, the buffer it writes to and the convolution that reads that."""

    def __init__(self, norm: Norm, conv: Any, level: Level) -> None:
        self._norm, self._conv, self._level = norm, _convolution(conv), level

    def __call__(self, x: Frames, turn: Turn, added: Frames | None = None) -> Frames:
        conv = self._conv
        buffer = turn.buffer(self, self._level, conv.channels, conv.past, conv.border)
        turn.place(self._norm, x.latest[..., : conv.channels], buffer, self._level)
        return turn.convolve(conv, buffer, self._level, added=added, out=self._output(turn))

    def _output(self, turn: Turn) -> Frames | None:
        return None


class _Exit(_Normed):
    """The last convolution, whose output is a map, too: what is handed out stays."""

    def _output(self, turn: Turn) -> Frames:
        whole = turn.maps.buffer((self, "output"), self._level, self._conv.width)
        return whole.last(1) if turn.first else whole


class _Residual:
    def __init__(self, block: WanResidualBlock, level: Level) -> None:
        self._first = _Normed(_norm(block.norm1, silu=True), block.conv1, level)
        self._second = _Normed(_norm(block.norm2, silu=True), block.conv2, level)
        self._level = level
        same = isinstance(block.conv_shortcut, nn.Identity)
        self._shortcut = None if same else _convolution(block.conv_shortcut)

    def __call__(self, x: Frames, turn: Turn) -> Frames:
        added = x if self._shortcut is None else turn.convolve(self._shortcut, x, self._level)
        return self._second(self._first(x, turn), turn, added)


class _Attention:
    """One head over all places of a frame.

    Keys and values are maps, overwritten at active cells. A place that is not active is looked at
    as it was when it was last computed, and looks at nothing: what it would find anew, now that
    others have changed, is left out. Its query is asked with the others, since picking them would
    cost as much.
    """

    def __init__(self, block: Any, level: Level) -> None:
        self._norm, self._level = _norm(block.norm, silu=False), level
        self._project = _convolution(block.to_qkv)
        self._out = _convolution(block.proj)

    def __call__(self, x: Frames, turn: Turn) -> Frames:
        width = self._out.channels
        if turn.cells is not None and not turn.cells.on_device and not len(turn.cells):
            return x
        rows = scratch(x.base, (*x.latest.shape[:4], width))
        turn.place(self._norm, x.latest[..., :width], rows, self._level)
        projected = turn.buffer(self, self._level, 3 * width)
        turn.convolve(self._project, rows, self._level, out=projected)
        qkv = projected.latest[..., : 3 * width].flatten(2, 3).flatten(0, 1).unsqueeze(1)
        query, key, value = qkv.chunk(3, -1)
        found = F.scaled_dot_product_attention(query, key, value)
        rows.base[..., :width] = found.view(*rows.base.shape[:4], width)
        return turn.convolve(self._out, rows, self._level, added=x)


class _Grow:
    """Twice as large, and twice the frames where there is a convolution in time."""

    def __init__(self, resample: WanResample, level: Level) -> None:
        self._conv = _convolution(resample.resample[1], enlarge=True)
        self._level, self._slow = level, level
        self._time = None
        if resample.mode == "upsample3d":
            self._time = _convolution(resample.time_conv, grow=2)
            self._level = level.scaled(2, 1)

    def __call__(self, x: Frames, turn: Turn) -> Frames:
        source = turn.buffer(self, self._level, self._conv.channels, border=1)
        frames = x.latest[..., : self._conv.channels]
        # the first latent frame grows to no second one, and nobody sees it as the past
        if self._time is None or turn.first:
            turn.place(_COPY, frames, source, self._level)
        else:
            past = turn.buffer(
                (self, "past"), self._slow, self._time.channels, past=self._time.past
            )
            turn.place(_COPY, frames, past, self._slow)
            turn.convolve(self._time, past, self._slow, out=source)
        return turn.convolve(self._conv, source, self._level)


class _Shrink:
    """Half as large, and half the frames where there is a convolution in time."""

    def __init__(self, resample: WanResample, level: Level) -> None:
        self._conv = _convolution(resample.resample[1], stride=2)
        self._level, self._small = level, level.scaled(1, 0.5)
        self._time = None
        if resample.mode == "downsample3d":
            self._time = _convolution(resample.time_conv, pool=2)

    def __call__(self, x: Frames, turn: Turn) -> Frames:
        source = turn.buffer(self, self._level, self._conv.channels, border=1)
        turn.place(_COPY, x.latest[..., : self._conv.channels], source, self._level)
        if self._time is None:
            return turn.convolve(self._conv, source, self._small)
        past = turn.buffer((self, "past"), self._small, self._conv.width, past=self._time.past)
        turn.place(_COPY, None, past, self._small)
        turn.convolve(self._conv, source, self._small, out=past)
        if turn.first:  # not pooled, but what the second one is pooled with
            turn.end(past)
            return Frames(past.latest.clone())
        return turn.convolve(self._time, past, self._small)


def encoder_layers(encoder: Any, frames: int, side: int) -> tuple[list[Layer], Level]:
    """Layers of Wan's encoder, from pixels to moments, and the level of those.

    Args:
        encoder: diffusers' ``WanEncoder3d``, not of the residual kind.
        frames: pixel frames of a latent frame.
        side: pixels along the side of a cell.
    """
    level = Level(frames, side)
    layers: list[Layer] = [_Normed(_COPY, encoder.conv_in, level)]
    for block in encoder.down_blocks:
        layers.append(_layer(block, level))
        if isinstance(block, WanResample):
            level = level.scaled(0.5 if block.mode == "downsample3d" else 1, 0.5)
    layers += _middle(encoder.mid_block, level)
    layers.append(_Exit(_norm(encoder.norm_out, silu=True), encoder.conv_out, level))
    return layers, level


def decoder_layers(decoder: Any) -> tuple[list[Layer], Level]:
    """Layers of Wan's decoder, from latents to pixels, and the level of those.

    Args:
        decoder: diffusers' ``WanDecoder3d``, not of the residual kind.
    """
    level = Level(1, 1)
    layers: list[Layer] = [_Normed(_COPY, decoder.conv_in, level)]
    layers += _middle(decoder.mid_block, level)
    for block in decoder.up_blocks:
        layers += [_layer(resnet, level) for resnet in block.resnets]
        for resample in block.upsamplers or ():
            layers.append(_layer(resample, level))
            level = level.scaled(2 if resample.mode == "upsample3d" else 1, 2)
    layers.append(_Exit(_norm(decoder.norm_out, silu=True), decoder.conv_out, level))
    return layers, level


def _middle(block: Any, level: Level) -> list[Layer]:
    first, *rest = block.resnets
    layers = [_layer(first, level)]
    for attention, resnet in zip(block.attentions, rest, strict=True):
        layers += [_layer(attention, level), _layer(resnet, level)]
    return layers


def _layer(block: Any, level: Level) -> Layer:
    if isinstance(block, WanResidualBlock):
        return _Residual(block, level)
    if isinstance(block, WanResample):
        return (_Grow if block.mode.startswith("upsample") else _Shrink)(block, level)
    return _Attention(block, level)


def _norm(norm: WanRMS_norm, *, silu: bool) -> Norm:
    return Norm(norm.gamma.data.flatten(), silu)


def _convolution(
    conv: Any, *, stride: int = 1, pool: int = 1, grow: int = 1, enlarge: bool = False
) -> CausalConvolution:
    weight, bias = conv.weight.data, conv.bias.data
    if weight.dim() == 4:
        weight = weight.unsqueeze(2)
    return CausalConvolution(weight, bias, stride, pool, grow, enlarge)
