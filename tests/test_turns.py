"""Streams of a model that take turns on its buffers and graphs make what each makes alone.

Graphs are recordings of torch's operations here, which read the tensors there were when they were
made. Blocks have so few tokens that there is one length for all: rows of others round elsewhere.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests import plug_ins, tiny
from tests.recorded_graphs import Recordings, record
from tests.test_fused import RandomMask
from torch import Tensor

from stillframe import turns
from stillframe.backbones.footprint import offload_transformer, pack_transformer
from stillframe.backbones.fused import lengths as lengths_module
from stillframe.backbones.fused.lengths import LengthGraphs, Passes, bucket_lengths
from stillframe.engine import stream as stream_module
from stillframe.engine.stream import EditStream
from stillframe.kernels import shared
from stillframe.kernels.graphs import Graphs
from stillframe.methods import find_method
from stillframe.pipelines.causal_wan import CausalWanPipeline

BLOCKS = 7
PROMPTS = ["oil", "sepia", "night"]


def latents(seed: int, blocks: int = BLOCKS, sides: tuple[int, int] = (4, 6)) -> list[Tensor]:
    """Of blocks that drift."""
    generator = torch.Generator().manual_seed(seed)
    drift = 0.2 * torch.randn(blocks, 1, tiny.CHANNELS, 3, *sides, generator=generator)
    return list((torch.randn(1, tiny.CHANNELS, 3, *sides, generator=generator) + drift).unbind(0))


def opened(pipe: CausalWanPipeline, number: int, **given: Any) -> EditStream:
    given = {"method": RandomMask(recovery="aligned"), "sigmas": (0.9, 0.5), **given}
    generator = torch.Generator().manual_seed(number)
    return pipe.stream(PROMPTS[number], execution="fused", generator=generator, **given)


Act = Callable[[CausalWanPipeline, EditStream], None]


def run(
    pipe: CausalWanPipeline, order: Sequence[int], act: dict[int, Act] | None = None, **given: Any
) -> list[Tensor]:
    """Blocks of streams in some order; ``act`` is done to a stream before its block of a number."""
    streams, frames = dict[int, EditStream](), dict[int, list[Tensor]]()
    for number in order:
        if number not in streams:
            streams[number], frames[number] = opened(pipe, number, **given), []
        block = len(frames[number])
        if act and block in act:
            act[block](pipe, streams[number])
        frames[number].append(streams[number].edit_block(latents(number)[block]))
    return [torch.cat(frames[number], 1) for number in sorted(frames)]


def alone(act: dict[int, Act] | None = None, count: int = 3, **given: Any) -> list[Tensor]:
    """Each stream on a model of its own, where nothing is shared or captured."""
    return [run(tiny.pipeline(), [number] * BLOCKS, act, **given)[0] for number in range(count)]


@cache
def unchanged() -> list[Tensor]:
    """With what `opened` has by default, and nothing done."""
    return alone()


IN_TURN = [0, 1, 2] * BLOCKS
UNEVEN = [0, 0, 1, 1, 1, 0, 0, 2, 1, 0, 2, 2, 1, 0, 2, 1, 2, 2, 0, 2, 1]


@pytest.fixture(name="recordings")
def recordings_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recordings]:
    """Shared from here on; what a test compares with is made before."""
    with monkeypatch.context() as patch:
        yield record(patch)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with plug_ins.registered():
        yield


def compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


KINDS = [
    ("aligned", "exact"), ("aligned", "fp8"), ("clean", "exact"), ("noisy", "exact"),
    ("neighbour", "exact"), ("apart", "exact"), ("silent", "exact"), ("inherited", "exact"),
]  # fmt: skip


@pytest.mark.parametrize(("recovery", "store"), KINDS)
def test_streams_that_take_turns_make_what_each_makes_alone(
    recovery: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"method": RandomMask(recovery=recovery), "store": store}
    expected = alone(**given)
    recordings = record(monkeypatch)
    compare(run(tiny.pipeline(), UNEVEN, **given), expected)
    assert recordings.replays


def test_streams_that_take_regular_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = unchanged()
    recordings = record(monkeypatch)
    compare(run(tiny.pipeline(), IN_TURN), expected)
    assert recordings.replays


@pytest.mark.parametrize("recovery", ["aligned", "clean", "noisy", "neighbour"])
def test_caches_in_fp8_take_turns(recovery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"method": RandomMask(recovery=recovery), "cache": "fp8"}
    expected = alone(**given)
    recordings = record(monkeypatch)
    compare(run(tiny.pipeline(), UNEVEN, **given), expected)
    assert recordings.replays


def test_offloaded_layers_come_within_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are part of what is captured."""

    def pipe(offloaded: int) -> CausalWanPipeline:
        transformer = pack_transformer(tiny.transformer(layers=5))
        offload_transformer(transformer, torch.device("cpu"), offloaded)
        return CausalWanPipeline(**{**tiny.parts(), "transformer": transformer}, text_length=12)

    expected = [run(pipe(0), [number] * BLOCKS)[0] for number in range(3)]
    recordings = record(monkeypatch)
    compare(run(pipe(3), UNEVEN), expected)
    assert recordings.replays


