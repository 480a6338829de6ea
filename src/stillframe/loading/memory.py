"""What a job will need, before any of it is spent.

Nothing is derived by hand where it can be asked: models are built on the meta device and run there
under a `PeakMeter`. Not in a plan: the CUDA context and the allocator's fragments.
It does not know checkpoints or command lines; configurations and sizes are enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from stillframe.attention.block import BlockAttention
from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.footprint import bytes_offloaded, planned_transformer
from stillframe.backbones.meter import META, PeakMeter, built, typed, weight_bytes
from stillframe.backbones.wan import WanDenoiser
from stillframe.detection.dense import DenseVideo
from stillframe.detection.pixels import VisibleChange, appearance
from stillframe.detection.sparse import SparseVideo
from stillframe.detection.traces import longest_moves
from stillframe.engine.inputs import check_channels
from stillframe.engine.moved import Rings
from stillframe.engine.results import Results
from stillframe.engine.stream import StreamSettings
from stillframe.kernels import moving
from stillframe.kernels.shared import Workplace
from stillframe.recovery import Recovery, RecoverySetup, find_recovery
from stillframe.tokens.grid import Grid, Plan
from stillframe.tokens.source import SourceBlock

__all__ = ["GIB", "MemoryPlan", "plan_memory"]

GIB = 2**30

_AUTOENCODERS = {"tiny": TinyVideoAutoencoder, "full": AutoencoderKLWan}

#: What runs is counted tensor by tensor; this is for the workspaces within attention kernels and
#: convolutions, which only they know.
_WORKSPACE = 1.1

#: See `MemoryPlan.process`; between 90 and 210 MiB were found at 240x416 and 720x1280.
_LIBRARIES = 256 * 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they are for. The text encoder is gone before the transformer comes.

    Attributes:
        text_encoder, text_activations: weights, and the most that encoding a prompt adds to them;
            only while prompts are encoded.
        transformer, autoencoder: weights, of offloaded layers those that are there at a time.
        cache: keys and values of committed frames and of the block.
        recovery: what the recovery holds beyond the cache.
        text_cache: keys and values of the prompt in every layer, and its embeddings.
        stream: what the autoencoder keeps from one block to the next: its memory, and where it can
            compute parts of a block the activations of a latent frame.
        frames: of the source, those that patches were computed from and those of a block, and what
            was shown last.
        motion: pictures and edits of the latest latent frames, and where their pixels came from.
        kept: on a CPU, where the last block is kept to compare the next one with, by a tiny
            autoencoder: its frames in and out and what was remembered before it; and the frames of
            the block in hand, as they come in and go out.
        process: on a CPU, what the libraries take when they first run, whatever the size: code,
            workspaces of kernels and the allocator's fragments, as measured.
        graphs: on a GPU, what CUDA graphs work in, which is theirs alone: what runs before it is
            captured has memory of its own, and the allocator keeps that.
        activations: the most that a denoising or context pass adds while it runs.
        encode, decode: the most that encoding and decoding a block add.
        dtype: of weights, keys and values.
        vae_kind: "tiny" or "full".
    """

    text_encoder: int
    text_activations: int
    transformer: int
    autoencoder: int
    cache: int
    recovery: int
    text_cache: int
    stream: int
    frames: int
    motion: int
    kept: int
    process: int
    graphs: int
    activations: int
    encode: int
    decode: int
    dtype: torch.dtype
    vae_kind: str

    @property
    def encoding(self) -> int:
        """Peak of the first phase, prompts to embeddings."""
        return self.text_encoder + self.text_activations

    @property
    def resident(self) -> int:
        """What stays from block to block of the second phase."""
        weights = self.transformer + self.autoencoder
        states = self.cache + self.recovery + self.text_cache + self.stream + self.frames
        return weights + states + self.motion + self.kept + self.process + self.graphs

    @property
    def editing(self) -> int:
        """Peak of the second phase, in which blocks are encoded, denoised and decoded in turn."""
        return self.resident + max(self.activations, self.encode, self.decode)

    @property
    def peak(self) -> int:
        """The larger of the two phases."""
        return max(self.encoding, self.editing)

    def text_alone(self) -> MemoryPlan:
        """The first phase without the second."""
        numbers = {f.name: 0 for f in fields(self) if f.type == "int"}
        text = {name: getattr(self, name) for name in ("text_encoder", "text_activations")}
        return replace(self, **{**numbers, **text})

    def lines(self) -> list[tuple[str, str]]:
        """A table: what for, and how much."""
        rows = {
            "text encoder (released after use)": self.text_encoder,
            "encoding a prompt": self.text_activations,
            "transformer": self.transformer,
            f"autoencoder ({self.vae_kind})": self.autoencoder,
            "keys and values of the video": self.cache,
            "keys and values of the prompt": self.text_cache,
            "recovery of pruned tokens": self.recovery,
            "autoencoder's memory of the stream": self.stream,
            "frames to compare with": self.frames,
            "frames that moved patches come from": self.motion,
            "frames in and out, and the block before": self.kept,
            "libraries at work": self.process,
            "CUDA graphs at work": self.graphs,
            "denoising a block": self.activations,
            "encoding a block": self.encode,
            "decoding a block": self.decode,
            "peak while the prompt is encoded": self.encoding,
            "peak after that": self.editing,
        }
        return [(name, f"{size / GIB:.2f} GiB") for name, size in rows.items()]


