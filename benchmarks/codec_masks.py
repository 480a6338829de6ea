"""How well motion vectors of a clip's own codec agree with the change of its latents.

For every clip: the share of tokens that the codec knows anything of; of those, the share on which
both say the same; precision and recall of the codec, with the latents' masks as truth; and the
share of tokens that each of them recomputes. Nothing is edited; masks are those of the default
method on the bundled autoencoder's latents, first blocks left out.

Run as ``python -m benchmarks.codec_masks CLIP... [--height 240] [--frames 96]``. The last line is
JSON with all of it, and tokens of all clips taken together.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import say
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.controls import CodecDetector, ControlledBlock, MotionMap
from stillframe.controls.codec import CodecTrack
from stillframe.detection.frames import PixelBlocks
from stillframe.detection.pixels import Anchors
from stillframe.loading.load import load_pipeline
from stillframe.methods import Method, find_method
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid, patchify
from stillframe.tokens.restore import predecessor_rows, restore
from stillframe.tokens.source import SourceBlock
from stillframe.video import VideoReader
from stillframe.video.fit import fit_to_grid

__all__ = ["Result", "compare"]


class Result(NamedTuple):
    """Of one clip; shares are of the tokens of all blocks but the first.

    Attributes:
        tokens: how many those are.
        known, agreed, precision, recall: see ``control.codec.Agreement``.
        latent, codec, both: share that each detector recomputes.
    """

    tokens: int
    known: float
    agreed: float | None
    precision: float | None
    recall: float | None
    latent: float
    codec: float
    both: float


class _Masks:
    """The method's masks of one stream, without a model behind them."""

    def __init__(self, method: Method) -> None:
        self._select, self._anchors = method.selector(), Anchors()
        self._previous: Tensor | None = None
        self._reference: Tensor | None = None

    def __call__(self, source: Tensor, pixels: Tensor, grid: Grid) -> Tensor | None:
        """The mask (1, S, h, w) of the next block (1, S*N, P); None of a stream's first."""
        by_frame = source.unflatten(1, (grid.frames, grid.frame_tokens))
        previous, self._previous = self._previous, by_frame[:, -1]
        if previous is None or self._reference is None:
            self._reference = by_frame[:, -1]
            shape = (1, grid.frames, grid.height, grid.width)
            self._anchors.advance(pixels, torch.ones(shape, dtype=torch.bool))
            return None
        seen = pixels, self._anchors.pixels
        keep = self._select(SourceBlock(by_frame, previous, self._reference, grid, *seen))
        self._anchors.advance(pixels, keep)
        rows = predecessor_rows(keep.flatten(2))
        self._reference = restore(source, self._reference, rows)[:, -grid.frame_tokens :]
        return keep


@torch.inference_mode()
def compare(pipe: CausalWanPipeline, clip: Path, height: int, frames: int) -> Result:
    """Both detectors on one clip.

    Raises:
        InputError: its decoder tells no motion vectors.
    """
    coder = open_autoencoder(pipe.vae, pipe.config.block_frames)
    shown = PixelBlocks(coder.timeline)
    patch = pipe.denoiser.patch
    masks = _Masks(find_method("prune")())
    kept: list[Tensor] = []
    with VideoReader(clip, motion=True) as reader:
        fit = fit_to_grid(
            reader.width,
            reader.height,
            multiple=pipe.frame_multiple,
            target_height=min(height, reader.height),
        )
        extent = (fit.width / fit.padded_width, fit.height / fit.padded_height)
        tracks = [CodecTrack(CodecDetector(k, extent=extent, clock=coder.timeline)) for k in _KINDS]
        for frame in islice(reader, frames):
            for track in tracks:
                track.frame(None if frame.motion is None else MotionMap(*frame.motion))
            picture = fit.to_grid(torch.from_numpy(frame.pixels).unsqueeze(0)).unsqueeze(0)
            shown.add(picture)
            for latents in coder.encode(picture):
                size = latents.shape
                grid = Grid(size[2], size[3] // patch, size[4] // patch)
                tokens = patchify(latents.float(), patch)
                block = ControlledBlock(tokens.unflatten(1, (size[2], -1)), grid, tracks)
                for track in tracks:
                    track.begin(block)
                keep = masks(tokens, shown.take(), grid)
                if keep is not None:
                    kept.append(torch.stack([keep, *(track.mask(block, keep) for track in tracks)]))
    if not kept:
        raise ValueError(f"{clip} has fewer frames than two blocks take")
    every = torch.cat(kept, 2)
    shares = [float(one.float().mean()) for one in every]
    return Result(every[0].numel(), *tracks[0].agreement, *shares)


_KINDS = ("codec", "both")


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def total(results: list[Result]) -> dict[str, float | None]:
    """All clips, a token as a token."""
    tokens = sum(r.tokens for r in results)

    def mean(values: list[tuple[float | None, float]]) -> float | None:
        weight = sum(w for _, w in values)
        return sum((v or 0.0) * w for v, w in values) / weight if weight else None

    return {
        "tokens": tokens,
        "known": mean([(r.known, r.tokens) for r in results]),
        "agreed": mean([(r.agreed, r.known * r.tokens) for r in results]),
        "latent": mean([(r.latent, r.tokens) for r in results]),
        "codec": mean([(r.codec, r.tokens) for r in results]),
        "both": mean([(r.both, r.tokens) for r in results]),
    }


def main() -> None:
    """Print a row a clip."""
    parser = argparse.ArgumentParser(description="Motion vectors against latents.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--frames", type=int, default=96)
    options = parser.parse_args()
    pipe = load_pipeline("tiny")
    results: dict[str, Result] = {}
    say("\t".join(("clip", *Result._fields)))
    for clip in options.clips:
        result = results[clip.stem] = compare(pipe, clip, options.height, options.frames)
        say("\t".join((clip.stem, str(result.tokens), *map(_told, result[1:]))))
    rows = {name: result._asdict() for name, result in results.items()}
    say(json.dumps({"clips": rows, "all": total(list(results.values()))}))


if __name__ == "__main__":
    main()
