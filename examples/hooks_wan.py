"""Video to video with diffusers' own Wan pipeline, computing what changes.

    python examples/hooks_wan.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --video in.mp4

Without ``--model`` it runs as it stands: a tiny model with random weights, a drawn clip, a second
on a CPU; the result is noise, the seconds and the share computed are real.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image

from stillframe import hooks


def random_pipeline() -> Any:
    """A tiny pipeline of random weights; it takes embeddings, not prompts."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=256,
        num_layers=4,
    )
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
    )


def drawn_clip(frames: int = 13, height: int = 96, width: int = 128) -> list[Image.Image]:
    """A still picture, before which a square moves."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    still = still.repeat(16, 0).repeat(16, 1)
    pictures = []
    for t in range(frames):
        picture = still.copy()
        picture[32:64, 6 * t : 6 * t + 32] = 255
        pictures.append(Image.fromarray(picture))
    return pictures


def main() -> None:
    """Edit a clip by the stock pipeline, and again with hooks applied."""
    parser = argparse.ArgumentParser(description="Prune diffusers' Wan video to video.")
    parser.add_argument("--model", help="folder or repository in diffusers' format")
    parser.add_argument("--video", help="of 4k+1 frames, both sides multiples of 16")
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=3.0, help="grey levels")
    options = parser.parse_args()
    if options.video is None:
        video = drawn_clip()
    else:
        from diffusers.utils import load_video

        video = load_video(options.video)
    call: dict[str, Any] = {"prompt": options.prompt}
    if options.model is None:
        pipe = random_pipeline()
        call = {
            "prompt_embeds": torch.randn(1, 16, 32),
            "negative_prompt_embeds": torch.zeros(1, 16, 32),
        }
    else:
        pipe = WanVideoToVideoPipeline.from_pretrained(options.model, torch_dtype=torch.bfloat16)
        pipe.enable_model_cpu_offload()
    width, height = video[0].size
    call |= {
        "video": video,
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "output_type": "pil",
    }

    def edit(name: str) -> list[Image.Image]:
        started = time.perf_counter()
        frames: list[Image.Image] = pipe(**call, generator=torch.Generator().manual_seed(0)).frames[
            0
        ]
        print(f"{name}: {time.perf_counter() - started:.1f} s")
        return frames

    edit("stock")
    with hooks.apply(pipe, video=video, tolerance=options.tolerance) as session:
        frames = edit(f"{session.kept_share:.0%} computed")
    frames = hooks.hold(frames, session)
    frames[0].save("edited.gif", save_all=True, append_images=frames[1:], duration=62)


if __name__ == "__main__":
    main()
