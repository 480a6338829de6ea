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
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from benchmarks.plots import figure
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


def bars(path: Path, title: str, series: dict[str, list[Tensor]]) -> None:
    """Shares of tokens by block, series side by side."""
    with figure(path, 7.8, 2.6) as (drawn, (axes,)):
        for i, (name, kept) in enumerate(series.items()):
            places = [block + 0.3 + 0.4 * i for block in range(len(kept))]
            shares = [float(keep.float().mean()) for keep in kept]
            axes.bar(places, shares, 0.4, color=_COLOURS[i], label=name)
        axes.set(title=title, ylim=(0, 1), xticks=(), yticks=(0, 0.5, 1))
        axes.grid(axis="y")
        drawn.legend(loc="outside lower left", ncols=len(series))


def maps(path: Path, title: str, series: dict[str, list[Tensor]]) -> None:
    """In how many blocks, but the first, each place was computed: faint none, full colour all."""
    colours = LinearSegmentedColormap.from_list("", [(_COLOURS[1], 0.06), (_COLOURS[1], 1.0)])
    with figure(path, 3.6 * len(series), 2.7, len(series)) as (drawn, all_axes):
        drawn.suptitle(title)
        for axes, (name, kept) in zip(all_axes, series.items(), strict=True):
            share = torch.stack([keep.any(0) for keep in kept[1:]]).float().mean(0)
            axes.pcolormesh(share.numpy(), cmap=colours, vmin=0, vmax=1)
            axes.set(title=name, aspect="equal", xticks=(), yticks=())
            axes.invert_yaxis()


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

    box, shares = Box(0.25, 0.25, 0.5, 0.5), "tokens computed, by block"
    bars(
        options.out / "gop.svg", shares, {"without": plain, "--gop 3": controlled(Controls(Gop(3)))}
    )
    bars(
        options.out / "refresh.svg",
        shares,
        {"without": plain, "--refresh 4": controlled(Controls(Refresh(4)))},
    )
    bars(
        options.out / "cuts.svg",
        f"{shares}; a cut at frame {half}",
        {
            "without": run(pipe, joined, None, []),
            "--cuts": controlled(Controls(Cuts()), joined),
        },
    )
    places = "blocks in which each place was computed"
    regions = {
        mode: controlled(Controls(Region(box, mode))) for mode in ("always", "never", "only")
    }
    maps(options.out / "regions.svg", f"{places}; the middle half is the region", regions)
    again = controlled(Controls(_masks(plain, pipe)))
    maps(options.out / "masks.svg", places, {"the first edit": plain, "another, --masks-in": again})
    detectors = {k: controlled(Controls(CodecDetector(k))) for k in ("codec", "both")}
    maps(options.out / "codec.svg", places, {"latent": plain, **detectors})


if __name__ == "__main__":
    main()