@torch.no_grad()
def plan_memory(
    transformer_config: Mapping[str, Any],
    vae_config: Mapping[str, Any],
    vae_kind: str,
    text_config: Mapping[str, Any] | None,
    *,
    height: int,
    width: int,
    dtype: torch.dtype,
    settings: StreamSettings,
    steps: int | None = None,
    recovery: str,
    batch: int = 1,
    text_length: int = 512,
    motion: bool = True,
    weights: str = "exact",
    offloaded: int = 0,
    on_cpu: bool = False,
) -> MemoryPlan:
    """What editing takes, with blocks computed whole and the window full.

    Takes about a second, five with Wan's own autoencoder; less with the same one again.

    Args:
        transformer_config, vae_config, text_config: contents of the parts' ``config.json``. No
            ``text_config``: embeddings come from elsewhere.
        vae_kind: "tiny" (`TinyVideoAutoencoder`) or "full" (``AutoencoderKLWan``).
        height, width: working size in pixels.
        dtype: of weights, keys and values. The text encoder has bfloat16 in float16's place.
        settings: how the stream is denoised.
        steps: denoising passes a block; None: as many as ``settings`` has sigmas.
        recovery: name of the recovery.
        batch: B, videos at once.
        text_length: tokens of a prompt.
        motion: whether patches that moved are followed.
        weights: "fp8" where the transformer's matrices are, see `pack_transformer`.
        offloaded: layers of the transformer that are, see `offload_transformer`.
        on_cpu: whether all of it is in the process itself, see ``MemoryPlan.kept``.

    Raises:
        ModelError: a configuration is not one of the model it is meant for.
        ValueError: sizes do not fit the models' grid, or a name is unknown.
    """
    model = _as_key(transformer_config)
    denoiser = _denoiser(model, dtype, weights)
    transformer = denoiser.transformer
    vae = typed(_autoencoder(vae_config, vae_kind), dtype)
    stream = open_autoencoder(vae, settings.block_frames)
    check_channels(stream.latent_channels, denoiser.latent_channels)
    timeline = stream.timeline
    multiple = timeline.spatial * denoiser.patch
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height}x{width}")
    grid = Grid(settings.block_frames, height // multiple, width // multiple)
    steps = steps or len(settings.sigmas)
    job = _Job(grid, batch, dtype, settings, recovery, steps, text_length, multiple, weights)
    codings = (vae_kind, dtype, settings.block_frames, batch, height, width)
    whole, parts = _codings(_as_key(_arguments(vae_config, vae_kind)), *codings)
    # where everything is computed nothing else stays, so that there is more to work in
    spare = parts.stays - whole.stays
    encoder = (0, 0)
    if text_config is not None:
        encoder = _text(_as_key(text_config), dtype, text_length)
    cache, fill = job.state(denoiser)
    # float32, in and out
    frames = 2 * 4 * batch * timeline.later_frames * 3 * height * width
    compared = frames + whole.stays if vae_kind == "tiny" else 0
    activations = _activations(model, job)
    encode = max(whole.encode - spare, parts.encode)
    decode = max(whole.decode - spare, parts.decode)
    return MemoryPlan(
        text_encoder=encoder[0],
        text_activations=encoder[1],
        transformer=weight_bytes(transformer) - bytes_offloaded(transformer, offloaded),
        autoencoder=weight_bytes(vae),
        cache=cache.nbytes,
        recovery=fill.nbytes,
        text_cache=_text_cache(model, dtype, weights, batch, text_length, denoiser.layers),
        stream=parts.stays,
        frames=job.seen(timeline.temporal),
        motion=_followed(job, timeline.temporal, denoiser.patch, stream.latent_channels, on_cpu)
        if motion
        else 0,
        kept=frames + compared if on_cpu else 0,
        process=_LIBRARIES if on_cpu else 0,
        # one pool for all graphs
        graphs=0 if on_cpu else max(activations, *((encode, decode) if stream.captured else ())),
        activations=activations,
        encode=encode,
        decode=decode,
        dtype=dtype,
        vae_kind=vae_kind,
    )


@dataclass(frozen=True)
class _Job:
    """What `plan_memory` plans for."""

    grid: Grid
    batch: int
    dtype: torch.dtype
    settings: StreamSettings
    recovery: str
    steps: int
    text_length: int
    patch: int
    weights: str

    def frames(self, count: int) -> Tensor:
        """So many source frames."""
        sides = self.grid.height * self.patch, self.grid.width * self.patch
        return torch.zeros(self.batch, count, 3, *sides, device=META)

    def seen(self, temporal: int) -> int:
        """Bytes of what a stream keeps of its source and of what it showed."""
        block = self.frames((self.grid.frames + 1) * temporal)
        anchors, shown = self.frames(2), self.frames(1)
        return block.nbytes + anchors.nbytes + shown.nbytes

    def plan(self) -> Plan:
        """A block computed whole."""
        shape = (self.batch, self.grid.frames, self.grid.frame_tokens)
        keep = torch.ones(shape, dtype=torch.bool, device=META)
        return Plan(keep, None, (self.grid.tokens,) * self.batch)

    def embeds(self, denoiser: WanDenoiser) -> Tensor:
        """Embeddings of a prompt a video."""
        dim = denoiser.transformer.config.text_dim
        return torch.zeros(self.batch, self.text_length, dim, device=META, dtype=self.dtype)

    def state(self, denoiser: WanDenoiser) -> tuple[KeyValueCache, Recovery]:
        """A stream's cache and recovery after its first block."""
        grid, layers, heads, dim = self.grid, denoiser.layers, denoiser.heads, denoiser.head_dim
        sees = self.settings.sink_frames, self.settings.window_frames
        shape = CacheShape(layers, self.batch, grid, heads, dim, *sees)
        # which distances count as equal does not change sizes
        store = self.settings.store_dtype(self.dtype)
        setup = RecoverySetup(shape, self.steps, META, self.dtype, 0.0, 0.0, store)
        fill = find_recovery(self.recovery)(setup)
        size = denoiser.patch**2 * denoiser.latent_channels
        tokens = torch.zeros(self.batch, grid.frames, grid.frame_tokens, size, device=META)
        block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid)
        # what is kept of the source is what a method that goes by pixels compares
        look = appearance(self.frames(grid.frames + 1), block)
        fill.observe(block._replace(look=look), self.plan())
        kept = self.settings.cache_dtype(self.dtype)
        return KeyValueCache(shape, META, self.dtype, store=kept), fill


