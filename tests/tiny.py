"""Tiny real models, and slow second derivations of what the engine claims to equal.

Nothing here imports the engine's own fast paths except to drive them: the references are diffusers'
model under an explicit mask, or its processor block by block with positions worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from stillframe.attention.block import BlockAttention, Provides
from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.base import TextCache
from stillframe.backbones.wan import WanDenoiser
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.recovery import RecoverySetup
from stillframe.tokens.grid import Grid, Plan, patchify, take

CHANNELS, HEADS, HEAD_DIM, TEXT_DIM = 4, 2, 24, 16


def transformer(
    *,
    source: bool = False,
    layers: int = 2,
    positions: int = 64,
    channels: int = CHANNELS,
    heads: int = HEADS,
) -> Any:
    """A random Wan transformer; with ``source``, it takes 2C channels."""
    torch.manual_seed(1)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=HEAD_DIM,
        in_channels=channels * (2 if source else 1),
        out_channels=channels,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=64,
        num_layers=layers,
        rope_max_seq_len=positions,
    )
    # the published scale leaves gates near zero, where attention would hardly count
    for block in model.blocks:
        nn.init.normal_(block.scale_shift_table, std=0.5)
    return model.eval().requires_grad_(False)


def autoencoder(*, trim: int = 0) -> TinyVideoAutoencoder:
    """A random tiny autoencoder whose latents are of about unit variance on `clip`."""
    vae = _autoencoder((8, 8, 4, 4), trim)
    vae.encoder.load_state_dict(_encoder())
    return vae


@cache
def _encoder() -> dict[str, Tensor]:
    """The weights whose latents have the mean and deviation that `_autoencoder` states."""
    weights: dict[str, Tensor] = _autoencoder((8, 8, 8, 8)).encoder.state_dict()
    return weights


def _autoencoder(decoder_channels: tuple[int, ...], trim: int = 0) -> TinyVideoAutoencoder:
    torch.manual_seed(2)
    vae = TinyVideoAutoencoder(
        latent_channels=CHANNELS,
        encoder_channels=8,
        decoder_channels=decoder_channels,
        frames_to_trim=trim,
        latents_mean=[0.07, -0.09, 0.11, 0.26],
        latents_std=[0.12, 0.18, 0.13, 0.14],
    )
    # the usual initialisation would let the picture fade in favour of the biases
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return vae.eval().requires_grad_(False)


def wan_autoencoder() -> Any:
    """A random ``AutoencoderKLWan``."""
    torch.manual_seed(3)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.0, 0.2],
        latents_std=[0.5, 0.4, 0.5, 0.3],
    )
    return vae.eval().requires_grad_(False)


def wan22_autoencoder(channels: int = 48) -> Any:
    """A random ``AutoencoderKLWan`` of Wan 2.2's kind: 16x16x4, residual, patches of 2."""
    torch.manual_seed(3)
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=6,
        z_dim=channels,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=torch.linspace(-0.3, 0.3, channels).tolist(),
        latents_std=torch.linspace(0.4, 1.2, channels).tolist(),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return vae.eval().requires_grad_(False)


def taew22() -> TinyVideoAutoencoder:
    """A random tiny autoencoder in the layout of ``taew2_2``: 48 channels, patches of 2 pixels."""
    torch.manual_seed(5)
    vae = TinyVideoAutoencoder(48, 8, (12, 8, 8, 6), patch_size=2)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return vae.eval().requires_grad_(False)


