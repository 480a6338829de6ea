"""The tiny autoencoder on a GPU: blocks of which a share of the cells is active, and whole ones.

Two streams take turns, one that is always asked for everything and one that is asked for some:
first in spots, then in scattered patches of 2x2 cells. A share is that of active cells, those that
changed and their neighbours. Times are medians in milliseconds: ``wall`` from an idle device to an
idle device, the others with the launches queued beforehand, as between other work. The weights are
random, of the published widths. Errors are of changed places, in standard deviations of the
result, where everything else stands still; with everything active they are differences.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import say
from stillframe.autoencoders.activity import active
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_fused import FusedDecoder, FusedEncoder
from stillframe.loading.taehv import TAEW_CONFIG

_BLOCK = 3  # latent frames
_SPOT = 9  # cells, about
_QUEUED = 4_000_000  # cycles that hide the launches of a block


def changes(share: float, h: int, w: int, spots: bool, seed: int) -> Tensor:
    """What changed (1, S, h, w) bool on the GPU, so that about a share of the cells is active."""
    random = torch.Generator().manual_seed(seed)
    if share >= 1:
        return torch.ones(1, _BLOCK, h, w, dtype=torch.bool, device="cuda")
    if spots:
        noise = torch.rand(1, 1, _BLOCK + 2, h + _SPOT - 1, w + _SPOT - 1, generator=random)
        field = F.avg_pool3d(noise, (3, _SPOT, _SPOT), 1)[0]
    else:
        noise = torch.rand(1, _BLOCK, -(-h // 2), -(-w // 2), generator=random)
        field = noise.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :h, :w]
    low, high = 0.0, 1.0
    for _ in range(20):
        level = (low + high) / 2
        if active(field > field.quantile(level)).float().mean() > share:
            low = level
        else:
            high = level
    return (field > field.quantile(high)).cuda()


class Coders:
    """A stream's two directions, and what they took."""

    def __init__(self, vae: TinyVideoAutoencoder, overlap: bool = True) -> None:
        self.encode, self.decode = FusedEncoder(vae, overlap), FusedDecoder(vae, overlap)
        self.times: dict[str, list[float]] = {}

    def run(self, frames: Tensor, latents: Tensor, changed: Tensor | None) -> None:
        """Time a block, each way twice: what it takes does not depend on what is in it."""
        ways: dict[str, Callable[[], object]] = {
            "encode": lambda: self.encode(frames, changed),
            "decode": lambda: self.decode(latents, changed),
        }
        # another stream's maps lie there, of blocks that are compared
        for coder in (self.encode, self.decode):
            coder.memory.enter()
        ways["both"] = lambda: (self.encode(frames, changed), self.decode(latents, changed))
        for name, work in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            wall = 1e3 * (time.perf_counter() - start)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_QUEUED)
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            self.times.setdefault(f"{name}_wall", []).append(wall)
            self.times.setdefault(name, []).append(begin.elapsed_time(end))

    def medians(self, warm: int) -> dict[str, float]:
        """Of the blocks after so many."""
        return {name: median(times[warm:]) for name, times in self.times.items()}


def measure(
    vae: TinyVideoAutoencoder, size: tuple[int, int], share: float, spots: bool, blocks: int,
    overlap: bool,
) -> dict[str, Any]:  # fmt: skip
    """A row: times of partial and of whole blocks, and how many are active."""
    width, height = size
    factor, channels = vae.spatial_factor, vae.config["latent_channels"]
    h, w = height // factor, width // factor
    whole, partial = Coders(vae, overlap), Coders(vae, overlap)
    shares = []
    for number in range(blocks):
        drawn: dict[str, Any] = {"device": "cuda", "dtype": vae.dtype}
        frames = torch.rand(1, _BLOCK * vae.temporal_factor, 3, height, width, **drawn)
        latents = torch.randn(1, channels, _BLOCK, h, w, **drawn)
        changed = changes(share, h, w, spots, number)
        shares.append(float(active(changed).float().mean()))
        if number == 0:  # maps of everything, as a stream has them
            partial.encode(frames, None), partial.decode(latents, None)
        whole.run(frames, latents, None)
        partial.run(frames, latents, changed)
    warm = blocks // 4
    mine, dense = partial.medians(warm), whole.medians(warm)
    return {
        "placed": "spots" if spots else "patches",
        "active": sum(shares[warm:]) / len(shares[warm:]),
        "overlap": overlap,
        **mine,
        **{f"dense_{name}": took for name, took in dense.items()},
    }