@lru_cache(maxsize=16)
def _followed(job: _Job, temporal: int, patch: int, channels: int, on_cpu: bool) -> int:
    """Bytes of what a stream keeps to take patches from that moved.

    ``patch`` and ``gains`` are those of `Results`.
    """
    grid = job.grid
    gains = torch.zeros(channels, channels, device=META)
    shape = grid.frames, grid.height, grid.width
    pixels = job.frames(grid.frames * temporal).unflatten(1, (grid.frames, temporal))
    picture, tokens = job.frames(1)[:, 0], grid.frame_tokens
    held: list[SparseVideo | DenseVideo] = []
    # kernels follow patches of one size only
    sparse = on_cpu or job.patch != moving.SIDE
    with PeakMeter() as meter:
        for video in pixels:
            if sparse:
                follower = SparseVideo("full", 1.0, picture[0], shape)
                follower.start(picture[0], 0)
                held.append(follower)
            else:
                longest = longest_moves(*shape[1:]).to(META)
                limits = VisibleChange(1.0).limits
                place = Workplace()
                held.append(DenseVideo("full", limits, video, longest, shape, place))
        rings, results = Rings(grid.frames), Results(grid, patch, gains)
        rings.open(picture, dense=not sparse)
        frame = torch.zeros(job.batch, tokens, patch**2 * len(gains), device=META)
        results.put(0, frame, frame)
        return meter.live