def tokenizer() -> Any:
    """A tokenizer of a few words that ends every prompt, as UMT5's does."""
    words = ["<pad>", "</s>", "<unk>", "oil", "painting", "of", "a", "sepia", "night", "cartoon"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def text_encoder() -> Any:
    """A random one-layer UMT5 encoder."""
    torch.manual_seed(4)
    config = UMT5Config(vocab_size=16, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config).eval().requires_grad_(False)


def parts(*, source: bool = False, wan: bool = False) -> dict[str, Any]:
    """The five parts of a pipeline."""
    return {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(),
        "transformer": transformer(source=source),
        "vae": wan_autoencoder() if wan else autoencoder(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def pipeline(*, source: bool = False, wan: bool = False, **config: Any) -> CausalWanPipeline:
    """A whole tiny pipeline."""
    pipe = CausalWanPipeline(**parts(source=source, wan=wan), text_length=12, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(frames: int, height: int = 64, width: int = 96, batch: int = 1, seed: int = 0) -> Tensor:
    """Video (B, T, 3, H, W) in [0, 1]: still, until after 16 frames a square moves on the left."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 6, generator=generator)
    still = F.interpolate(coarse, (height, width), mode="bilinear")
    video = still.unsqueeze(1).repeat(1, frames, 1, 1, 1)
    side = height // 3
    for t in range(16, frames):
        left = (5 * t + 7 * seed) % side
        video[:, t, :, side : 2 * side, left : left + side] = (t % 3) * 0.4
    return video


class Masked(WanAttnProcessor):
    """diffusers' own processor, given a mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any) -> Tensor:
        _, _, rotary = rest
        return super().__call__(attn, hidden_states, None, self.mask, rotary)


def visible_frames(block: int, size: int, sink: int, window: int) -> list[int]:
    """Frames that block number ``block`` may see, its own included: by definition."""
    end = (block + 1) * size
    own = range(block * size, end)
    return [f for f in range(end) if f in own or f < sink or f >= end - window]


def causal_mask(blocks: int, size: int, tokens: int, sink: int, window: int) -> Tensor:
    """(T, T) bool over the whole sequence, true = may attend."""
    mask = torch.zeros(blocks * size, blocks * size, dtype=torch.bool)
    for block in range(blocks):
        for query in range(block * size, (block + 1) * size):
            mask[query, visible_frames(block, size, sink, window)] = True
    return mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


def set_self_attention(model: Any, processor: Any) -> None:
    """Use ``processor`` for every layer's self-attention."""
    for block in model.blocks:
        block.attn1.processor = processor


def stock(model: Any, latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The stock forward of (B, C, F, H, W) with a sigma a frame, (F,), and the processors set."""
    tokens = latents.shape[3] // 2 * latents.shape[4] // 2
    timestep = (1000 * sigma).repeat_interleave(tokens).expand(latents.shape[0], -1)
    with torch.no_grad():
        return model(latents, timestep, text, return_dict=False)[0]


def stock_table(rope: Any, frames: Sequence[int], grid: Grid) -> tuple[Tensor, Tensor]:
    """cos and sin (T, head_dim) of some frames, picked from the stock rotary module's output."""
    # every model here has the same rotations
    key = rope.attention_head_dim, tuple(frames), grid
    if key not in _TABLES:
        _TABLES[key] = _stock_table(rope, frames, grid)
    return _TABLES[key]


_TABLES: dict[Any, tuple[Tensor, Tensor]] = {}


def _stock_table(rope: Any, frames: Sequence[int], grid: Grid) -> tuple[Tensor, Tensor]:
    whole = torch.empty(1, 1, max(frames) + 1, 2 * grid.height, 2 * grid.width)
    rows = torch.arange(len(whole[0, 0]) * grid.frame_tokens).view(-1, grid.frame_tokens)
    picked = rows[list(frames)].flatten()
    cos, sin = rope(whole)
    return cos[0, picked, 0], sin[0, picked, 0]


def stock_rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """diffusers' rotation of (B, T, heads, head_dim)."""
    return apply_rotary_emb(x, table, use_real=True, use_real_unbind_dim=-1, sequence_dim=1)


class Saturating:
    """Self-attention over a whole sequence, block by block, by the rules of a published model.

    No cache: every block's keys are rotated afresh from where the block stands, up to ``limit``
    positions, and a sink that is an average is worked out from the start for every block.

    Args:
        rope: the stock model's.
        grid: of a block.
        sink, window, limit: see `visible_frames`; positions in use.
        context_sink: whether finished blocks saw the sink after frames had left the window.
        average: share that the sink keeps of itself whenever frames leave the window.
        finished: whether the newest block is a finished one, too.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(
        self,
        rope: Any,
        grid: Grid,
        sink: int,
        window: int,
        limit: int,
        *,
        context_sink: bool = True,
        average: float | None = None,
        finished: bool = False,
    ) -> None:
        self.rope, self.grid = rope, grid
        self.sink, self.window, self.limit = sink, window, limit
        self.context_sink, self.average, self.finished = context_sink, average, finished

    def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any) -> Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        v = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        size, n = self.grid.frames, self.grid.frame_tokens
        blocks = q.shape[1] // (size * n)
        out = []
        for block in range(blocks):
            finished = block < blocks - 1 or self.finished
            frames = self.seen(block, finished)
            rows = torch.cat([torch.arange(f * n, (f + 1) * n) for f in frames])
            last = min((block + 1) * size, self.limit) - 1  # where the block's last frame stands
            newest = (block + 1) * size - 1
            at = [f if f < self.sink else last - (newest - f) for f in frames]
            own = slice(block * size * n, (block + 1) * size * n)
            query = stock_rotate(q[:, own], stock_table(self.rope, at[-size:], self.grid))
            keys, values = (self.averaged(x, block)[:, rows] for x in (k, v))
            key = stock_rotate(keys, stock_table(self.rope, at, self.grid))
            qh, kh, vh = (x.transpose(1, 2) for x in (query, key, values))
            out.append(F.scaled_dot_product_attention(qh, kh, vh).transpose(1, 2))
        return attn.to_out[0](torch.cat(out, 1).flatten(2))

    def seen(self, block: int, finished: bool) -> list[int]:
        """Frames that a block sees: a finished one as it saw them in its context pass."""
        frames = visible_frames(block, self.grid.frames, self.sink, self.window)
        some_left = len(frames) < (block + 1) * self.grid.frames
        if finished and some_left and not self.context_sink:
            frames = [f for f in frames if f >= self.sink]
        return frames

    def averaged(self, x: Tensor, block: int) -> Tensor:
        """Keys or values of the sequence as a block finds them."""
        if self.average is None:
            return x
        size, n = self.grid.frames, self.grid.frame_tokens
        found = x.clone()
        for comes in range(block + 1):
            # it comes, and frames leave for it: the sink moves towards the block before it
            if (comes + 1) * size > self.sink + self.window:
                before = x[:, (comes - 1) * size * n : comes * size * n]
                sink = found[:, : self.sink * n]
                found[:, : self.sink * n] = self.average * sink + (1 - self.average) * before
        return found


class Drive:
    """The engine's own loop over one stream, with the inputs of every pass handed in."""

    def __init__(
        self,
        model: Any,
        text: Tensor,
        grid: Grid,
        recovery: type[Any],
        *,
        sink: int = 1,
        window: int | None = None,
        limit: int = 64,
        steps: int = 1,
    ) -> None:
        self.denoiser = WanDenoiser(model)
        self.text: TextCache = self.denoiser.text(text)
        batch = text.shape[0]
        self.shape = CacheShape(
            len(model.blocks),
            batch,
            grid,
            self.denoiser.heads,
            self.denoiser.head_dim,
            sink,
            window or 2 * grid.frames,
        )
        cpu = torch.device("cpu")
        self.cache = KeyValueCache(self.shape, cpu, torch.float32)
        setup = RecoverySetup(self.shape, steps, cpu, torch.float32, 0.3, 0.2, torch.float32)
        self.recovery: Provides = recovery(setup)
        self.attention = BlockAttention(self.cache, self.denoiser.rotary, self.recovery, limit)

    def begin(self, plan: Plan) -> None:
        """Begin a block."""
        self.plan = plan
        self.attention.begin_block(plan)

    @torch.no_grad()
    def run(self, latents: Tensor, sigma: float, step: int | None = 0) -> Tensor:
        """One pass over (B, C, S, H, W); the output of the kept tokens. ``step`` None commits."""
        tokens = patchify(latents, 2)
        if self.plan.kept is not None:
            tokens = take(tokens, self.plan.kept.index)
        self.attention.step = step
        with self.denoiser.attached():
            time = torch.full((tokens.shape[0],), 1000 * sigma)
            out = self.denoiser(tokens, time, self.text, self.attention)
        if step is None:
            self.attention.end_block()
        return out


def whole(batch: int, grid: Grid) -> Tensor:
    """A keep mask (B, S, N) that keeps everything."""
    return torch.ones(batch, grid.frames, grid.frame_tokens, dtype=torch.bool)
