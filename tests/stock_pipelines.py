"""diffusers' own video pipelines with tiny random weights, and clips to prune them by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UNetMotionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from tests import tiny
from torch import Tensor, nn

#: Between diffusers and numpy.
LIBRARIES = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)
C = tiny.CHANNELS
FRAMES, HEIGHT, WIDTH = 17, 64, 96  # of Wan, 5 latent frames of 4x6 tokens; of LTX, 3 of 2x3


def ready(vae: Any) -> Any:
    """An autoencoder that encodes a clip once: it has no part in what `hooks` changes."""
    encode, known = vae.encode, list[tuple[Tensor, Any]]()

    def remembered(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        for clip, encoded in known:
            if clip.dtype == x.dtype and torch.equal(clip, x):
                return encoded
        known.append((x.clone(), encode(x, *args, **kwargs)))
        return known[-1][1]

    vae.encode = remembered
    return vae.eval().requires_grad_(False)


def wan_transformer(seed: int = 1, **changes: Any) -> Any:
    torch.manual_seed(seed)
    vace = "vace_layers" in changes
    given = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": C,
        "out_channels": C,
        "text_dim": tiny.TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 64,
        "cross_attn_norm": True,
    }
    model = (WanVACETransformer3DModel if vace else WanTransformer3DModel)(**{**given, **changes})
    for name, parameter in model.named_parameters():
        if "scale_shift_table" in name:  # gates near zero would hide attention
            nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def _wan(kind: Any, transformer: Any, flow: Any = None, **more: Any) -> Any:
    pipe = kind(
        tokenizer=tiny.tokenizer(),
        text_encoder=tiny.text_encoder(),
        vae=ready(tiny.wan_autoencoder()),
        transformer=transformer,
        scheduler=flow or FlowMatchEulerDiscreteScheduler(shift=5.0),
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unipc() -> Any:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _cogvideox(kind: Any, scheduler: Any, rotary: bool) -> Any:
    torch.manual_seed(5)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=C,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=C,
        out_channels=C,
        time_embed_dim=16,
        text_embed_dim=tiny.TEXT_DIM,
        num_layers=3,
        sample_width=WIDTH // 8,
        sample_height=HEIGHT // 8,
        sample_frames=FRAMES,
        max_text_seq_length=12,
        use_rotary_positional_embeddings=rotary,
    )
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            nn.init.normal_(norm.linear.bias, std=0.5)
    pipe = kind(
        tokenizer=tiny.tokenizer(),
        text_encoder=tiny.text_encoder(),
        vae=ready(vae),
        transformer=transformer.eval().requires_grad_(False),
        scheduler=scheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _ltx(kind: Any) -> Any:
    torch.manual_seed(6)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=24,
        cross_attention_dim=48,
        num_layers=3,
        caption_channels=tiny.TEXT_DIM,
    )
    for block in transformer.transformer_blocks:
        nn.init.normal_(block.scale_shift_table, std=0.5)
    return _pipe(kind, vae, transformer)


def _hunyuan() -> Any:
    torch.manual_seed(7)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=C,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=C,
        out_channels=C,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=tiny.TEXT_DIM,
        pooled_projection_dim=8,
        rope_axes_dim=(8, 8, 8),
    )
    for name, parameter in transformer.named_parameters():
        if ".norm" in name and name.endswith("linear.bias"):
            nn.init.normal_(parameter, std=0.5)
    return _pipe(HunyuanVideoPipeline, vae, transformer, text_encoder_2=None, tokenizer_2=None)


def _animatediff(kind: Any) -> Any:
    torch.manual_seed(8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    )
    unet = UNetMotionModel(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=tiny.TEXT_DIM,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipe = kind(
        tokenizer=tiny.tokenizer(),
        text_encoder=tiny.text_encoder(),
        vae=ready(vae),
        unet=unet.eval().requires_grad_(False),
        motion_adapter=None,
        scheduler=scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipe(kind: Any, vae: Any, transformer: Any, **more: Any) -> Any:
    pipe = kind(
        tokenizer=tiny.tokenizer(),
        text_encoder=tiny.text_encoder(),
        vae=ready(vae),
        transformer=transformer.eval().requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


MAKERS: dict[str, Callable[[], Any]] = {
    "wan-v2v": lambda: _wan(WanVideoToVideoPipeline, wan_transformer()),
    "wan-t2v": lambda: _wan(WanPipeline, wan_transformer(), unipc()),
    "wan-t2v-two-experts": lambda: _wan(
        WanPipeline,
        wan_transformer(),
        unipc(),
        transformer_2=wan_transformer(2),
        boundary_ratio=0.875,
    ),
    "wan-ti2v": lambda: _wan(WanPipeline, wan_transformer(), unipc(), expand_timesteps=True),
    "wan-i2v": lambda: _wan(
        WanImageToVideoPipeline,
        wan_transformer(in_channels=2 * C + 4),
        image_encoder=None,
        image_processor=None,
    ),
    "wan-i2v-timed": lambda: _wan(
        WanImageToVideoPipeline,
        wan_transformer(),
        unipc(),
        image_encoder=None,
        image_processor=None,
        expand_timesteps=True,
    ),
    "wan-vace": lambda: _wan(
        WanVACEPipeline,
        wan_transformer(vace_layers=[0, 2], vace_in_channels=2 * C + 64),
        unipc(),
    ),
    "cogvideox-v2v": lambda: _cogvideox(
        CogVideoXVideoToVideoPipeline, CogVideoXDDIMScheduler, rotary=True
    ),
    "cogvideox-t2v": lambda: _cogvideox(CogVideoXPipeline, CogVideoXDPMScheduler, rotary=False),
    "ltx-t2v": lambda: _ltx(LTXPipeline),
    "ltx-condition": lambda: _ltx(LTXConditionPipeline),
    "hunyuan-t2v": _hunyuan,
    "animatediff-v2v": lambda: _animatediff(AnimateDiffVideoToVideoPipeline),
    "animatediff-t2v": lambda: _animatediff(AnimateDiffPipeline),
}


def embeds(seed: int) -> Tensor:
    """Of a prompt: cleaning texts needs packages that not everybody has."""
    return torch.randn(1, 12, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(seed))


def clip(still: bool = False, frames: int = FRAMES) -> Tensor:
    """(T, 3, H, W) in [0, 1]: a picture, in which a square moves on the left."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 4, 6, generator=generator)
    video = F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear").repeat(frames, 1, 1, 1)
    if not still:
        for t in range(frames):
            video[t, :, 16:32, 3 * t : 3 * t + 16] = 0.1 + 0.8 * (t % 2)
    return video


