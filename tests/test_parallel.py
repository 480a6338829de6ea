"""One stream on several processes gives what one process gives.

Matrix products of fewer rows round otherwise, in the last bits of float32: pictures of [0, 1] agree
to `ROUNDING`. What is decided - masks, motion - is decided once, so it is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tests import parallel_models, plug_ins, tiny
from tests.test_engine import Scripted
from tests.test_motion_streams import pan
from torch import Tensor

from stillframe.backbones.parallel.attention import joined, slices
from stillframe.backbones.parallel.fused import ShardedBlocks
from stillframe.backbones.parallel.leader import ParallelDenoiser, _Leader
from stillframe.controls import Controls, Gop
from stillframe.engine.stream import BlockStats, EditStream
from stillframe.errors import ModelError
from stillframe.jobs.bench import Share
from stillframe.jobs.parallel import Followers
from stillframe.methods import Method, find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.recovery import recoveries

ROUNDING = 5e-6


@pytest.fixture(scope="module", name="leading")
def leading_fixture() -> Iterator[CausalWanPipeline]:
    """A pipeline that two processes run."""
    with Followers(["cpu", "cpu"], parallel_models.transformer) as followers:
        pipe = parallel_models.pipeline()
        with followers.leading(pipe):
            yield pipe


@pytest.fixture(name="both")
def both_fixture(leading: CausalWanPipeline) -> Both:
    return Both(parallel_models.pipeline(), leading)


class Run(NamedTuple):
    """What came out of a stream."""

    frames: Tensor
    blocks: list[BlockStats]
    stream: EditStream

    @property
    def fused(self) -> Any:
        """The passes that it was run in."""
        assert self.stream._state is not None
        return self.stream._state.fused


@dataclass(frozen=True)
class Both:
    """The same pipeline in one process and in two."""

    alone: CausalWanPipeline
    leading: CausalWanPipeline

    def same(
        self,
        video: Tensor,
        midway: Callable[[CausalWanPipeline, Any], None] | None = None,
        numbers: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Run, Run]:
        """Edit a video both ways and compare; ``midway`` is done to streams after half of it."""
        runs = [self._run(pipe, video, midway, numbers or {}, options) for pipe in self._pipes]
        alone, leading = runs
        for one, other in zip(alone.blocks, leading.blocks, strict=True):
            assert torch.equal(one.keep, other.keep)
            assert (one.moved is None) == (other.moved is None)
            if one.moved is not None and other.moved is not None:
                assert torch.equal(one.moved, other.moved)
        assert alone.frames.std() > 0.01
        torch.testing.assert_close(leading.frames, alone.frames, rtol=0, atol=ROUNDING)
        return alone, leading

    @property
    def _pipes(self) -> tuple[CausalWanPipeline, CausalWanPipeline]:
        return self.alone, self.leading

    @staticmethod
    def _run(
        pipe: CausalWanPipeline,
        video: Tensor,
        midway: Callable[[CausalWanPipeline, Any], None] | None,
        numbers: dict[str, Any],
        options: dict[str, Any],
    ) -> Run:
        blocks: list[BlockStats] = []
        before = {name: pipe.config[name] for name in numbers}
        pipe.register_to_config(**numbers)
        generators = [torch.Generator().manual_seed(n) for n in range(len(video))]
        prompts = ["oil painting", "sepia"][: len(video)]
        stream = pipe.stream(prompts, generator=generators, on_block=blocks.append, **options)
        pipe.register_to_config(**before)
        half = video.shape[1] // 2
        parts = [stream.push(video[:, :half])]
        if midway is not None:
            midway(pipe, stream)
        parts += [stream.push(video[:, half:]), stream.flush()]
        frames = torch.cat([part for part in parts if part is not None], 1)
        return Run(frames, blocks, stream)


Ways = pytest.mark.parametrize("execution", ["reference", "fused"])


@Ways
def test_with_everything_computed(both: Both, execution: str) -> None:
    full = find_method("full")()
    alone, leading = both.same(tiny.clip(33), method=full, execution=execution)
    assert isinstance(leading.fused, ShardedBlocks) == (execution == "fused")
    assert {block.kept_share for block in alone.blocks} == {1.0}


@pytest.mark.parametrize(
    ("recovery", "execution"),
    [*((name, "reference") for name in recoveries()), ("aligned", "fused"), ("noisy", "fused")],
)
def test_every_recovery_with_what_moved(both: Both, recovery: str, execution: str) -> None:
    method = InterFramePruning(recovery=recovery)
    alone, _ = both.same(pan(25), method=method, execution=execution)
    assert max(block.moved_share for block in alone.blocks) > 0.4


@pytest.mark.parametrize("recovery", ["aligned", "none"])
def test_recoveries_on_a_batch_of_unequal_masks(both: Both, recovery: str) -> None:
    video = tiny.clip(33)
    video = torch.cat([video, video[:, :1].expand_as(video)])
    alone, _ = both.same(video, method=InterFramePruning(recovery=recovery))
    counts = [block.keep.flatten(1).sum(1) for block in alone.blocks]
    assert any(len(set(count.tolist())) == 2 for count in counts)


@pytest.mark.parametrize(
    ("execution", "numbers"),
    [
        ("reference", {"sink_frames": 0, "window_frames": 3}),
        ("fused", {"sink_frames": 3, "position_limit": 9}),
        ("fused", {"sink_frames": 3, "context_sink": False}),
        ("fused", {"context_noise": 0.3}),
        ("reference", {"sink_frames": 3, "sink_average": 0.5}),
        ("fused", {"cache": "fp8", "store": "fp8"}),
    ],
)
def test_what_leaves_the_window_and_how_it_is_kept(
    both: Both, execution: str, numbers: dict[str, Any]
) -> None:
    both.same(tiny.clip(45), numbers=numbers, method=InterFramePruning(), execution=execution)


def test_the_cache_and_the_store_of_a_process_are_half_of_it(both: Both) -> None:
    alone, leading = both.same(tiny.clip(13), method=InterFramePruning())
    for name, whole in alone.stream.memory.items():
        # which rows are there, and what entries were computed from, has no heads
        assert 0.5 * whole <= leading.stream.memory[name] < 0.53 * whole


@Ways
def test_fewer_tokens_than_processes_and_none_at_all(both: Both, execution: str) -> None:
    method = Scripted(script=(0.0, 0.015, 0.3))
    alone, _ = both.same(tiny.clip(33), method=method, execution=execution)
    assert [block.kept for block in alone.blocks][1:3] == [0, 1]


def test_another_prompt_with_the_window_computed_anew(both: Both) -> None:
    def change(pipe: CausalWanPipeline, stream: Any) -> None:
        stream.set_text(pipe.text("night"))

    both.same(tiny.clip(33), change, numbers={"recompute_context": True}, method=Share(share=0.5))


def test_another_recovery_from_some_block_on(both: Both) -> None:
    method: Method = Share(share=0.5, recovery="aligned")

    def change(_pipe: CausalWanPipeline, stream: Any) -> None:
        stream.update(method=Share(share=0.4, recovery="clean"))
        stream.push(tiny.clip(4))
        stream.update(method=method)

    both.same(tiny.clip(33), change, method=method, execution="fused")


def test_a_stream_that_begins_anew(both: Both) -> None:
    alone, _ = both.same(tiny.clip(33), method=Share(share=0.5), control=Controls(Gop(2)))
    assert [block.kept_share for block in alone.blocks] == [1, 0.5, 1]


def test_streams_that_take_turns(both: Both) -> None:
    """Each has its own cache in every process, and its own prompt."""
    found = []
    for pipe in both._pipes:
        streams = [
            pipe.stream(prompt, method=Share(share=0.5), seed=3) for prompt in ("oil", "sepia")
        ]
        parts: list[list[Tensor]] = [[], []]
        for block in tiny.clip(36).split(12, 1):
            for stream, part in zip(streams, parts, strict=True):
                edited = stream.push(block)
                if edited is not None:
                    part.append(edited)
        found.append([torch.cat(part, 1) for part in parts])
    (a, b), (c, d) = found
    torch.testing.assert_close((c, d), (a, b), rtol=0, atol=ROUNDING)
    assert (a - b).abs().max() > 100 * ROUNDING


@Ways
def test_the_same_again_is_the_same_bit_for_bit(both: Both, execution: str) -> None:
    given: dict[str, Any] = {"method": Share(share=0.5), "execution": execution}
    first, second = (both.same(tiny.clip(21), **given)[1].frames for _ in range(2))
    assert torch.equal(first, second)


def test_video_from_a_prompt(both: Both) -> None:
    alone, leading = (
        torch.cat(list(pipe.generate_stream("oil", num_frames=25, height=64, width=96, seed=1)), 1)
        for pipe in both._pipes
    )
    assert alone.std() > 0.01
    torch.testing.assert_close(leading, alone, rtol=0, atol=ROUNDING)


# what is refused, after which the processes go on


def test_heads_that_cannot_be_shared(leading: CausalWanPipeline) -> None:
    group = leading.denoiser._leader.group  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="the model has 3 heads of attention, which 2 processes"):
        ParallelDenoiser(tiny.transformer(heads=3), group)


def test_methods_that_merge(both: Both) -> None:
    stream = both.leading.stream("oil", method=find_method("tome")())
    with pytest.raises(ValueError, match="merges tokens cannot be run by 2 processes"):
        stream.push(tiny.clip(33))
    both.same(tiny.clip(13))


def test_a_store_that_other_processes_lack(both: Both) -> None:
    with plug_ins.registered():
        both.same(tiny.clip(25), method=Share(share=0.5, recovery="neighbour"))
        stream = both.leading.stream("oil", method=Share(share=0.5, recovery="apart"))
        with pytest.raises(ValueError, match="Apart keeps keys and values in a store of its own"):
            stream.push(tiny.clip(33))
    both.same(tiny.clip(13))


def test_weights_that_change_in_one_process(both: Both) -> None:
    weight = both.leading.transformer.proj_out.weight
    stream = both.leading.stream("oil")
    stream.push(tiny.clip(13))
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(ModelError, match="weights have changed in 1 of 2 processes"):
        stream.push(tiny.clip(12))
    with torch.no_grad():
        weight.mul_(0.5)


def test_what_ends_is_forgotten_with_the_next_message() -> None:
    told: list[Any] = []
    group: Any = SimpleNamespace(tell=told.append)
    leader, thing = _Leader(group), Both.__new__(Both)
    number, kept = leader.number(), leader.number()
    leader.follow(thing, number)
    leader.tell("first")
    del thing
    leader.tell("second")
    leader.tell("third")
    assert told == [("first", []), ("second", [number]), ("third", [])]
    assert kept != number


@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_slices_are_joined_again(tokens: int, count: int) -> None:
    x = torch.arange(2.0 * tokens * 3).view(2, tokens, 3)
    parts = slices(x, count)
    assert parts.shape == (count, 2, -(-tokens // count), 3)
    assert torch.equal(joined(parts, tokens), x)
