"""A control of a user in one class: its option, its part in masks and budgets, its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tests import tiny
from tests.test_control import STILL, Run, scene
from tests.tiny import clip
from torch import Tensor

from stillframe.controls import (
    Box,
    Control,
    ControlledBlock,
    Controls,
    Demands,
    Gop,
    Rate,
    Refresh,
    Region,
    RunningControl,
    StreamFacts,
    build,
    control_kinds,
    register,
)
from stillframe.controls.stream import ControlState
from stillframe.engine.stream import BlockStats
from stillframe.methods import Method, find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.options import Option


@register("stripes")
@dataclass(frozen=True)
class Stripes(Control):
    """Recompute every N-th column."""

    summary = "every so manieth column recomputed"
    options: ClassVar = {
        "stripes": Option("int", "Recompute every N-th column.", least=2, most=9, live=True)
    }

    every: int

    def check(self, method: Method, controls: Controls) -> None:
        if not method.prunes:
            raise ValueError(f"method {method.name!r} recomputes every column")

    def start(self, facts: StreamFacts) -> RunningStripes:
        return RunningStripes(self)


class RunningStripes(RunningControl[Stripes]):
    blocks = 0

    def demands(self, block: ControlledBlock) -> Demands:
        return block.no_demands()._replace(forced=self.columns(block.grid.width))

    def columns(self, width: int) -> Tensor:
        return torch.arange(width) % self.control.every == 0

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        return keep | self.columns(block.grid.width)

    def end(self, block: ControlledBlock) -> None:
        self.blocks += 1

    def report(self) -> dict[str, Any]:
        return {"stripes": {"every": self.control.every, "blocks": self.blocks}}


def test_its_option_is_listed_checked_and_builds_it() -> None:
    def named(name: str) -> str:
        return f"--{name}"

    assert control_kinds()["stripes"].options["stripes"].help == "Recompute every N-th column."
    method = find_method("prune")()
    values = {"stripes": 3, "gop": 5, "refresh": None, "what nobody knows": 1}
    assert build(values, method) == Controls(Stripes(3), Gop(5))
    with pytest.raises(ValueError, match=r"^--stripes is a whole number from 2 to 9, got 1$"):
        build({"stripes": 1}, method, named=named)


def test_clients_of_the_server_may_set_and_change_it() -> None:
    pytest.importorskip("pydantic")
    from stillframe.server.client_config import ClientConfig
    from stillframe.server.messages import Hello, Update, parse_message
    from stillframe.server.protocol import ProtocolError

    first = ClientConfig().changed(parse_message(Hello, {"prompt": "oil", "stripes": 4}))
    assert first.config.control == Controls(Stripes(4))
    full = first.changed(parse_message(Update, {"method": "full"}))
    assert full.config.control is None  # and rests until another method can have it
    assert full.changed(parse_message(Update, {"method": "prune"})).config == first.config
    with pytest.raises(ValueError, match="method 'full' recomputes every column"):
        full.changed(parse_message(Update, {"stripes": 4}))
    gone = parse_message(Update, {"stripes": False})
    assert (gone.what, first.changed(gone).config.control) == (["stripes"], None)
    with pytest.raises(ProtocolError, match=r"^stripes is a whole number from 2 to 9, got 1$"):
        parse_message(Update, {"stripes": 1})


def test_it_acts_between_the_others_and_is_reported() -> None:
    run = Run(Controls(Stripes(3), Region(Box(0, 0, 0.5, 1), "never")))
    run.feed(scene(0, 12))
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    wanted[:, 3] = True  # a region that is never recomputed has the last word on column 0
    assert all(torch.equal(b.keep[0], wanted.expand(3, -1, -1)) for b in run.blocks[1:])
    state = run.stream.control_state
    assert state is not None
    assert state.report()["stripes"] == {"every": 3, "blocks": 4}


def test_its_demands_come_out_of_a_budget() -> None:
    rate = Rate(kept=0.4)
    method = InterFramePruning(detector="latent", tau1=0.01)
    plain, striped = (Run(Controls(rate, *more), method) for more in ((), (Stripes(3),)))
    for run in (plain, striped):
        run.feed(scene(0, 18, drift=0.3))
    assert striped.shares == plain.shares
    assert all(block.keep[..., ::3].all() for block in striped.blocks)
    assert not all(block.keep[..., ::3].all() for block in plain.blocks)


@pytest.mark.parametrize("method", [STILL, InterFramePruning()])
def test_plain_and_fused_execution_obey_it_alike(method: Any) -> None:
    pipe, found = tiny.pipeline(), {}
    for execution in ("reference", "fused"):
        blocks: list[BlockStats] = []
        stream = pipe.stream(
            "night",
            method=method,
            control=Controls(Stripes(3), Refresh(4)),
            generator=torch.Generator().manual_seed(0),
            on_block=blocks.append,
            execution=execution,
        )
        frames = stream.push(clip(37))
        state = stream._state
        assert state is not None
        assert (state.fused is not None) == (execution == "fused")
        found[execution] = frames, [block.keep for block in blocks]
        assert all(block.keep[..., ::3].all() for block in blocks)
        assert min(block.kept_share for block in blocks) < 1
    (one, masks), (other, same) = found.values()
    assert all(torch.equal(a, b) for a, b in zip(masks, same, strict=True))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_controls_are_one_of_a_name_and_in_their_order() -> None:
    assert Controls(Refresh(4), Stripes(2), Gop(3)) == Controls(Gop(3), Refresh(4), Stripes(2))
    assert [each.name for each in Controls(Refresh(4), Rate(kept=0.5), Stripes(2))] == [
        "rate", "stripes", "refresh",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a stream has one gop control, got 2"):
        Controls(Gop(2), Gop(3))


def test_what_did_not_change_goes_on_as_it_was() -> None:
    first = ControlState(Controls(Stripes(3), Gop(5)))
    after = ControlState(Controls(Stripes(3), Gop(6), Refresh(4)), previous=first)
    assert after.find(RunningStripes) is first.find(RunningStripes)
    assert [each.control for each in after] == list(after.controls)
    other = ControlState(Controls(Stripes(4)), previous=after)
    assert other.find(RunningStripes) is not after.find(RunningStripes)
