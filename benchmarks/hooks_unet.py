"""Multiply-adds of AnimateDiff's U-Net with `stillframe.hooks`, by the share computed.

The shapes of Stable Diffusion 1.5 with a motion adapter; a random mask of blocks of 64 pixels, so
that every resolution prunes the same share, and of single tokens, which is the other end: what a
larger token covers is rarely all pruned. Nothing is multiplied: the operations are counted, and
give memory that nobody reads, so it runs on a CPU in minutes.

Run as ``python -m benchmarks.hooks_unet [--frames 16] [--side 512] [--shares 0.25 0.5 0.75]``.
"""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNetMotionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import say
from stillframe import hooks
from stillframe.detection.pixels import enlarged


class Counted(TorchDispatchMode):
    """Within the ``with`` block, counts multiply-adds and leaves them out.

    Attributes:
        parts: multiply-adds by the kind of operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            query, key, value = args[:3]
            batch, heads, rows, size = query.shape
            self._add("attention", batch * heads * rows * key.shape[2] * (size + value.shape[3]))
            return torch.empty_like(query), query.new_empty(batch, heads, rows)
        if func._overloadpacket in flop_registry:
            meta = [x.to("meta") if isinstance(x, Tensor) else x for x in args]
            out = func(*meta, **kwargs)
            kind = "convolution" if "conv" in func.__name__ else "linear"
            self._add(kind, flop_registry[func._overloadpacket](*args, **kwargs, out_val=out) // 2)
            return torch.empty_like(out, device="cpu")
        return func(*args, **kwargs)

    def _add(self, kind: str, count: int) -> None:
        self.parts[kind] = self.parts.get(kind, 0) + count


class Probe:
    """A pipeline of one call of its U-Net, so that hooks can be applied to it."""

    vae_scale_factor = 8
    _execution_device = torch.device("cpu")

    def __init__(self, unet: Any) -> None:
        self.unet, self.scheduler = unet, DDIMScheduler()
        self.config = SimpleNamespace()

    def __call__(self, latents: Tensor, text: Tensor) -> dict[str, int]:
        self.scheduler.set_timesteps(20)
        with Counted() as counted:
            self.unet(latents, self.scheduler.timesteps[0], encoder_hidden_states=text)
        return counted.parts


@torch.no_grad()
def main() -> None:
    """Print a line for every mask, and JSON."""
    parser = argparse.ArgumentParser(description="Count a pruned U-Net's multiply-adds.")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    options = parser.parse_args()
    with torch.device("meta"):
        unet = UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=False)
    probe, frames = Probe(unet.to_empty(device="cpu").eval()), options.frames
    latents = torch.zeros(1, 4, frames, options.side // 8, options.side // 8)
    text = torch.zeros(frames, 77, 768)
    dense = probe(latents, text)
    total = sum(dense.values())
    rows: list[dict[str, Any]] = [{"kept": 1.0, "blocks": 1, **dense}]
    for share in options.shares:
        for side in (8, 1):
            count = latents.shape[-1] // side
            keep = torch.rand(frames, count, count, generator=torch.Generator().manual_seed(0))
            keep[0] = 0  # computed
            with hooks.apply(probe, mask=enlarged(keep < share, (side, side))) as session:
                counted = probe(latents, text)
            rows.append({"kept": session.kept_share, "blocks": side, **counted})
    for row in rows:
        parts = {name: row[name] / total for name in dense}
        told = ", ".join(f"{name} {part:.3f}" for name, part in sorted(parts.items()))
        say(
            f"{row['kept']:.0%} computed in squares of {8 * row['blocks']} pixels: "
            f"{sum(parts.values()):.3f} of {total / 1e12:.2f} T multiply-adds ({told})"
        )
    say(json.dumps({"frames": frames, "side": options.side, "rows": rows}))


if __name__ == "__main__":
    main()
