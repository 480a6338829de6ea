"""Run by `test_compiling` without Triton's interpreter: a process that compiles ahead, and another.

As the process of an `Ahead` it compiles what normalising rows launches. Run with a word it is the
one that starts that, launches the same over tensors of its own and prints what became of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from stillframe.kernels import norms
from stillframe.kernels.compiling import Ahead, serve
from stillframe.kernels.rehearsal import Card, Launch, _Driver, rehearsed

CARD = Card((9, 0), 132, 80 * 10**9)


def normalise() -> None:
    x = torch.ones(48, 256, dtype=torch.bfloat16)
    affine = norms.Affine(torch.ones(256), torch.ones(256), 1)
    norms.residual_norm(x, None, None, affine, 1e-6)
    norms.residual_norm(x, x.clone(), None, affine, 1e-6)


def find(task: dict[str, Any], card: Card, note: Callable[[Launch], None]) -> None:
    assert card == CARD
    with rehearsed(card, note):
        normalise()
    if task["fails"]:
        raise SystemExit(1)


def launch() -> list[bool]:
    """Which kernels were found on disk, as a launch looks for them."""
    import triton
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
    driver.set_active(_Driver(CARD.target))
    run = JITFunction.run

    def compiled(self: Any, *args: Any, **given: Any) -> Any:
        return run(self, *args, **{**given, "warmup": True})  # all but the launch itself

    with (
        mock.patch.object(JITFunction, "run", compiled),
        mock.patch.object(norms, "_INTERPRETED", True),
    ):
        normalise()
    return hits


def main(fails: bool) -> None:
    task = {"card": list(CARD), "fails": fails}
    Ahead.start("tests.compiling_ahead", task)
    first = Ahead.latest
    assert first is not None
    states = first.progress()
    while next(states)[1] < 2:
        pass
    hits = launch()
    *_, last = states
    Ahead.start("tests.compiling_ahead", task)
    import triton

    free = triton.knobs.runtime.jit_cache_hook is None
    sys.stdout.write(
        json.dumps({"hits": hits, "last": last, "again": Ahead.latest is not first, "free": free})
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1] == "fails")
    else:
        serve(find)
