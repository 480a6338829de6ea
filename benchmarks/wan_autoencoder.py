"""Wan's own autoencoder, random weights: through diffusers' modules, dense and what changed only.

Run as ``python -m benchmarks.wan_autoencoder [--size 832x480] [--active .1 .3 .68 1]``. A row is a
block of 3 latent frames, 12 pixel frames: encoding and decoding in milliseconds, the medians of a
few blocks; how much faster than diffusers' modules that is in the same run; the share of cells that
are computed; how far the pictures of changed cells are from dense ones in grey levels, the largest
and the root mean square; the largest difference of their latents. The clip is a still picture, in
which a rectangle moves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from benchmarks import say
from stillframe.autoencoders.activity import active
from stillframe.autoencoders.streaming import WanStream
from stillframe.autoencoders.wan_fused import FusedWan

FRAMES = 3


def stream(vae: Any, fused: bool) -> WanStream:
    """A stream, through diffusers' modules or not."""
    if fused:
        return WanStream(vae, FRAMES)
    with patch.object(FusedWan, "supports", lambda _: False):
        return WanStream(vae, FRAMES)


def changed_cells(share: float, h: int, w: int) -> Tensor:
    """(1, S, h, w): a rectangle of which, with what is around it, such a share is computed."""
    rows, columns = (max(1, round(side * share**0.5) - 2) for side in (h, w))
    changed = torch.zeros(1, FRAMES, h, w, dtype=torch.bool)
    changed[:, :, 1 : 1 + rows, 1 : 1 + columns] = True
    return changed if share < 1 else torch.ones_like(changed)


def video(size: tuple[int, int], blocks: int, changed: Tensor, device: str) -> list[Tensor]:
    """Blocks of frames, the first one short: a coarse picture that moves where cells change."""
    width, height = size
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 16)
    picture = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear").to(device)
    counts = [4 * FRAMES - 3] + [4 * FRAMES] * (blocks - 1)
    frames = [picture[:, :, :height, 2 * i : 2 * i + width] for i in range(sum(counts))]
    inside = pixels(changed[:, 0]).to(device)
    frames = [torch.where(inside, frame, frames[0]) for frame in frames]
    return list(torch.stack(frames, 1).split(counts, 1))


def pixels(cells: Tensor) -> Tensor:
    """(B, h, w) as pixels, (B, 1, H, W)."""
    return cells.unsqueeze(1).repeat_interleave(8, 2).repeat_interleave(8, 3)


def timed(device: str, work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it gives, and milliseconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, 1000 * (time.perf_counter() - start)


def measure(coder: WanStream, blocks: list[Tensor], changed: Tensor | None) -> dict[str, Any]:
    """Encode and decode all blocks; times are of those after a few, which capture graphs."""
    device, warm = blocks[0].device.type, min(5, len(blocks) - 2)
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    for i, block in enumerate(blocks):
        z, encode = timed(device, lambda x=block: coder.encode_block(x, changed))  # type: ignore[misc]
        y, decode = timed(device, lambda x=z: coder.decode(x, changed))  # type: ignore[misc]
        if i >= warm:
            times["encode"].append(encode)
            times["decode"].append(decode)
    row: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    return {**row, "latents": z, "frames": y}


def row(
    name: str, result: dict[str, Any], dense: dict[str, Any], stock: float, changed: Tensor
) -> Any:
    """A row, printed."""
    both = result["encode"] + result["decode"]
    inside = pixels(changed[:, 0]).unsqueeze(1)
    apart = (result["frames"].float() - dense["frames"].float()).mul(255) * inside
    coded = (result["latents"].float() - dense["latents"].float()) * changed[:, None]
    numbers = {
        "encode": result["encode"],
        "decode": result["decode"],
        "both": both,
        "faster": stock / both,
        "computed": active(changed).float().mean().item(),
        "largest": apart.abs().max().item(),
        "rms": (apart.square().mean() / inside.float().mean()).sqrt().item(),
        "latents": coded.abs().max().item(),
    }
    say(f"{name:<10}" + "".join(f"{x:>10.3f}" for x in numbers.values()))
    return numbers


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--active", type=float, nargs="+", default=[0.1, 0.3, 0.68, 1.0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--blocks", type=int, default=8)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, height = (int(side) for side in options.size.split("x"))
    torch.manual_seed(0)
    vae = AutoencoderKLWan().eval().requires_grad_(False)
    vae.to(device, getattr(torch, options.dtype))
    say(f"{options.size}, {options.dtype}, {device}")
    names = "encode", "decode", "both", "faster", "computed", "largest", "rms", "latents"
    say(f"{'':<10}" + "".join(f"{name:>10}" for name in names))
    everywhere = changed_cells(1, height // 8, width // 8).to(device)
    blocks = video((width, height), options.blocks, everywhere, device)
    stock = measure(stream(vae, False), blocks, None)
    total = stock["encode"] + stock["decode"]
    rows = {"diffusers": row("diffusers", stock, stock, total, everywhere)}
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    coder = stream(vae, True)
    rows["dense"] = row("dense", measure(coder, blocks, None), stock, total, everywhere)
    if device == "cuda":
        held = torch.cuda.memory_allocated() - before
        say(f"a stream holds {held / 2**30:.2f} GiB")
    del coder
    for share in options.active:
        changed = changed_cells(share, height // 8, width // 8).to(device)
        blocks = video((width, height), options.blocks, changed, device)
        dense = measure(stream(vae, True), blocks, None)
        result = measure(stream(vae, True), blocks, changed)
        rows[str(share)] = row(str(share), result, dense, total, changed)
    say(json.dumps(rows))


if __name__ == "__main__":
    main()
