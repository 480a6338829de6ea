"""What each setting of the change detector prunes and what it costs: a sweep over clips.

Every clip is encoded once and edited dense once; then pruned with every shape of the mask
(`change.MaskShape`, and the thresholds' ratio and trim) at several scales of the thresholds, with
the same noise. A row holds the share of tokens pruned after the first block, the root mean square
difference to the dense edit and the flicker, both in grey levels of the decoded frames. Rows are
appended to ``rows.csv`` as they come; the same command goes on where it was. `detector_choice`
draws curves through them and names a winner, on other clips than those it is judged on.

Run as ``python -m benchmarks.detector CLIPS --out FOLDER [--jobs 8] [--clips 24]``; then once on
held-out clips with ``--shapes default WINNER``.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import say
from benchmarks.cuts import read
from benchmarks.detector_choice import choose, report
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.detection.latents import CausalMask, MaskShape
from stillframe.engine.stream import BlockStats
from stillframe.evaluation.sources import Clip, find_clips, spread
from stillframe.loading.load import load_pipeline
from stillframe.methods import Method, Selector, find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.metrics import find_metric
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["FIELDS", "SHAPES", "Setting", "ShapedPruning", "measure"]

FIELDS = ("clip", "conditioning", "shape", "scale", "pruned", "error", "flicker")
_SCALES = (0.3, 0.6, 1.0, 1.6, 2.5)
_PROMPTS = ("oil painting", "watercolour painting", "neon outlines", "sepia", "night")


@dataclass(frozen=True)
class Setting:
    """A detector, but for the scale of its thresholds.

    Attributes:
        shape: filters and morphology.
        ratio: long-term threshold over short-term threshold.
        trim: see `change.patch_distance`.
    """

    shape: MaskShape = field(default_factory=MaskShape)
    ratio: float = 2.0
    trim: float = 0.0


def _settings() -> dict[str, Setting]:
    plain = MaskShape()
    shapes = {
        "default": plain,
        "smooth-none": replace(plain, smoothing="none"),
        "smooth-median": replace(plain, smoothing="median"),
        "smooth-gaussian": replace(plain, smoothing="gaussian"),
        "memory-1": replace(plain, memory=1),
        "no-majority": replace(plain, majority=False),
        "clean-none": replace(plain, cleaning="none"),
        "clean-open": replace(plain, cleaning="open"),
        "clean-close": replace(plain, cleaning="close"),
        "bound-1.5": replace(plain, bound=1.5),
        "bound-none": replace(plain, bound=float("inf")),
    }
    for frames, side in ((1, 1), (1, 3), (2, 3), (2, 5), (3, 3)):
        shapes[f"dilate-{frames}-{side}"] = replace(plain, dilation=(frames, side))
    bare = MaskShape("none", 1, False, "none", (1, 1))
    shapes |= {
        "bare": bare,
        "bare-gaussian": replace(bare, smoothing="gaussian"),
        "bare-gaussian-3": replace(bare, smoothing="gaussian", dilation=(1, 3)),
        "bare-3": replace(bare, dilation=(1, 3)),
        "bare-open-3": replace(bare, cleaning="open", dilation=(1, 3)),
        "gaussian-2-3": replace(plain, smoothing="gaussian", majority=False, dilation=(2, 3)),
    }
    found = {name: Setting(shape) for name, shape in shapes.items()}
    found |= {f"ratio-{ratio:g}": Setting(ratio=ratio) for ratio in (1.0, 1.5, 3.0, 4.0)}
    found["trim-0.2"] = Setting(trim=0.2)
    return found


#: What is compared, by name; "default" is what the package does.
SHAPES = _settings()


@dataclass(frozen=True)
class ShapedPruning(InterFramePruning):
    """`InterFramePruning` with another shape of its mask; known to this benchmark alone.

    Attributes:
        shape: filters and morphology.
    """

    shape: MaskShape = field(default_factory=MaskShape)

    def selector(self) -> Selector:
        return CausalMask(*self.thresholds, self.trim, self.shape)

    @classmethod
    def of(cls, setting: Setting, scale: float) -> ShapedPruning:
        """A setting at a scale of the papers' thresholds: their mean stays where the ratio is."""
        # 0.15 and 0.30 at a ratio of 2; another ratio keeps the product of the two
        tau1 = 0.15 * scale * (2 / setting.ratio) ** 0.5
        return cls(tau1=tau1, tau2=tau1 * setting.ratio, trim=setting.trim, shape=setting.shape)


class _Edit(NamedTuple):
    frames: Tensor  # (T, 3, H, W), 0 to 1, as 8 bits would hold them
    pruned: float


class Prepared(NamedTuple):
    """A clip: its frames (T, 3, H, W) from 0 to 1, and its latents, block by block."""

    frames: Tensor
    blocks: list[Tensor]


