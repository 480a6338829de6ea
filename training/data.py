"""Training clips: which may be used, decoding them, and random crops in pixels.

``CLIPS.csv`` beside this file lists the clips with source and licence; it is what is loaded, and
nothing else. Clips live decoded on the training device, uint8, in their own sizes.

This file knows nothing of styles, latents or models.

Run as ``python -m training.data --manifest MANIFEST.csv --out training/CLIPS.csv`` to select the
clips with a permissive licence from a manifest.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CLIPS_CSV",
    "Clip",
    "decode",
    "load_clips",
    "loop_to",
    "permitted",
    "random_crops",
    "read_clips",
    "weights",
]

CLIPS_CSV = Path(__file__).with_name("CLIPS.csv")
"""The clips that the bundled model was trained on."""

_PERMITTED = ("MIT", "Apache-2.0", "CC BY 4.0", "CC0")
_FIELDS = ("file", "source_repo_or_package", "source_path", "licence_if_stated", "start_frame")


@dataclass(frozen=True)
class Clip:
    """One training clip: file name, the repository and path it came from, licence as stated."""

    file: str
    source: str
    path: str
    licence: str
    start_frame: str


def permitted(licence: str) -> bool:
    """Whether a manifest's licence text is one that training may use (no NC, no custom terms)."""
    return licence.startswith(_PERMITTED) or "DROID dataset (CC BY 4.0" in licence


def read_clips(path: Path = CLIPS_CSV) -> list[Clip]:
    """The clips that ``path`` lists, in its order."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Clip(row["file"], row["source"], row["path"], row["licence"], row["start_frame"])
            for row in csv.DictReader(file)
        ]


def decode(path: Path, size: tuple[int, int] | None = None, limit: int | None = None) -> Tensor:
    """Decode a video file.

    Args:
        path: the file.
        size: (height, width) to resize to by pixel area; None leaves frames as they are.
        limit: at most this many frames.

    Returns:
        (T, 3, H, W) uint8 RGB.

    Raises:
        ValueError: if no frame decodes.
    """
    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while limit is None or len(frames) < limit:
        found, frame = capture.read()
        if not found:
            break
        if size is not None and frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    if not frames:
        raise ValueError(f"no frame of {path} could be decoded")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def loop_to(frames: Tensor, count: int) -> Tensor:
    """Lengthen a clip (T, ...) to at least ``count`` frames by playing it forward and backward."""
    if len(frames) >= count:
        return frames
    period = torch.cat([frames, frames[1:-1].flip(0)]) if len(frames) > 2 else frames
    return period.repeat(math.ceil(count / len(period)), 1, 1, 1)[:count]


def load_clips(
    folder: Path, clips: Sequence[Clip], device: torch.device, workers: int = 16
) -> list[Tensor]:
    """Decode ``clips`` from ``folder`` in threads: (T >= 48, 3, H, W) uint8 each, on ``device``."""

    def load(clip: Clip) -> Tensor:
        return loop_to(decode(folder / Path(clip.file).name), 48).to(device)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(load, clips))


def weights(clips: Sequence[Clip]) -> list[float]:
    """Sampling weights: a source of n clips counts as sqrt(n), lest one robot lab fill the set."""
    counts = Counter(clip.source for clip in clips)
    return [counts[clip.source] ** -0.5 for clip in clips]


def _crop(clip: Tensor, frames: int, side: int, rng: random.Random) -> Tensor:
    """One random crop (frames, 3, side, side), float in [0, 1]; half of them shrunk or mirrored."""
    height, width = clip.shape[-2:]
    window = rng.randint(side, min(height, width)) if rng.random() < 0.5 else side
    start = rng.randint(0, len(clip) - frames)
    top, left = rng.randint(0, height - window), rng.randint(0, width - window)
    crop = clip[start : start + frames, :, top : top + window, left : left + window].float() / 255
    if window != side:
        crop = F.interpolate(crop, (side, side), mode="bilinear", antialias=True)
    if rng.random() < 0.5:
        crop = crop.flip(-1)
    return crop.flip(0) if rng.random() < 0.3 else crop


def random_crops(
    clips: Sequence[Tensor],
    odds: Sequence[float],
    shape: tuple[int, int, int],
    rng: random.Random,
) -> Tensor:
    """Random crops of random clips.

    Args:
        clips: (T, 3, H, W) uint8 each.
        odds: how often each clip is drawn, relatively.
        shape: (batch, frames, side in pixels).
        rng: decides everything.

    Returns:
        (batch, frames, 3, side, side) float in [0, 1], on the clips' device.
    """
    batch, frames, side = shape
    chosen = rng.choices(range(len(clips)), odds, k=batch)
    return torch.stack([_crop(clips[i], frames, side, rng) for i in chosen])


def main() -> None:
    """Write CLIPS.csv from a manifest."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=CLIPS_CSV)
    options = parser.parse_args()
    with options.manifest.open(newline="", encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["set"] == "train" and permitted(row["licence_if_stated"])
        ]
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "source", "path", "licence", "start_frame"))
        writer.writerows([row[field] for field in _FIELDS] for row in rows)


if __name__ == "__main__":
    main()
