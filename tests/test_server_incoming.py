"""Timestamps of clients whose clocks do what clocks do, and what is told of lost frames."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stillframe.server.incoming import RisingTimestamps, UnusableFrames


def taken(times_of: RisingTimestamps, stamps: list[float]) -> list[float | None]:
    """The time of each timestamp, None for one that is refused."""
    times: list[float | None] = []
    for stamp in stamps:
        try:
            times.append(times_of.take(stamp))
        except ValueError:
            times.append(None)
    return times


def rises(times: list[float | None]) -> bool:
    known = [time for time in times if time is not None]
    return all(a < b for a, b in pairwise(known))


@pytest.mark.parametrize("start", [0.0, -5.0, 1.7e9])
def test_times_are_the_timestamps_as_long_as_these_rise(start: float) -> None:
    times_of, stamps = RisingTimestamps(), [start + number / 15 for number in range(100)]
    assert taken(times_of, stamps) == stamps
    assert [times_of.of(stamp) for stamp in stamps] == stamps


def test_one_frame_that_is_late_or_twice_there_is_refused_and_no_other() -> None:
    times_of = RisingTimestamps()
    assert taken(times_of, [1.0, 2.0, 2.0, 1.5, 3.0, 2.5, 4.0]) == [1, 2, None, None, 3, None, 4]
    with pytest.raises(ValueError, match=r"timestamps must rise, got 4\.0 after 4\.0"):
        times_of.take(4.0)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="finite"):
            times_of.take(wrong)
    assert times_of.take(5.0) == 5.0


@pytest.mark.parametrize(
    "leap", [-3600.0, -1.0, 3600.0, 1e300, -1e300, 2.0**62], ids=lambda leap: f"{leap:g}"
)
def test_a_clock_that_is_set_silences_a_client_for_a_few_frames_at_most(leap: float) -> None:
    times_of, step = RisingTimestamps(), 1 / 15
    before = [1000 + number * step for number in range(30)]
    after = [before[-1] + leap + number * step for number in range(1, 31)]
    if abs(leap) > 1e15:  # there, frames have the same timestamp; so it is one damaged number
        after[1:] = [before[-1] + number * step for number in range(2, 31)]
    times = taken(times_of, before + after)
    assert rises(times)
    assert times[:30] == before
    assert times[30:].count(None) <= 5
    stamps = [stamp for stamp, time in zip(before + after, times, strict=True) if time is not None]
    assert [times_of.of(time) for time in times if time is not None] == stamps
    # and it keeps the client's pace
    late = [time for time in times if time is not None][-20:]
    assert late[-1] - late[0] == pytest.approx(19 * step, abs=1e-3)


def test_a_first_timestamp_beyond_all_measure_is_no_end() -> None:
    times_of, stamps = RisingTimestamps(), [1e300, *(number / 15 for number in range(30))]
    times = taken(times_of, stamps)
    assert rises(times)
    assert times.count(None) <= 5


def test_what_is_remembered_is_bounded() -> None:
    times_of = RisingTimestamps()
    times_of.take(1e300)
    for number in range(20_000):
        times_of.take(1e300 + 1e290 * number) if number else None
    assert len(times_of._stamps) <= 4096


def test_lost_frames_are_counted_and_told_of_once_a_second() -> None:
    said: list[tuple[str, int]] = []
    now = [0.0]
    unusable = UnusableFrames(lambda text, count: said.append((text, count)), lambda: now[0])
    unusable.add("it is torn")
    for _ in range(9):
        now[0] += 0.1
        unusable.add("it is late")
    now[0] = 1.0
    unusable.add("it is torn")
    assert unusable.count == 11
    assert said == [
        ("1 frame could not be used: it is torn", 1),
        ("10 frames could not be used: it is torn", 11),
    ]