def _as_key(config: Mapping[str, Any]) -> str:
    """A configuration as JSON: plans of one model that differ in a detail share what is alike."""
    return json.dumps(dict(config), default=str, sort_keys=True)


@lru_cache(maxsize=4)
def _denoiser(config: str, dtype: torch.dtype, weights: str) -> WanDenoiser:
    return WanDenoiser(planned_transformer(json.loads(config), dtype, weights))


@lru_cache(maxsize=16)
def _activations(config: str, job: _Job) -> int:
    """The most that a pass over a whole block adds; all layers are alike, so one is enough."""
    one = {**json.loads(config), "num_layers": 1}
    transformer = planned_transformer(one, job.dtype, job.weights)
    transformer.rope.to(META)
    denoiser = WanDenoiser(transformer)
    cache, fill = job.state(denoiser)
    attention = BlockAttention(cache, denoiser.rotary, fill, job.settings.position_limit)
    text = denoiser.text(job.embeds(denoiser))
    grid, plan = job.grid, job.plan()
    while cache.frames < job.settings.sink_frames + job.settings.window_frames:
        cache.advance()

    def run() -> None:
        area, rows = denoiser.patch**2, (job.batch, grid.tokens)
        tokens = torch.zeros(*rows, area * transformer.config.in_channels, device=META)
        timestep = torch.zeros(job.batch, device=META)
        # the block's source, its noise for every pass, and what a pass starts from and leads to
        size = area * denoiser.latent_channels
        around = [torch.zeros(*rows, size, device=META) for _ in range(job.steps + 6)]
        attention.begin_block(plan)
        for attention.step in (0, None):
            denoiser(tokens, timestep, text, attention)
        around.clear()

    with denoiser.attached(), PeakMeter() as meter:
        added = _worked(meter.added(run))
    # where tokens are missing from the cache, attention reads a copy of those that are there
    copied = 0 if fill.complete else cache.keys(0).nbytes + cache.values(0).nbytes
    return added + copied


