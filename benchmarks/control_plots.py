"""The plots of docs/control.md: what each control does to the blocks or places of a clip.

A clip is edited by the bundled model once a control. For whole blocks, refresh and cuts (of the
clip joined to a second one), the share of tokens that every block computes is drawn, with and
without the control; for regions, masks and the codec, in how many blocks each place was computed,
as a map.

Run as ``python -m benchmarks.control_plots CLIP CLIP --out docs/control``.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from stillframe.controls import (
    Box,
    CodecDetector,
    Controls,
    Cuts,
    GivenMasks,
    Gop,
    MaskHeader,
    MaskRecorder,
    MotionMap,
    Refresh,
    Region,
)
from stillframe.loading.load import load_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import VideoReader
from stillframe.video.fit import fit_to_grid

__all__ = ["bars", "maps"]

_BLOCK = 12
_COLOURS = ("#9aa5b1", "#d9822b")
_FONT = 'font-family="sans-serif" font-size="11" fill="#777"'


def read(clip: Path, frames: int, pipe: CausalWanPipeline) -> tuple[Tensor, list[MotionMap]]:
    """Frames (1, T, 3, 112, 192) and what their codec moved."""
    pictures, motion = [], []
    with VideoReader(clip, motion=True) as reader:
        fit = fit_to_grid(
            reader.width, reader.height, multiple=pipe.frame_multiple,
            target_height=112, target_width=192,
        )  # fmt: skip
        for frame in islice(reader, frames):
            pictures.append(fit.to_grid(torch.from_numpy(frame.pixels).unsqueeze(0)))
            assert frame.motion is not None
            motion.append(MotionMap(*frame.motion))
    return torch.cat(pictures).unsqueeze(0), motion


def run(
    pipe: CausalWanPipeline, video: Tensor, control: Controls | None, motion: list[MotionMap]
) -> list[Tensor]:
    """The mask (S, h, w) of every block."""
    kept: list[Tensor] = []
    stream = pipe.stream(
        "oil painting",
        control=control,
        generator=torch.Generator().manual_seed(0),
        on_block=lambda stats: kept.append(stats.keep[0].cpu()),
    )
    if stream.control_state is not None:
        for one in motion:
            stream.control_state.frame(one)
    stream.push(video)
    return kept


def bars(title: str, series: dict[str, list[Tensor]]) -> str:
    """Shares of tokens by block, series side by side."""
    count = max(len(kept) for kept in series.values())
    width, height, left, top = 560, 130, 40, 24
    wide = width / count
    parts = [f'<text x="{left}" y="14" {_FONT}>{title}</text>']
    for share in (0, 0.5, 1):
        y = top + height * (1 - share)
        parts.append(f'<path d="M{left} {y}h{width}" stroke="#ccc" stroke-width="0.5"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" {_FONT}>{share}</text>')
    for i, (name, kept) in enumerate(series.items()):
        for block, keep in enumerate(kept):
            tall = height * float(keep.float().mean())
            x = left + wide * (block + 0.1 + 0.4 * i)
            parts.append(
                f'<rect x="{x:.1f}" y="{top + height - tall:.1f}" width="{0.4 * wide:.1f}" '
                f'height="{tall:.1f}" fill="{_COLOURS[i]}"/>'
            )
        parts.append(_key(i, name, left + 180 * i, top + height + 20))
    return _svg(left + width + 10, top + height + 30, title, parts)


def maps(title: str, series: dict[str, list[Tensor]]) -> str:
    """In how many blocks, but the first, each place was computed: white none, full colour all."""
    parts = [f'<text x="8" y="14" {_FONT}>{title}</text>']
    x, bottom = 8, 0
    for name, kept in series.items():
        share = torch.stack([keep.any(0) for keep in kept[1:]]).float().mean(0)
        for row, line in enumerate(share.tolist()):
            for column, value in enumerate(line):
                parts.append(
                    f'<rect x="{x + 20 * column}" y="{24 + 20 * row}" width="19" height="19" '
                    f'fill="{_COLOURS[1]}" fill-opacity="{0.06 + 0.94 * value:.2f}"/>'
                )
        bottom = max(bottom, 24 + 20 * len(share))
        parts.append(f'<text x="{x}" y="{bottom + 16}" {_FONT}>{name}</text>')
        x += 20 * share.shape[1] + 24
    return _svg(x, bottom + 24, title, parts)


def _key(index: int, name: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{_COLOURS[index]}"/>'
        f'<text x="{x + 15}" y="{y}" {_FONT}>{name}</text>'
    )


def _svg(width: float, height: float, title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" aria-label="{title}">{"".join(parts)}</svg>\n'
    )


def _masks(kept: list[Tensor], pipe: CausalWanPipeline) -> GivenMasks:
    recorder = MaskRecorder()
    for keep in kept:
        recorder.add(keep.unsqueeze(0))
    frames, height, width = kept[0].shape
    return recorder.masks(MaskHeader(frames, height, width, pipe.frame_multiple, 4))


def main() -> None:
    """Write six files."""
    parser = argparse.ArgumentParser(description="Plots of docs/control.md.")
    parser.add_argument("clips", type=Path, nargs=2)
    parser.add_argument("--out", type=Path, default=Path("docs/control"))
    parser.add_argument("--frames", type=int, default=96)
    options = parser.parse_args()
    pipe = load_pipeline("tiny")
    (video, motion), (other, _) = (read(clip, options.frames, pipe) for clip in options.clips)
    half = options.frames // 2 // _BLOCK * _BLOCK
    joined = torch.cat([video[:, :half], other[:, :half]], 1)
    plain = run(pipe, video, None, [])

    def controlled(control: Controls, shown: Tensor = video) -> list[Tensor]:
        return run(pipe, shown, control, motion)

    box = Box(0.25, 0.25, 0.5, 0.5)
    drawn = {
        "gop": bars(
            "tokens computed, by block", {"without": plain, "--gop 3": controlled(Controls(Gop(3)))}
        ),
        "refresh": bars(
            "tokens computed, by block",
            {"without": plain, "--refresh 4": controlled(Controls(Refresh(4)))},
        ),
        "cuts": bars(
            f"tokens computed, by block; a cut at frame {half}",
            {
                "without": run(pipe, joined, None, []),
                "--cuts": controlled(Controls(Cuts()), joined),
            },
        ),
        "regions": maps(
            "blocks in which each place was computed; the middle half is the region",
            {mode: controlled(Controls(Region(box, mode))) for mode in ("always", "never", "only")},
        ),
        "masks": maps(
            "blocks in which each place was computed",
            {
                "the first edit": plain,
                "another, --masks-in": controlled(Controls(_masks(plain, pipe))),
            },
        ),
        "codec": maps(
            "blocks in which each place was computed",
            {
                "latent": plain,
                **{k: controlled(Controls(CodecDetector(k))) for k in ("codec", "both")},
            },
        ),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in drawn.items():
        (options.out / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
