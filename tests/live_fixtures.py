"""What tests of live sessions share: frames, a clock set by hand, a model that takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests import tiny
from torch import Tensor

from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder
from stillframe.config import EditConfig
from stillframe.controls import Controls
from stillframe.jobs.loop import EditRun
from stillframe.live import EditedFrame, LiveSession, Worker
from stillframe.methods import Method
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.fit import fit_to_grid

__all__ = [
    "BLOCK",
    "VirtualClock",
    "counted",
    "embeds",
    "file_path",
    "levels",
    "open_session",
    "pipe_fixture",
    "pipeline",
    "pixels",
    "play",
    "read",
    "shares",
    "while_decoding",
]

BLOCK = 12  # frames of a block of the tiny models
Pixels = NDArray[np.uint8]
METHOD = InterFramePruning()


class VirtualClock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


def pipeline(kind: str = "tiny") -> CausalWanPipeline:
    """A tiny pipeline; "trimming" holds frames back, "wan" has a shorter first block."""
    if kind == "trimming":
        return CausalWanPipeline(**{**tiny.parts(), "vae": tiny.autoencoder(trim=3)})
    return tiny.pipeline(wan=kind == "wan")


def levels(frames: int, height: int = 32, width: int = 48, seed: int = 0) -> Pixels:
    """`tiny.clip` as uint8 (T, H, W, 3)."""
    video = tiny.clip(frames, height, width, seed=seed)[0].permute(0, 2, 3, 1)
    return np.asarray((video * 255).round().to(torch.uint8).numpy())


def embeds(seed: int = 5) -> Tensor:
    return torch.randn(1, 5, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(seed))


def open_session(pipe: CausalWanPipeline, worker: Worker, **options: Any) -> LiveSession:
    """A session that runs when the worker is told to."""
    return LiveSession(pipe, worker=worker, **{"prompt_embeds": embeds(), **options})


def read(session: LiveSession) -> list[EditedFrame]:
    """The edited frames that are there."""
    frames: list[EditedFrame] = []
    while session.unread:
        frame = session.get(0)
        assert frame is not None
        frames.append(frame)
    return frames


def play(
    session: LiveSession, worker: Worker, frames: Iterable[Pixels], start: float = 0.0
) -> list[EditedFrame]:
    """Push frames at 10 a second of their own time, running blocks as soon as they are full."""
    out = []
    for number, frame in enumerate(frames):
        assert session.push(frame, start + number / 10, timeout=0)
        while worker.step():
            out += read(session)
    return out


@contextmanager
def while_decoding(pipe: CausalWanPipeline, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` once in the middle of every block, whatever of it is decoded."""
    # found by decoding a little, once for each autoencoder
    open_autoencoder(pipe.vae, pipe.config.block_frames).channel_gains()
    decode = StreamingAutoencoder.decode

    def acting(
        self: StreamingAutoencoder, latents: Tensor, changed: Tensor | None = None
    ) -> Tensor:
        if self.vae is pipe.vae:
            action()
        return decode(self, latents, changed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamingAutoencoder, "decode", acting)
        yield


def file_path(
    pipe: CausalWanPipeline,
    frames: Sequence[Pixels] | Pixels,
    method: Method = METHOD,
    height: int | None = None,
    width: int | None = None,
    control: Controls | None = None,
    text: Tensor | None = None,
    **settings: Any,
) -> Pixels:
    """What `edit_file` writes, but for the file: the lane of a file, fed frame by frame."""
    fit = fit_to_grid(
        frames[0].shape[1],
        frames[0].shape[0],
        multiple=pipe.frame_multiple,
        target_height=height,
        target_width=width,
    )
    prompt = embeds() if text is None else text
    stream = EditRun(pipe, prompt, EditConfig(method, control, seed=0, **settings)).stream
    parts = []
    for frame in frames:
        picture = fit.to_grid(torch.from_numpy(np.array(frame)).unsqueeze(0)).unsqueeze(0)
        parts.append(stream.push(picture))
    parts.append(stream.flush())
    edited = [fit.from_grid(part[0]).numpy() for part in parts if part is not None]
    return np.concatenate(edited)


@contextmanager
def counted(module: Any) -> Iterator[list[Any]]:
    """The first inputs a module gets meanwhile."""
    seen: list[Any] = []
    hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    yield seen
    hook.remove()


def shares(session: LiveSession) -> list[float]:
    return [block.kept_share for block in session.telemetry.blocks]


def pixels(frames: list[EditedFrame]) -> Pixels:
    return np.stack([frame.pixels for frame in frames])


@pytest.fixture(scope="module", name="pipe")
def pipe_fixture() -> CausalWanPipeline:
    """A tiny pipeline for all tests of a file."""
    return pipeline()
