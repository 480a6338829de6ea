"""Workplaces: what a stream left it finds again, and what nobody uses is bounded."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tests.recorded_graphs import Recordings
from torch import Tensor

from stillframe.kernels import graphs, shared
from stillframe.kernels.shared import CapturedStep, Memory, Workplace, shared_workplace

CPU = torch.device("cpu")


class Owner:
    """A model, say."""


@pytest.fixture(name="recordings")
def recordings_fixture(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    made = Recordings()
    monkeypatch.setattr(graphs, "capture", made)
    return made


class Counter:
    """A stream that adds its step to a buffer, from a start of its own kind."""

    def __init__(self, place: Workplace, step: float) -> None:
        self.memory, self.step = Memory(place), step
        self.kept = self.memory.zeros("kept", (3,), CPU, torch.float32, keep=False)
        place.keep("kept", self.kept[:2], start=1)
        self.scratch = self.memory.zeros("scratch", (2,), CPU, torch.float32, keep=False)

    def turn(self) -> list[float]:
        self.memory.enter()
        self.scratch.fill_(self.step)
        self.kept[:2] += self.scratch
        return self.kept[:2].tolist()


def test_a_stream_finds_what_it_left() -> None:
    place, turns = Workplace(), [0, 0, 1, 0, 2, 2, 1, 0, 1, 2]
    streams, alone = [Counter(place, 10.0**n) for n in range(3)], [0, 0, 0]
    for number in turns:
        alone[number] += 1
        assert streams[number].turn() == [1 + alone[number] * 10.0**number] * 2
    assert streams[0].kept is streams[1].kept
    # what lies in the buffers has no copy
    assert not streams[2].memory.left
    assert streams[0].memory.left.keys() == streams[1].memory.left.keys() == {"kept"}


def test_nothing_is_copied_while_the_same_stream_comes() -> None:
    place = Workplace()
    one, other = Counter(place, 1), Counter(place, 2)
    one.turn()
    one.turn()
    assert not one.memory.left
    other.turn()
    assert one.memory.left["kept"].shape == (2,)
    left = other.memory
    del other, left
    gc.collect()
    # the other has ended: it is not saved, and its numbers are gone
    assert one.turn() == [4, 4]
    assert one.turn() == [5, 5]


def test_buffers_of_a_name_and_another_size_are_others() -> None:
    memory = Memory()
    small, large = (memory.zeros("x", (n,), CPU, torch.float32) for n in (2, 3))
    whole = memory.zeros("x", (2,), CPU, torch.int64)
    assert (small.shape, large.shape, whole.dtype) == ((2,), (3,), torch.int64)
    assert memory.zeros("x", (2,), CPU, torch.float32) is small


def test_buffers_that_come_later_start_anew_for_each() -> None:
    place = Workplace()
    one, other = Memory(place), Memory(place)
    one.enter()
    late = one.zeros("late", (1,), CPU, torch.float32)
    late.fill_(3)
    other.enter()
    assert late.item() == 0
    late.fill_(4)
    one.enter()
    assert late.item() == 3


def test_a_workplace_is_found_by_its_owner_kind_and_key() -> None:
    owner, other = Owner(), Owner()
    place = shared_workplace(owner, "a", 1, captures=True)
    assert shared_workplace(owner, "a", 1, captures=True) is place
    for key in ((other, "a", 1), (owner, "b", 1), (owner, "a", 2)):
        assert shared_workplace(*key, captures=True) is not place
    assert shared_workplace(owner, "a", 1, captures=False) is not place
    assert shared_workplace(owner, "a", 1, captures=False).graphs() is None


def used(owner: Owner, key: int, count: int = 1) -> Workplace:
    """A workplace that a stream has used and left."""
    place = shared_workplace(owner, "a", key, captures=True)
    Memory(place).zeros("x", (count,), CPU, torch.float32)
    gc.collect()
    return place


def test_of_those_that_nobody_uses_two_are_kept() -> None:
    owner = Owner()
    living = [Memory(shared_workplace(owner, "a", key, captures=True)) for key in range(5)]
    places = [memory.place for memory in living]
    again = [shared_workplace(owner, "a", key, captures=True) for key in range(5)]
    assert all(a is b for a, b in zip(places, again, strict=True))
    while living:
        del living[0]
    gc.collect()
    kept = [shared_workplace(owner, "a", key, captures=True) is places[key] for key in (3, 4)]
    assert kept == [True, True]
    for key in (0, 1, 2):
        assert used(owner, key) is not places[key]
    # now those that were used last
    assert shared_workplace(owner, "a", 3, captures=True) is not places[3]


def test_buffers_end_with_their_workplace() -> None:
    owner = Owner()
    places = [used(owner, key, 100) for key in range(4)]
    assert shared.idle_bytes() >= 2 * 400
    before = shared.idle_bytes()
    del owner, places
    gc.collect()
    assert shared.idle_bytes() == before - 2 * 400


def test_those_that_nobody_uses_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_bytes_for_idle", lambda _: 1000)
    owner, other = Owner(), Owner()
    place = used(owner, 1, 200)
    # it is not given up while nothing else is made
    assert shared_workplace(owner, "a", 1, captures=True) is place
    big = used(other, 1, 100)
    shared_workplace(other, "a", 2, captures=True)
    assert shared_workplace(other, "a", 1, captures=True) is big
    assert shared_workplace(owner, "a", 1, captures=True) is not place


def test_memory_that_is_missing_is_taken_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, zeros, failures = Owner(), torch.zeros, [True]
    big = used(owner, 1, 100)

    def scarce(*size: Any, **given: Any) -> Tensor:
        if failures and failures.pop():
            raise torch.cuda.OutOfMemoryError
        return zeros(*size, **given)

    monkeypatch.setattr(torch, "zeros", scarce)
    place = shared_workplace(owner, "b", 1, captures=True)
    assert shared_workplace(owner, "a", 1, captures=True) is big
    assert place.zeros("x", (3,), CPU, torch.float32).shape == (3,)
    assert shared_workplace(owner, "a", 1, captures=True) is not big


def test_graphs_end_with_what_they_were_captured_with() -> None:
    place, weights = Workplace(captures=True), Owner()
    found = place.graphs(weights)
    assert found is not None
    assert place.graphs(weights) is found
    assert place.graphs(Owner()) is not found
    del weights
    gc.collect()
    assert not place._made_for


def sums(x: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    """What came before, which is remembered, and the input."""
    before = torch.zeros(2) if memory is None else memory[0]
    after = before + x.sum(0)
    return after * 2, [after]


def test_steps_of_streams_share_graphs(recordings: Recordings) -> None:
    owner = Owner()
    steps = [
        CapturedStep(sums, lambda shapes: shared_workplace(owner, "sums", shapes, captures=True))
        for _ in range(3)
    ]
    memories: list[list[Tensor] | None] = [None] * 3
    alone: list[list[Tensor] | None] = [None] * 3
    generator = torch.Generator().manual_seed(0)
    for turn in range(30):
        number = turn % 3 if turn < 9 else int(torch.randint(3, (1,), generator=generator))
        x = torch.randn(2 + turn % 2, 2, generator=generator)
        found, memories[number] = steps[number](x, memories[number])
        expected, alone[number] = sums(x, alone[number])
        assert torch.equal(found, expected)
    assert recordings.made == 2  # one for each length
    assert recordings.replays == 30 - 3 - 2