def picture(frame: Tensor) -> Any:
    """A frame (3, H, W) as a picture."""
    return Image.fromarray((frame.movedim(0, -1) * 255).byte().numpy())


def arguments(name: str, video: Tensor, seed: int = 0, **more: Any) -> dict[str, Any]:
    """What a pipeline is called with on a clip."""
    given: dict[str, Any] = {
        "prompt_embeds": embeds(1),
        "negative_prompt_embeds": embeds(2),
        "height": video.shape[2],
        "width": video.shape[3],
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }
    if name.startswith("wan"):
        given["max_sequence_length"] = 12
    if name.startswith("ltx"):
        mask = torch.ones(1, 12, dtype=torch.long)
        given |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    if name == "ltx-condition":
        given["image"] = picture(video[0])
    if name == "hunyuan-t2v":
        # half of the prompt is padding
        mask, pooled = torch.arange(12).lt(6).long()[None], torch.ones(1, 8)
        given |= {"prompt_attention_mask": mask, "pooled_prompt_embeds": pooled}
        given |= {"negative_prompt_attention_mask": mask, "negative_pooled_prompt_embeds": pooled}
        given["true_cfg_scale"] = 2.0
    if "i2v" in name and "ti2v" not in name:
        given["image"] = video[:1]
    if "v2v" in name:
        given["video"] = video
    elif "vace" in name:
        given["video"] = [picture(frame) for frame in video]
    if "v2v" not in name:
        given["num_frames"] = len(video)
    return {**given, **more}


def run(name: str, pipe: Any, video: Tensor, seed: int = 0, **more: Any) -> Tensor:
    """A call of a pipeline on a clip; the video (1, T, 3, H, W)."""
    result: Tensor = pipe(**arguments(name, video, seed, **more)).frames
    return result


def frames_first(name: str, latents: Tensor) -> Tensor:
    """Latents (F, ...) of a pipeline's ``output_type="latent"``."""
    if name == "ltx-t2v":  # tokens
        rows, columns = HEIGHT // 32, WIDTH // 32
        return latents[0].unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 2)
    return latents[0] if name.startswith("cogvideox") else latents[0].transpose(0, 1)