@pytest.mark.parametrize("window", [{"window_frames": 4}, {"sink_frames": 0, "window_frames": 3}])
def test_streams_commit_other_numbers_of_frames_as_they_begin(
    window: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And temporal positions differ, too, between streams of other ages."""

    def pipe() -> CausalWanPipeline:
        return tiny.pipeline(position_limit=6, **window)

    expected = [run(pipe(), [number] * BLOCKS)[0] for number in range(3)]
    recordings = record(monkeypatch)
    compare(run(pipe(), UNEVEN), expected)
    assert recordings.replays


def test_methods_that_look_at_pixels_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors and pictures are captured, too."""
    method = find_method("prune")()

    def edited(pipe: CausalWanPipeline, order: Sequence[int]) -> list[Tensor]:
        clips = [tiny.clip(60, 64, 80, seed=n).split(12, 1) for n in range(3)]
        for number, clip in enumerate(clips):
            for piece in clip[1:]:  # most of the picture stands still
                piece[..., 16 * (number + 1) :] = clip[0][..., 16 * (number + 1) :]
        streams = [opened(pipe, n, method=method) for n in range(3)]
        done, found = [0] * 3, [list[Tensor]() for _ in range(3)]
        for number in order:
            if done[number] < len(clips[number]):
                frames = streams[number].push(clips[number][done[number]])
                done[number] += 1
                found[number] += [] if frames is None else [frames]
        return [torch.cat(x, 1) for x in found if x]

    expected = [edited(tiny.pipeline(), [n] * 5)[0] for n in range(3)]
    recordings = record(monkeypatch)
    pipe = tiny.pipeline()
    compare(edited(pipe, [0, 1, 2, 2, 1, 0] * 4), expected)
    made = recordings.made
    compare(edited(pipe, [0, 1, 2, 2, 1, 0] * 4), expected)
    assert recordings.made == made


def cut(_: CausalWanPipeline, stream: EditStream) -> None:
    """What a control orders at a cut."""
    stream._state = None


def another_prompt(pipe: CausalWanPipeline, stream: EditStream) -> None:
    stream.set_text(stream._backbone.text(pipe.encode_prompt("a cartoon")))


def another_recovery(_: CausalWanPipeline, stream: EditStream) -> None:
    stream.update(method=RandomMask(recovery="clean"))


def fewer_passes(_: CausalWanPipeline, stream: EditStream) -> None:
    stream.update(settings=replace(stream.settings, sigmas=(0.7,)))


def back(_: CausalWanPipeline, stream: EditStream) -> None:
    stream.update(method=RandomMask(recovery="aligned"))


CHANGES: dict[str, dict[int, Act]] = {
    "cuts": {1: cut, 5: cut},
    "prompt": {4: another_prompt, 6: another_prompt},
    "recovery": {3: another_recovery, 5: back},
    "passes": {5: fewer_passes},
    "cut and recovery": {4: another_recovery, 5: cut},
}


@pytest.mark.parametrize("act", CHANGES.values(), ids=CHANGES.keys())
def test_changes_of_streams_that_take_turns(
    act: dict[int, Act], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(act)
    recordings, pipe = record(monkeypatch), tiny.pipeline()
    compare(run(pipe, UNEVEN, act), expected)
    gc.collect()
    made = recordings.made
    assert made
    compare(run(pipe, IN_TURN, act), expected)
    assert recordings.made == made


def test_a_second_stream_a_cut_and_eight_at_once_capture_nothing(recordings: Recordings) -> None:
    pipe, full = tiny.pipeline(), {"method": RandomMask(recovery="aligned")}
    first = opened(pipe, 0, **full)
    for block in latents(0):
        first.edit_block(block)
    made = recordings.made
    assert first.graphs == made > 0
    cut(pipe, first)
    for block in latents(0):
        first.edit_block(block)
    second = [opened(pipe, number % 3, **full) for number in range(8)]
    for block in latents(1):
        for stream in second:
            stream.edit_block(block)
    assert recordings.made == made
    assert not any(stream.graphs for stream in second)
    assert recordings.replays > 8 * 3


def test_streams_that_have_ended_leave_nothing(recordings: Recordings) -> None:
    """The next stream starts as if there had been none, whatever the one before left."""
    expected = run(tiny.pipeline(), [0] * BLOCKS)[0]
    pipe, recordings.made = tiny.pipeline(), 0
    for number in (2, 1, 2):
        run(pipe, [number] * 5)
        gc.collect()
        assert torch.equal(run(pipe, [0] * BLOCKS)[0], expected)
    assert recordings.made == 2


@pytest.mark.parametrize("method", ["prune", "full", "wrapping"])
def test_what_has_ended_is_gone_at_once(method: str, recordings: Recordings) -> None:
    """Not when garbage is collected: until then it would be saved whenever another stream comes."""
    pipe = tiny.pipeline()
    gc.collect()
    gc.disable()
    try:
        stream = opened(pipe, 0, method=method)
        for piece in tiny.clip(48, 64, 80).split(12, 1):
            stream.push(piece)
        assert stream._state is not None
        state = weakref.ref(stream._state)
        places = stream._state.memory.place, stream._state.recovery.memory.place
        assert [place.users for place in places] == [1, 1]
        cut(pipe, stream)
        assert state() is None
        assert [place.users for place in places] == [0, 0]
        stream.push(tiny.clip(12, 64, 80))
        assert [place.users for place in places] == [1, 1]
        del stream
        assert [place.users for place in places] == [0, 0]
    finally:
        gc.enable()


def bytes_of(stream: EditStream) -> int:
    state = stream._state
    assert state is not None
    memories = state.memory, state.recovery.memory
    return sum(x.nbytes for memory in memories for x in memory.left.values())


def test_a_stream_has_a_copy_only_while_another_is_there(recordings: Recordings) -> None:
    pipe = tiny.pipeline()
    one, other = opened(pipe, 0), opened(pipe, 1)
    one.edit_block(latents(0)[0])
    assert bytes_of(one) == 0
    other.edit_block(latents(1)[0])
    assert 0 < bytes_of(one) < sum(one.memory.values())
    assert bytes_of(other) == 0
    one.edit_block(latents(0)[1])
    assert bytes_of(one) == 0 < bytes_of(other)
    assert recordings.made == 0  # the window is not full


def test_sizes_that_nobody_uses_are_forgotten(recordings: Recordings) -> None:
    before, pipes = shared.idle_bytes(), [tiny.pipeline()]
    sizes = [(8, 10), (4, 10), (8, 4), (4, 4), (6, 6)]

    def edited(sides: tuple[int, int]) -> int:
        stream = opened(pipes[0], 0)
        for block in latents(0, 4, sides):
            stream.edit_block(block)
        return sum(stream.memory.values())

    held = []
    for sides in sizes:
        held.append(edited(sides))
        gc.collect()
        # the two used last, and what little a selector and composing have
        assert shared.idle_bytes() - before < 1.2 * sum(sorted(held)[-2:])
    made = recordings.made
    edited(sizes[-1])
    edited(sizes[-2])
    assert recordings.made == made
    edited(sizes[0])
    assert recordings.made > made
    pipes.clear()
    gc.collect()
    assert shared.idle_bytes() <= before


def test_weights_that_change_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """All graphs are of the old weights, whichever stream comes first."""

    def change(pipe: CausalWanPipeline, _: EditStream) -> None:
        for block in pipe.transformer.blocks:
            block.scale_shift_table.data.mul_(1.5)
            block.attn1.to_q.weight.data.neg_()

    done = list[CausalWanPipeline]()

    def once(pipe: CausalWanPipeline, stream: EditStream) -> None:
        if pipe not in done:
            done.append(pipe)
            change(pipe, stream)

    # all streams have made five blocks, then the weights change
    order = [0, 1, 2] * 5 + [1, 0, 2, 2, 0, 1]
    expected = alone({5: once})
    before = unchanged()
    recordings, pipe = record(monkeypatch), tiny.pipeline()
    compare(run(pipe, order, {5: once}), expected)
    assert recordings.made == 2 * 2
    gc.collect()
    assert not any(map(torch.equal, expected, before))


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where all that a stream does with a block is one turn."""
    expected = unchanged()
    recordings, lock = record(monkeypatch), threading.RLock()
    for module in (turns, stream_module):
        monkeypatch.setattr(module, "device_turn", lambda _: lock)
    pipe, start = tiny.pipeline(), threading.Barrier(3)

    def edited(number: int) -> Tensor:
        start.wait()
        return run(pipe, [number] * BLOCKS)[0]

    with ThreadPoolExecutor(3) as pool:
        compare(list(pool.map(edited, range(3))), expected)
    assert recordings.made == 2


def test_pipelines_that_share_a_transformer_share_its_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has its own copies of weights, and graphs of them."""
    expected = unchanged()[:2]
    recordings, one = record(monkeypatch), tiny.pipeline()
    other = CausalWanPipeline(**one.components)
    streams = [opened(pipe, number) for number, pipe in enumerate((one, other))]
    frames: list[list[Tensor]] = [[], []]
    for block in range(BLOCKS):
        for number, stream in enumerate(streams):
            frames[number].append(stream.edit_block(latents(number)[block]))
    compare([torch.cat(x, 1) for x in frames], expected)
    assert recordings.made == 4


def test_a_length_is_captured_when_it_comes_up_again(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths_module, "_EAGER", 2)
    made, passes, ran = LengthGraphs(), Passes("denoise", "context"), list[int]()

    def block(length: int) -> bool:
        made.begin(passes, length)
        captured = [made.run(kind, length, lambda: ran.append(length)) for kind in passes]
        return captured == [True, True]

    assert [block(64), block(128), block(64)] == [False] * 3
    assert recordings.made == 0
    assert [block(64), block(64), block(128)] == [True, False, False]
    assert recordings.made == 2
    assert ran == [64, 64, 128, 128, 64, 64, 64, 64, 128, 128], "a replay calls nothing"
    assert recordings.replays == 2
    made.begin(passes, 192, capture=True)
    assert made.run("denoise", 192, lambda: None)


def test_what_is_computed_does_not_depend_on_which_graphs_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides, expected, made = (8, 12), None, list[int]()
    assert len(bucket_lengths(72)) == 2
    recordings = record(monkeypatch)
    for eager in (0, 1, 2, 1000):
        monkeypatch.setattr(lengths_module, "_EAGER", eager)
        stream, before = opened(tiny.pipeline(), 0), recordings.made
        found = torch.cat([stream.edit_block(x) for x in latents(0, BLOCKS, sides)], 1)
        assert expected is None or torch.equal(found, expected)
        expected = found
        made.append(recordings.made - before)
    assert made == sorted(made, reverse=True)
    assert made[0] > made[-1] == 0


def test_warming_captures_all_lengths(recordings: Recordings) -> None:
    pipe, sides = tiny.pipeline(), (12, 20)
    first = opened(pipe, 0)
    assert list(first.warm()) == []
    for block in latents(0, 5, sides):
        first.edit_block(block)
    lengths, made = bucket_lengths(180), recordings.made
    assert 0 < made < 2 * len(lengths)
    assert list(first.warm()) == lengths
    # either kind of pass, of blocks that stand and of blocks in which something moved
    assert recordings.made == 4 * len(lengths)
    assert list(first.warm()) == []
    second = opened(pipe, 1)
    made = recordings.made
    for block in latents(1, 5, sides):
        second.edit_block(block)
    assert recordings.made == made


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["prune", "full"])
def test_streams_take_turns_on_a_gpu(method: str) -> None:
    """Of frames, with all that is captured there; one length for all, so to the bit."""

    def edited(pipe: CausalWanPipeline, order: Sequence[int]) -> list[Tensor]:
        streams, found = dict[int, EditStream](), dict[int, list[Tensor]]()
        pieces = {n: list(tiny.clip(96, 64, 80, seed=n).cuda().split(12, 1)) for n in set(order)}
        for number in order:
            if number not in streams:
                generator = torch.Generator("cuda").manual_seed(number)
                streams[number] = pipe.stream(PROMPTS[number], method=method, generator=generator)
            known = found.setdefault(number, [])
            if pieces[number]:
                frames = streams[number].push(pieces[number].pop(0))
                known += [] if frames is None else [frames.cpu()]
        return [torch.cat(found[number], 1) for number in sorted(found)]

    alone = [edited(tiny.pipeline().to("cuda"), [number] * 8)[0] for number in range(3)]
    pipe = tiny.pipeline().to("cuda")
    compare(edited(pipe, [0, 1, 2, 2, 1, 0] * 6), alone)
    captures = Graphs.captures
    for number in range(3):
        compare(edited(pipe, [number] * 8), [alone[number]])
    compare(edited(pipe, [2, 0, 0, 1, 2, 1] * 6), alone)
    assert Graphs.captures == captures
