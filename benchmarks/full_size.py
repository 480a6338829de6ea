"""A model of full size with random weights, in its authors' layout, through the CLI.

Writes the checkpoint (sharing nothing with the loading code but the configuration), a base folder
with a small text encoder of the right width, both autoencoders and a clip; then runs
``stillframe edit`` on it as a user would, and prints a row for each run and one JSON line.
Peak memory is the report's, torch's own count; the text encoder is small, so it does not matter.

Run as ``python -m benchmarks.full_size --folder DIR [--model longlive-2]``; needs 4 GB of
disk for the 1.3B shape and 14 for the 5B one. A folder is of one model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from tests.published import original_names, recipe_toml
from tests.tiny import tokenizer
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks import say
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.loading.bases import known_base
from stillframe.loading.random_model import SHAPES
from stillframe.loading.recipes import load_recipes
from stillframe.loading.taehv import TAEW_CONFIGS
from stillframe.video import VideoWriter

MODELS = {"self-forcing": "1.3b", "longlive-2": "5b", "krea-14b": "14b"}
"""Recipes whose layouts there are, and the shapes of their transformers."""


def write_models(folder: Path, model: str, device: str, layers: int | None) -> None:
    """Everything that the recipe names, under ``folder``."""
    torch.manual_seed(0)
    recipe, config = load_recipes()[model], SHAPES[MODELS[model]]
    layers = layers or config["num_layers"]
    coder = {k: v for k, v in known_base(recipe.base)["vae"].items() if not k.startswith("_")}
    with torch.device(device):
        transformer = WanTransformer3DModel(**{**config, "num_layers": layers}).to(torch.bfloat16)
        vae = AutoencoderKLWan(**coder).to(torch.bfloat16)
        tiny = TinyVideoAutoencoder(**TAEW_CONFIGS[config["out_channels"]])
    state = {f"model.{k}": v for k, v in original_names(transformer.cpu().state_dict()).items()}
    path = folder / "weights" / recipe.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({recipe.keys[0]: state}, path)
    text = UMT5Config(vocab_size=16, d_model=4096, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with torch.device("meta"):
        empty = WanTransformer3DModel(**{**config, "num_layers": 1})
    pipe = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=UMT5EncoderModel(text).to(torch.bfloat16),
        transformer=None,
        vae=vae.cpu(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    pipe.save_pretrained(folder / "base")
    empty.register_to_config(num_layers=layers)
    empty.save_config(folder / "base" / "transformer")
    save_file(tiny.cpu().state_dict(), folder / "taew.safetensors")
    table = recipe_toml(recipe, (folder / "weights").absolute(), (folder / "base").absolute())
    (folder / "recipes.toml").write_text(table, encoding="utf-8")


def write_clip(path: Path, frames: int, height: int, width: int) -> None:
    """A still picture in which a third of the width moves."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    still = coarse.repeat(16, 0).repeat(16, 1)
    with VideoWriter(path, width, height, Fraction(1, 16), Fraction(16)) as writer:
        for index in range(frames):
            picture = still.copy()
            third = picture[:, : width // 3]
            picture[:, : width // 3] = np.roll(third, 8 * index, 0)
            writer.write(picture, index)


def run(folder: Path, vae: str, options: argparse.Namespace) -> dict[str, Any]:
    """One ``stillframe edit``; its report, and the wall time of the whole command."""
    report = folder / "report.json"
    command = [
        sys.executable, "-m", "stillframe", "edit", str(folder / "clip.mp4"),
        "-o", str(folder / "out.mp4"), "--model", options.model, "--prompt", "oil painting",
        "--vae", vae, "--height", str(options.height), "--width", str(options.width),
        "--device", options.device, "--dtype", "bfloat16", "--report", str(report), "--quiet",
        "--recovery", options.recovery, "--method", options.method,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "STILLFRAME_RECIPES": str(folder / "recipes.toml"),
        "STILLFRAME_CACHE": str(folder / "cache"),
    }
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    told: dict[str, Any] = json.loads(report.read_text())
    return {**told, "command_seconds": time.perf_counter() - started}


def main() -> None:
    """Write the models, run the command for each autoencoder, print what it took."""
    parser = argparse.ArgumentParser(description="Edit with a full-size random checkpoint.")
    parser.add_argument("--folder", type=Path, required=True, help="where to write; 4 GB or more")
    parser.add_argument("--model", choices=list(MODELS), default="self-forcing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--layers", type=int, help="all that the model has by default")
    parser.add_argument("--vaes", nargs="+", default=["tiny", "full"])
    parser.add_argument("--recovery", default="aligned")
    parser.add_argument("--method", default="prune")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "recipes.toml").is_file():
        write_models(options.folder, options.model, options.device, options.layers)
    write_clip(options.folder / "clip.mp4", options.frames, options.height, options.width)
    rows = []
    for vae in options.vaes:
        file = str(options.folder / "taew.safetensors")
        row = run(options.folder, file if vae == "tiny" else vae, options)
        seconds = row["seconds"]
        rows.append(
            {
                "vae": vae,
                "recovery": options.recovery,
                "frames": row["frames_out"],
                "kept_share": row["kept_share"],
                "load_s": seconds["load"],
                "total_s": seconds["total"],
                "fps": row["fps"],
                "peak_gb": row["peak_memory_bytes"] / 1e9,
                "command_s": row["command_seconds"],
            }
        )
        say(str({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}))
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    say(json.dumps({"device": name, "model": options.model, "rows": rows}))


if __name__ == "__main__":
    main()
