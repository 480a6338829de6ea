"""Assemble the model folder from what was trained, laid out like Wan-AI/Wan2.1-T2V-1.3B-Diffusers.

Weights are the averaged ones, in float16. This file knows the folder's layout and nothing of how
the parts were trained.

Run as ``python -m training.export --state DIR --vae DIR --tokenizer DIR --out FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerFast

from training.captions import styles_table
from training.loop import load_checkpoint, say
from training.transformer import TEXT_LENGTH, build
from training.velocity import BLOCK

__all__ = ["SHIFT", "export", "model_index"]

CONTEXT_NOISE = 0.15
"""Noise level of the context pass: with clean context, errors grow from block to block."""

SHIFT = 3.0
"""The scheduler's shift: training draws its noise levels with it."""


def model_index(tokenizer: Any) -> dict[str, Any]:
    """Contents of ``model_index.json``."""
    return {
        "_class_name": "CausalWanPipeline",
        "_diffusers_version": "0.42.1",
        "_name_or_path": "stillframe-tiny",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", type(tokenizer).__name__],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["stillframe.autoencoders.tiny", "TinyVideoAutoencoder"],
        "block_frames": BLOCK,
        "text_length": TEXT_LENGTH,
        "default_height": 240,
        "strength": 1.0,
        "num_inference_steps": 2,
        # a second pass near the end takes away what the first left of its noise
        "edit_sigmas": [1.0, 0.4],
        "context_noise": CONTEXT_NOISE,
        "generates": False,
    }


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(state: Path, vae: Path, tokenizer: Path, out: Path, shard: str = "1GB") -> None:
    """Write the model folder ``out``.

    Args:
        state: folder with the transformer's checkpoint.
        vae: folder of the trained autoencoder.
        tokenizer: folder of the tokenizer.
        out: folder to write.
        shard: largest weight file, as diffusers writes sizes.

    Raises:
        ValueError: if there is no checkpoint.
    """
    checkpoint = load_checkpoint(state / "transformer.pt", torch.device("cpu"))
    if checkpoint is None:
        raise ValueError(f"{state} holds no checkpoint of the transformer")
    words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    weights = checkpoint["average"]["mean"]
    layers = 1 + max(
        int(name.split(".")[2]) for name in weights if name.startswith("transformer.blocks.")
    )
    channels = weights["transformer.patch_embedding.weight"].shape[1] // 2
    networks = build(len(words), layers, channels)
    networks.load_state_dict(weights, strict=False)
    networks.half()
    transformer: Any = networks.transformer
    text_encoder: Any = networks.text_encoder
    transformer.save_pretrained(out / "transformer", max_shard_size=shard)
    _save_text_encoder(text_encoder, out / "text_encoder")
    shutil.copytree(vae, out / "vae", dirs_exist_ok=True)
    shutil.copytree(tokenizer, out / "tokenizer", dirs_exist_ok=True)
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
    _write_json(model_index(words), out / "model_index.json")
    _write_json(styles_table(), out / "styles.json")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"{out.name}: {size / 1e6:.1f} MB after {checkpoint['step']} steps")


def _save_text_encoder(text_encoder: Any, folder: Path) -> None:
    """Write it so that it is used in float32, as diffusers uses the other parts unless told.

    transformers uses the precision that the configuration names: by default the file's.
    """
    text_encoder.save_pretrained(folder)
    path = folder / "config.json"
    _write_json(json.loads(path.read_text()) | {"dtype": "float32"}, path)


def main() -> None:
    """Assemble the model folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="1GB", help="largest weight file")
    options = parser.parse_args()
    export(options.state, options.vae, options.tokenizer, options.out, options.shard)


if __name__ == "__main__":
    main()
