"""What somebody adds in one file runs fused and captured, too: recoveries, methods, detectors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests import plug_ins, tiny
from tests.recorded_graphs import record
from torch import Tensor

from stillframe.backbones.fused.blocks import FusedBlocks
from stillframe.detection.capture import Stateful, SteppedMask, captured
from stillframe.detection.latents import CausalMask
from stillframe.detection.pixels import VisibleChange
from stillframe.engine import state
from stillframe.kernels.shared import Step
from stillframe.methods import Selector, find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.recovery import recoveries
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with plug_ins.registered():
        yield


@pytest.fixture
def fused_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of tokens computed in each block that ran fused."""
    ran: list[int] = []
    plain = FusedBlocks.denoise

    def counted(self: FusedBlocks, plan: Any, *rest: Any) -> Tensor:
        ran.append(plan.counts[0])
        return plain(self, plan, *rest)

    monkeypatch.setattr(FusedBlocks, "denoise", counted)
    return ran


@pytest.mark.slow
def test_kernels_read_what_the_plain_way_reads() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.plug_ins"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == len(plug_ins.RECOVERIES)


def plainly(step: Step) -> Step:
    """A step as it is."""
    return step


@pytest.mark.parametrize("recovery", sorted({*recoveries(), *plug_ins.RECOVERIES} - {"none"}))
def test_every_recovery_runs_fused_and_captured(
    recovery: str, fused_blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs on a CPU are recordings of torch's operations: whatever a block changes must lie in
    tensors that have not moved since the recording."""
    method = find_method("wrapping")(recovery=recovery)
    plain, shares = plug_ins.edited(method, "reference")
    assert not fused_blocks
    assert len(set(shares)) > 3
    fused, _ = plug_ins.edited(method, "fused")
    torch.testing.assert_close(fused, plain, atol=2e-5, rtol=0)
    assert len(fused_blocks) == plug_ins.BLOCKS
    recordings = record(monkeypatch)
    monkeypatch.setattr(state, "_faster", lambda *_: plainly)
    assert torch.equal(plug_ins.edited(method, "fused")[0], fused)
    # two blocks fill the window; of the others' passes, the first of either kind is recorded
    assert recordings.replays == 3 * (plug_ins.BLOCKS - 2) - 2


def blocks_of(latents: Tensor, pixels: Tensor | None, grid: Grid) -> Iterator[SourceBlock]:
    """Blocks of (B, F, N, P) latents, with pixels (B, F, t, 3, H, W) if there are some."""
    for start in range(grid.frames, latents.shape[1], grid.frames):
        end, before = start + grid.frames, latents[:, start - 1]
        seen = None if pixels is None else pixels[:, start - 1 : end].flatten(1, 2)
        yield SourceBlock(latents[:, start:end], before, before, grid, seen)


class Mean:
    """A user's detector: by the distance from a running mean, which is all it remembers."""

    def __init__(self) -> None:
        self.state_tensors: list[Tensor] = []

    def __call__(self, source: SourceBlock) -> Tensor:
        mean = self.state_tensors[0] if self.state_tensors else source.previous
        far = (source.tokens - mean.unsqueeze(1)).abs().mean(3) > 0.5
        self.state_tensors = [0.5 * (mean + source.tokens.mean(1))]
        grid = source.grid
        return far.unflatten(2, (grid.height, grid.width))


SELECTORS: dict[str, Callable[[], Selector]] = {
    "own": Mean,
    "wrapped own": lambda: plug_ins.Alternating(Mean()),
    "wrapped": lambda: plug_ins.Alternating(CausalMask(0.1, 0.2)),
    "wrapped twice": lambda: plug_ins.Alternating(plug_ins.Alternating(CausalMask(0.1, 0.2))),
    "papers'": lambda: CausalMask(0.1, 0.2),
    "by pixels": lambda: find_method("prune")().selector(),
    "ranked by pixels": lambda: InterFramePruning(rate=0.4).selector(),
    "wrapped, by pixels": lambda: plug_ins.Alternating(find_method("prune")().selector()),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_is_captured_wherever_it_is_kept(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = record(monkeypatch)
    plain, fast = SELECTORS[name](), captured(SELECTORS[name]())
    grid, g = Grid(3, 4, 6), torch.Generator().manual_seed(0)
    latents = torch.randn(2, 1, 24, 16, generator=g) + torch.zeros(2, 18, 1, 1)
    latents += 0.4 * torch.randn(2, 18, 24, 1, generator=g) * (torch.rand(2, 18, 24, 1) < 0.3)
    pixels = torch.rand(2, 1, 1, 3, 64, 96, generator=g).repeat(1, 18, 4, 1, 1, 1)
    pixels[:, :, :, :, :32] += 0.3 * torch.rand(2, 18, 1, 1, 32, 96, generator=g)
    shares = []
    for block in blocks_of(latents, pixels.clamp(0, 1) if "pixels" in name else None, grid):
        keep = plain(block)
        assert torch.equal(fast(block), keep)
        shares.append(keep.float().mean().item())
    assert 0 < min(shares) < 1
    # the first block has no memory, the second one is recorded
    assert recordings.replays == len(shares) - 2


def test_what_offers_nothing_stays_as_it_is() -> None:
    def select(source: SourceBlock) -> Tensor:
        raise AssertionError

    assert captured(select) is select
    wrapper = plug_ins.Alternating(select)
    assert captured(wrapper) is wrapper
    assert wrapper.detector is select
    circle: Any = plug_ins.Alternating(CausalMask(0.1, 0.2))
    circle.itself = circle
    assert isinstance(captured(circle).detector, SteppedMask)
    assert not isinstance(VisibleChange(3.0), Stateful)
    assert isinstance(captured(CausalMask(0.1, 0.2)), SteppedMask)


def test_a_stream_on_a_gpu_takes_its_selector_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of selectors is what streams do: the step is asked for, not the detector."""
    record(monkeypatch)
    steps: list[type] = []
    plain = SteppedMask.__call__

    def counted(self: SteppedMask, source: SourceBlock) -> Tensor:
        steps.append(type(self._selector))
        return plain(self, source)

    monkeypatch.setattr(SteppedMask, "__call__", counted)
    stream = tiny.pipeline().stream("oil", method=find_method("wrapping")(), sigmas=(0.5,))
    for _ in range(3):
        stream.edit_block(torch.randn(1, tiny.CHANNELS, 3, 8, 12))
    assert steps == [CausalMask] * 2