@lru_cache(maxsize=16)
def _text_cache(
    config: str, dtype: torch.dtype, weights: str, batch: int, length: int, layers: int
) -> int:
    """Bytes of prompts' keys and values; all layers are alike, so one is enough."""
    one = {**json.loads(config), "num_layers": 1}
    denoiser = WanDenoiser(planned_transformer(one, dtype, weights))
    dim = denoiser.transformer.config.text_dim
    text = denoiser.text(torch.zeros(batch, length, dim, device=META, dtype=dtype))
    return layers * (text.keys[0].nbytes + text.values[0].nbytes) + text.embeds.nbytes


def _worked(added: int) -> int:
    return math.ceil(added * _WORKSPACE)


class _Coding(NamedTuple):
    """The most that encoding and decoding a block add, and what stays."""

    encode: int
    decode: int
    stays: int


@lru_cache(maxsize=32)
def _codings(
    config: str, kind: str, dtype: torch.dtype, block: int, batch: int, height: int, width: int
) -> tuple[_Coding, _Coding]:
    """What an autoencoder takes where everything is asked for, and where less is.

    Args:
        config: of the autoencoder, as JSON.
        kind, dtype, batch, height, width: see `plan_memory`.
        block: latent frames.
    """
    stream = open_autoencoder(typed(_autoencoder(json.loads(config), kind), dtype), block)
    whole = parts = _coding(stream, batch, height, width, parts=False)
    if stream.changed_alone:
        parts = _coding(stream, batch, height, width, parts=True)
    return whole, parts


def _coding(
    stream: StreamingAutoencoder, batch: int, height: int, width: int, parts: bool
) -> _Coding:
    """What an autoencoder takes.

    Args:
        parts: whether less than everything is asked for, for which more has to stay.
    """
    sides = height // stream.timeline.spatial, width // stream.timeline.spatial
    changed: Tensor | None = None
    blocks: list[Tensor] = []
    if parts:
        shape = batch, stream.timeline.block_frames, *sides
        changed = torch.ones(shape, dtype=torch.bool, device=META)
    stream.reset()

    def encode() -> None:
        frames = torch.zeros(batch, stream.next_frames, 3, height, width, device=META)
        blocks.extend(stream.encode_block(block, changed) for block in stream.take(frames))

    with PeakMeter() as meter:
        for _ in range(2):  # then a stream's memory is full, whatever the block
            encode()
            stream.decode(blocks.pop(), changed)
        most = meter.added(encode), meter.added(lambda: stream.decode(blocks[0], changed))
        blocks.clear()
        return _Coding(_worked(most[0]), _worked(most[1]), meter.live)


@lru_cache(maxsize=4)
def _text(config: str, dtype: torch.dtype, length: int) -> tuple[int, int]:
    """Weights of the text encoder, and the most that encoding one prompt adds."""
    dtype = torch.bfloat16 if dtype == torch.float16 else dtype

    def build(layers: Mapping[str, Any]) -> UMT5EncoderModel:
        model = UMT5EncoderModel(UMT5Config(**{**json.loads(config), **layers}))
        # transformers keeps some in float32 beside float16 alone
        model._keep_in_fp32_modules = None
        return model

    layer = typed(built("text encoder", lambda: build({"num_layers": 1})), dtype)
    ids = torch.zeros(1, length, device=META, dtype=torch.long)
    with PeakMeter() as meter:
        added = _worked(meter.added(lambda: layer(ids)))
    return weight_bytes(typed(built("text encoder", lambda: build({})), dtype)), added


def _autoencoder(config: Mapping[str, Any], kind: str) -> nn.Module:
    if kind not in _AUTOENCODERS:
        raise ValueError(f"autoencoders are {' and '.join(_AUTOENCODERS)}, got {kind!r}")
    given = _arguments(config, kind)
    return built(f"{kind} autoencoder", lambda: _AUTOENCODERS[kind](**given))


def _arguments(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What an autoencoder is built from: not where it lies, nor by which version it was written."""
    known = signature(_AUTOENCODERS[kind].__init__).parameters
    return {name: value for name, value in config.items() if name in known}
