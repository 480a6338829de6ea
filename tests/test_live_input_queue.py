"""The drop rule by itself: what waits, what goes, and what a block is made of."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from stillframe.live.input_queue import Batch, InputQueue, Policy

N = 12
FRAME = np.zeros((1, 1, 3), np.uint8)
OTHER = np.zeros((1, 2, 3), np.uint8)


def input_queue(policy: Policy = "latest", **options: float) -> InputQueue:
    return InputQueue(policy, N, N, **options)  # type: ignore[arg-type]


def taken(box: InputQueue) -> Batch:
    batch = box.take()
    assert batch is not None
    return batch


def times(batch: Batch) -> list[float]:
    return [frame.timestamp for frame in batch.frames]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_at_most_two_blocks_wait_and_blocks_are_in_order(seed: int) -> None:
    """Irregular input, blocks taken at irregular moments."""
    rng = random.Random(seed)
    box, now, offered, blocks = input_queue(), 0.0, 0, []
    for _ in range(600):
        now += rng.expovariate(30) if rng.random() < 0.97 else rng.uniform(0, 3)
        assert box.offer(FRAME, now, now)
        offered += 1
        assert len(box) <= 2 * N
        assert box.ready == (len(box) >= N)
        if box.ready and rng.random() < 0.04:
            blocks.append(times(taken(box)))
            assert blocks[-1][-1] == now, "the newest frame is among them"
            assert len(box) == 0
    assert all(len(block) == N for block in blocks)
    everything = [t for block in blocks for t in block]
    assert everything == sorted(set(everything))
    assert offered == len(everything) + box.dropped + len(box)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_block_leaves_out_is_spread_over_its_time(seed: int) -> None:
    """Steady input with jitter, from hardly too fast to ten times as fast as the model."""
    rng = random.Random(seed)
    box, now, before = input_queue(), 0.0, None
    for block in range(12):
        count = round(N * rng.uniform(1, 2) ** rng.choice([1, 1, 3]))
        arrivals = []
        for _ in range(count):
            now += rng.uniform(0.9, 1.1) / 30
            arrivals.append(now)
            box.offer(FRAME, now, now)
        got = times(taken(box))
        if block and before is not None:
            gaps = [b - a for a, b in pairwise([before, *got])]
            step = (got[-1] - before) / N
            # one input frame more than the ideal, or twice the ideal: the coarser of the two
            assert max(gaps) <= max(step + 1.2 / 30, 2 * step) + 1e-9, (count, step, gaps)
        before = got[-1]


@pytest.mark.parametrize(("count", "strides"), [(12, {1}), (18, {1, 2}), (24, {2})])
def test_regular_input_is_taken_at_regular_strides(count: int, strides: set[int]) -> None:
    box, frame, before = input_queue(), 0, 0.0
    for block in range(4):
        for _ in range(count):
            frame += 1
            box.offer(FRAME, float(frame), float(frame))
        got = times(taken(box))
        gaps = [int(b - a) for a, b in pairwise([before, *got])]
        before = got[-1]
        assert box.dropped == (block + 1) * (count - N)
        if block == 0:
            continue  # there is no block before it that it could follow
        assert set(gaps) == strides
        if count == 18:
            # 1.5 on average: no two long or two short steps more than it takes to alternate
            assert all(2 <= a + b <= 4 and a + b + c <= 5 for a, b, c in zip(
                gaps, gaps[1:], gaps[2:], strict=False)), gaps  # fmt: skip


def test_input_at_the_pace_of_the_model_loses_nothing() -> None:
    box = input_queue()
    for frame in range(5 * N):
        box.offer(FRAME, float(frame), float(frame))
        if box.ready:
            assert len(taken(box).frames) == N
    assert box.dropped == 0


def test_a_pause_of_the_input_is_not_filled_with_the_oldest_frames() -> None:
    """After a gap the block is spread over what came since, as if there had been no gap."""
    box = input_queue()
    for frame in range(N):
        box.offer(FRAME, float(frame), float(frame))
    taken(box)
    later = [1000.0 + i for i in range(2 * N)]
    for t in later:
        box.offer(FRAME, t, t)
    got = times(taken(box))
    assert {int(b - a) for a, b in pairwise(got)} <= {2, 3}
    assert got[0] <= 1002


def test_frames_that_waited_too_long_go_if_there_are_others() -> None:
    box = input_queue(max_wait=3.0)
    for i in range(600):
        box.offer(FRAME, i / 10, i / 10)
    batch = taken(box)
    assert batch.frames[0].arrived >= 59.9 - 3.0
    assert len(batch.frames) == N
    slow = input_queue(max_wait=3.0)
    for i in range(30):
        slow.offer(FRAME, float(i), float(i))
    assert times(taken(slow)) == [float(i) for i in range(30 - N, 30)]


def test_all_keeps_everything_in_order_up_to_its_bound() -> None:
    box = input_queue("all", bound=20)
    assert [box.offer(FRAME, float(i), 0.0) for i in range(22)] == [True] * 20 + [False] * 2
    assert times(taken(box)) == [float(i) for i in range(N)]
    assert box.take() is None
    assert box.offer(FRAME, 20.0, 0.0)
    assert (len(box), box.dropped) == (9, 0)
    box.ended = True
    rest = taken(box)
    assert (times(rest), rest.last) == ([float(i) for i in range(12, 21)], True)
    assert box.done


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_another_size_is_another_stream(policy: Policy) -> None:
    box = input_queue(policy)
    for i in range(N + 3):
        box.offer(FRAME, float(i), 0.0)
    first = taken(box)
    for i in range(20, 20 + N):
        assert box.offer(OTHER, float(i), 0.0)
    batches = [first]
    while (batch := box.take()) is not None:
        batches.append(batch)
    got = [(batch.stream, len(batch.frames), batch.last) for batch in batches]
    if policy == "all":
        assert got == [(0, 12, False), (0, 3, True), (1, 12, False)]
        assert box.dropped == 0
    else:
        assert got == [(0, 12, False), (1, 12, False)]
        assert box.dropped == 3
    assert all(len({frame.pixels.shape for frame in batch.frames}) == 1 for batch in batches)


BOTH: tuple[Policy, ...] = ("latest", "all")


def test_a_stream_that_ends_on_a_full_block_is_ended_all_the_same() -> None:
    """There may be frames inside that only a flush brings out."""
    for policy in BOTH:
        box = input_queue(policy)
        for i in range(N):
            box.offer(FRAME, float(i), 0.0)
        assert not taken(box).last
        box.ended = True
        assert not box.done
        assert taken(box) == Batch([], 0, True)
        assert box.done
    for policy in BOTH:
        box = input_queue(policy)
        box.ended = True
        assert box.done


def test_a_cut_between_blocks_finishes_the_stream_only_if_nothing_may_be_lost() -> None:
    expected = {"latest": [(1, False)], "all": [(0, True), (1, False)]}
    for policy in BOTH:
        last = expected[policy]
        box = input_queue(policy)
        for i in range(N):
            box.offer(FRAME, float(i), 0.0)
        taken(box)
        box.cut()
        for i in range(N, 2 * N):
            box.offer(FRAME, float(i), 0.0)
        batches = [taken(box) for _ in last]
        assert [(batch.stream, batch.last) for batch in batches] == last
        assert box.take() is None


def test_a_first_block_may_take_fewer_frames() -> None:
    box = InputQueue("all", 9, 12)
    for i in range(21):
        box.offer(FRAME, float(i), 0.0)
    assert [len(taken(box).frames) for _ in range(2)] == [9, 12]
    assert box.take() is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"policy": "some"}, "'latest' or 'all', got 'some'"),
        ({"policy": "all", "bound": 11}, "at least a block of 12 frames, got 11 with 'all'"),
        ({"policy": "latest", "bound": 30}, "goes with policy 'all' .* got 30 with 'latest'"),
        ({"policy": "latest", "max_wait": -1.0}, "not be negative, got -1.0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InputQueue(first=N, later=N, **wrong)  # type: ignore[arg-type]