def _wide(changed: Tensor, side: int) -> Tensor:
    return changed.repeat_interleave(side, -2).repeat_interleave(side, -1)


def _standing(still: Tensor, changed: Tensor) -> list[Tensor]:
    """A picture a latent frame, each the one before but for new noise where it changed."""
    pictures = [still]
    for mask in _wide(changed, still.shape[-1] // changed.shape[-1]).unbind(1):
        noise = torch.rand_like(still) if still.shape[1] == 3 else torch.randn_like(still)
        pictures.append(torch.where(mask.unsqueeze(1), noise, pictures[-1]))
    return pictures[1:]


def errors(vae: TinyVideoAutoencoder, size: tuple[int, int], share: float) -> dict[str, float]:
    """Of changed places, against whole blocks; and of all, where all is asked for by name."""
    width, height = size
    h, w = height // vae.spatial_factor, width // vae.spatial_factor
    drawn: dict[str, Any] = {"device": "cuda", "dtype": vae.dtype}
    found: dict[str, float] = {}
    for name, kind in (("encode", FusedEncoder), ("decode", FusedDecoder)):
        whole, partial, everything = (kind(vae) for _ in range(3))
        encode, worst, same = name == "encode", [], 0.0
        still = torch.rand(1, 3, height, width, **drawn)
        if not encode:
            still = torch.randn(1, vae.config["latent_channels"], h, w, **drawn)
        for number in range(10):
            changed = changes(share, h, w, True, number)
            if number < 3:  # a stream's start settles
                changed = torch.zeros_like(changed)
            pictures = _standing(still, changed)
            still = pictures[-1]
            block = torch.stack(pictures, 1 if encode else 2)
            if encode:
                block = block.repeat_interleave(vae.temporal_factor, 1)
            reference = whole(block, None)
            mine = partial(block, changed if number > 2 else None)
            asked = torch.ones_like(changed) if number else None
            same = max(same, float((everything(block, asked) - reference).abs().max()))
            if number > 2:
                # (B, S, 1, h, w), or in the order of latents
                at = _wide(changed, reference.shape[3] // h)
                at = at.unsqueeze(1) if encode else at.repeat_interleave(4, 1).unsqueeze(2)
                apart = (mine - reference).abs()[at.expand_as(reference)].float()
                worst.append(apart / reference.float().std())
        apart = torch.cat(worst)
        found[f"{name}_p999"] = float(apart.topk(max(1, len(apart) // 1000)).values[-1])
        found[f"{name}_max"] = float(apart.max())
        found[f"{name}_all_active"] = same
    return found


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    """Print a row for each share, and JSON."""
    torch.manual_seed(0)
    vae = TinyVideoAutoencoder(**TAEW_CONFIG).eval().requires_grad_(False)
    vae = vae.to("cuda", getattr(torch, options.dtype))
    width, height = map(int, options.size.split("x"))
    size, rows = (width, height), []
    say(torch.cuda.get_device_name())
    names = ("encode", "decode", "both", "both_wall")
    header = f"{'placed':>8}{'active':>8}{'overlap':>8}"
    say(header + "".join(f"{x:>11}" for x in (*names, *(f"d_{x}" for x in names), "ratio")))
    for overlap in (True, False):
        for spots in (True, False):
            for share in (
                options.active if overlap else [x for x in options.active if x in (0.1, 1)]
            ):
                row = measure(vae, size, share, spots, options.blocks, overlap)
                rows.append(row)
                line = f"{row['placed']:>8}{row['active']:8.2f}{overlap:8}"
                for name in (*names, *(f"dense_{x}" for x in names)):
                    line += f"{row[name]:11.3f}"
                say(f"{line}{row['both'] / row['dense_both']:11.3f}")
    apart = errors(vae, size, 0.1)
    say(", ".join(f"{name} {value:.4g}" for name, value in apart.items()))
    say(f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB at most")
    say(json.dumps({"what": "autoencoder", **vars(options), "rows": rows, "errors": apart}))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="The tiny autoencoder on a GPU.")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--active", type=float, nargs="+", default=[0.05, 0.1, 0.3, 0.6, 1.0])
    parser.add_argument("--blocks", type=int, default=24)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
