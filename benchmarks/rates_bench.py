"""Clips and streams for `benchmarks.rates`: what is edited, with which model, and what is noted."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.controls import Controls
from stillframe.detection.frames import PixelBlocks
from stillframe.engine.stream import BlockStats, EditStream
from stillframe.loading.load import load_pipeline
from stillframe.loading.random_model import random_pipeline
from stillframe.methods import Method
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid, patchify
from stillframe.video import VideoReader
from stillframe.video.fit import fit_to_grid

__all__ = ["Bench", "Run", "psnr", "write_rows"]


class Run:
    """A stream of one pipeline, and what it said of its blocks."""

    def __init__(
        self,
        pipe: CausalWanPipeline,
        embeds: Tensor,
        method: Method,
        control: Controls | None,
        steps: int | None = None,
    ) -> None:
        self.blocks: list[BlockStats] = []
        self.results: list[Tensor] = []
        self.stream: EditStream = pipe.stream(
            prompt_embeds=embeds,
            method=method,
            generator=torch.Generator().manual_seed(0),
            on_block=self.blocks.append,
            control=control,
            num_inference_steps=steps,
        )

    @property
    def control_state(self) -> Any:
        """The state of its controls."""
        return self.stream.control_state

    @property
    def kept(self) -> float:
        """Mean share computed, after the first block."""
        return mean(block.kept_share for block in self.blocks[1:])


class Bench:
    """A pipeline and its clips, as 8-bit frames of one size.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if options.random_13b:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            self.pipe = random_pipeline("1.3b", str(device), dtype)
            size = self.pipe.config.text_length, self.pipe.transformer.config.text_dim
            self.embeds = torch.randn(1, *size, device=device, dtype=dtype)
        else:
            self.pipe = load_pipeline("tiny")
            self.embeds = self.pipe.encode_prompt(options.prompt)
        self.steps = options.steps
        self.block_frames = self.pipe.timeline.later_frames
        self.device = self.pipe.compute_device
        multiple = self.pipe.frame_multiple
        self.height = options.height // multiple * multiple
        self.width = round(self.height * 16 / 9 / multiple) * multiple
        if options.random_13b:
            self.height, self.width = 480, 832
        self.clips = {clip.stem: self._read(clip, options.frames) for clip in options.clips}

    def _read(self, clip: Path, most: int) -> Tensor:
        """Frames (T, 3, H, W) uint8, at the working size."""
        frames = []
        with VideoReader(clip) as reader:
            fit = fit_to_grid(
                reader.width,
                reader.height,
                multiple=self.pipe.frame_multiple,
                target_height=self.height,
                target_width=self.width,
            )
            for frame in islice(reader, most):
                pixels = fit.to_grid(torch.from_numpy(frame.pixels).unsqueeze(0))
                frames.append((pixels * 255).round().to(torch.uint8))
        return torch.cat(frames)

    def run(self, method: Method, control: Controls | None = None) -> Run:
        """A fresh stream."""
        return Run(self.pipe, self.embeds, method, control, self.steps)

    def push(self, stream: EditStream, frames: Tensor) -> list[Tensor]:
        """Frames (T, 3, H, W) uint8 through a stream, block by block; what came out."""
        out = []
        for piece in frames.split(self.block_frames):
            edited = stream.push(piece.to(self.device).unsqueeze(0).float() / 255)
            out += [] if edited is None else [edited]
        return out

    def joined(self) -> Iterator[tuple[str, Tensor]]:
        """Blocks of frames of all clips, one after the other without end, and the clips' names."""
        held, name = torch.empty(0, dtype=torch.uint8), ""
        for name, frames in cycle(self.clips.items()):
            held = frames if not held.numel() else torch.cat([held, frames])
            while len(held) >= self.block_frames:
                yield name, held[: self.block_frames]
                held = held[self.block_frames :]

    @torch.inference_mode()
    def latents(self, frames: Tensor) -> list[Tensor]:
        """Source latents of a clip by block."""
        coder = open_autoencoder(self.pipe.vae, self.pipe.config.block_frames)
        blocks = []
        for piece in frames.split(self.block_frames):
            blocks += coder.encode(piece.to(self.device).unsqueeze(0).float() / 255)
        return blocks

    def pixels(self, frames: Tensor) -> list[Tensor]:
        """Source pixels of the same blocks, see ``SourceBlock.pixels``."""
        shown = PixelBlocks(self.pipe.timeline)
        shown.add(frames.to(self.device).unsqueeze(0).float() / 255)
        return [shown.take() for _ in range(len(frames) // self.block_frames)]

    def tokens(self, block: Tensor) -> tuple[Tensor, Grid]:
        """A block of latents as tokens (1, S, N, P)."""
        patch = self.pipe.denoiser.patch
        _, _, frames, height, width = block.shape
        grid = Grid(frames, height // patch, width // patch)
        return patchify(block.float(), patch).unflatten(1, (frames, -1)), grid


def psnr(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Between two lists of frames in [0, 1], dB."""
    error = mean(float((x - y).float().square().mean()) for x, y in zip(a, b, strict=True))
    return float(-10 * torch.tensor(max(error, 1e-12)).log10())


def write_rows(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table as CSV."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