def _prepare(pipe: CausalWanPipeline, clip: Clip, options: argparse.Namespace) -> Prepared:
    """Read and encode a clip, or read what was encoded before."""
    kept = options.out / "latents" / f"{clip.name}-{options.height}-{options.blocks}.pt"
    count = options.blocks * pipe.config.block_frames * 4
    frames = read(clip.path, options.height, pipe.frame_multiple, count)
    if kept.is_file():
        return Prepared(frames, torch.load(kept, weights_only=True))
    with torch.inference_mode():
        stream = open_autoencoder(pipe.vae, pipe.config.block_frames)
        blocks = [block.float().clone() for block in stream.encode(frames.unsqueeze(0))]
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(blocks, kept)
    return Prepared(frames, blocks)


def _edited(
    pipe: CausalWanPipeline, clip: Prepared, embeds: Tensor, method: Method, conditioning: str
) -> _Edit:
    seen: list[BlockStats] = []
    stream = pipe.stream(
        prompt_embeds=embeds,
        method=method,
        on_block=seen.append,
        conditioning=conditioning,
        generator=torch.Generator().manual_seed(0),
    )
    frames = torch.cat([stream.edit_block(block) for block in clip.blocks], 1)[0]
    later = seen[1:]
    kept = sum(stats.kept for stats in later) / sum(stats.tokens for stats in later)
    return _Edit((frames.float().clamp(0, 1) * 255).round() / 255, 1 - kept)


def measure(dense: Tensor, edited: Tensor, source: Tensor) -> dict[str, float]:
    """Difference to the dense edit and flicker, in grey levels; frames (T, 3, H, W), 0 to 1."""
    error = 255 * float((edited - dense).double().square().mean().sqrt())
    return {"error": error, "flicker": find_metric("flicker")()(edited, source)}


def _of_clip(pipe: CausalWanPipeline, job: tuple[int, Clip, argparse.Namespace]) -> Iterator[Any]:
    """Rows of a clip that are not there yet."""
    number, clip, options = job
    done = {tuple(row[name] for name in FIELDS[:4]) for row in _rows(options.out)}
    prepared: Prepared | None = None
    for conditioning in options.conditioning:
        dense: Tensor | None = None
        for name in options.shapes:
            for scale in options.scales:
                row = {"clip": clip.name, "conditioning": conditioning, "shape": name}
                row["scale"] = f"{scale:g}"
                if tuple(row.values()) in done:
                    continue
                prepared = prepared or _prepare(pipe, clip, options)
                embeds = pipe.encode_prompt(_PROMPTS[number % len(_PROMPTS)])
                if dense is None:
                    full = find_method("full")()
                    dense = _edited(pipe, prepared, embeds, full, conditioning).frames
                method = ShapedPruning.of(SHAPES[name], scale)
                edit = _edited(pipe, prepared, embeds, method, conditioning)
                source = prepared.frames[: len(dense)]
                found = {"pruned": edit.pruned, **measure(dense, edit.frames, source)}
                yield row | {key: f"{value:.6g}" for key, value in found.items()}


def _rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "rows.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _work(jobs: Any, rows: Any) -> None:
    """A process: clips in, rows out."""
    torch.set_num_threads(1)
    pipe = load_pipeline("tiny")
    for job in iter(jobs.get, None):
        for row in _of_clip(pipe, job):
            rows.put(row)
    rows.put(None)


def _sweep(options: argparse.Namespace) -> None:
    """Run what is missing; whole clips, so that an early end leaves complete ones."""
    context = multiprocessing.get_context("spawn")
    jobs: Any = context.Queue()
    rows: Any = context.Queue()
    clips = spread(find_clips(options.places), options.clips)
    for item in [*((i, clip, options) for i, clip in enumerate(clips)), *[None] * options.jobs]:
        jobs.put(item)
    workers = [context.Process(target=_work, args=(jobs, rows)) for _ in range(options.jobs)]
    for worker in workers:
        worker.start()
    path = options.out / "rows.csv"
    fresh = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        for _ in workers:
            for row in iter(rows.get, None):
                writer.writerow(row)
                file.flush()
    for worker in workers:
        worker.join()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sweep settings of the change detector.")
    parser.add_argument("places", nargs="*", help="clips or folders; none: only draw the curves")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=24, help="so many, spread over all")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--scales", nargs="+", type=float, default=list(_SCALES))
    parser.add_argument("--conditioning", nargs="+", default=["source"])
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="shapes as they are, no choosing")
    return parser.parse_args()


def main() -> None:
    """Run the sweep, print curves compared at equal error, and the choice."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.places:
        _sweep(options)
    rows = [{**row, **{k: float(row[k]) for k in FIELDS[3:]}} for row in _rows(options.out)]
    say(report(rows) if options.report else choose(rows))


if __name__ == "__main__":
    main()
