"""What processes of tests load: without the server and its clients, which they need not import."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests import parallel_models, tiny

from stillframe.errors import ModelError
from stillframe.live import LiveSession
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["BROKEN", "SLOW", "faulty", "no_model", "one_after", "one_thread", "spread"]

BROKEN, SLOW = 64, 80  # heights of frames of sessions with faults


def one_thread() -> CausalWanPipeline:
    """The model as it is in this process: sums come out alike in the last bit."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return tiny.pipeline()


def one_after(sign: Path) -> CausalWanPipeline:
    """The same, as soon as a file is there."""
    while not sign.exists():
        time.sleep(0.05)
    return one_thread()


def no_model() -> None:
    """None that can be loaded."""
    raise ModelError("of all things")


def faulty() -> CausalWanPipeline:
    """A model in whose process sessions of one height have broken telemetry, of another hang."""
    pipe, whole = one_thread(), LiveSession.memory

    def memory(self: LiveSession) -> Any:
        if self._size.height == BROKEN and self.telemetry.last is not None:
            raise RuntimeError("of all things")
        return whole.fget(self)  # type: ignore[attr-defined]

    LiveSession.memory = property(memory)  # type: ignore[assignment]

    def hang(_module: Any, args: tuple[Any, ...]) -> None:
        if args[0].shape[-2] * 8 == SLOW:
            time.sleep(3600)

    pipe.vae.decoder[1].register_forward_pre_hook(hang)
    return pipe


@contextmanager
def spread() -> Iterator[CausalWanPipeline]:
    """A model in two processes, one of which is this one."""
    from stillframe.cli.serve import _end
    from stillframe.jobs.parallel import Followers

    torch.set_num_threads(1)
    pipe = parallel_models.pipeline()
    with (
        Followers(["cpu"] * 2, parallel_models.transformer, _end) as others,
        others.leading(pipe),
    ):
        yield pipe
