"""Pictures of a model's styles, for the live page: one frame in each, below each other.

    python -m training.style_pictures src/stillframe/models/tiny

writes ``styles.webp`` beside the table ``styles.json`` of a model folder. Of a clip one frame is
edited as if nothing moved, in each style of the table, and made smaller.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stillframe import load_pipeline
from stillframe.cli.demo import find_clip
from stillframe.loading.styles import PICTURES_FILE, load_styles
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.fit import fit_to_grid

__all__ = ["frame_of", "main", "styled"]

SMALL = (112, 64)
WORKING = (336, 192)
FRAME = 130
QUALITY = 75

Pixels = NDArray[np.uint8]


def frame_of(clip: Path, number: int) -> Pixels:
    """A frame of a clip, uint8 (H, W, 3)."""
    with av.open(str(clip)) as video:
        for at, frame in enumerate(video.decode(video=0)):
            if at == number:
                return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    raise ValueError(f"{clip.name} has fewer than {number + 1} frames")


def styled(pipe: CausalWanPipeline, picture: Pixels, prompt: str) -> Pixels:
    """What a model makes of a still picture in its first block, the last frame of it."""
    width, height = WORKING
    fit = fit_to_grid(
        picture.shape[1], picture.shape[0], multiple=pipe.frame_multiple,
        target_height=height, target_width=width,
    )  # fmt: skip
    still = fit.to_grid(torch.from_numpy(picture).unsqueeze(0))
    stream = pipe.stream(prompt, generator=torch.Generator().manual_seed(0), method="full")
    parts = [stream.push(still.repeat(pipe.timeline.first_frames, 1, 1, 1).unsqueeze(0))]
    edited = [part for part in (*parts, stream.flush()) if part is not None]
    return np.asarray(fit.from_grid(edited[-1][0, -1:]).cpu().numpy()[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures of a model folder."""
    parser = argparse.ArgumentParser(description="Pictures of a model's styles.")
    parser.add_argument("folder", type=Path, help="of the model, with styles.json")
    parser.add_argument("--clip", type=Path, help="whose frame it is; by default the demo's")
    parser.add_argument("--frame", type=int, default=FRAME, help="number of that frame")
    given = parser.parse_args(arguments)
    pipe, styles = load_pipeline(str(given.folder)), load_styles(given.folder)
    picture = frame_of(given.clip or find_clip("bikes.mp4"), given.frame)
    sheet = Image.new("RGB", (SMALL[0], SMALL[1] * len(styles)))
    for row, style in enumerate(styles):
        small = Image.fromarray(styled(pipe, picture, style.prompt)).resize(
            SMALL, Image.Resampling.LANCZOS
        )
        sheet.paste(small, (0, row * SMALL[1]))
    sheet.save(given.folder / PICTURES_FILE, quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
