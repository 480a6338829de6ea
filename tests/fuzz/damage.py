"""Good files made bad, reproducibly: every case follows from its name and number."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stillframe.errors import StillframeError

__all__ = ["damaged", "generator", "held", "refused"]

Rng = np.random.Generator
# what counts, lengths and offsets of formats break at
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def generator(name: str, number: int) -> Rng:
    """The source of chance of one case."""
    digest = hashlib.sha256(f"{name} {number}".encode()).digest()
    return np.random.default_rng(list(digest))


def damaged(data: bytes, other: bytes, rng: Rng) -> bytes:
    """A file damaged in one to three ways; `other` is one to borrow from."""
    for _ in range(int(rng.integers(1, 4))):
        data = _KINDS[int(rng.integers(len(_KINDS)))](data, other, rng)
    return data


def _place(data: bytes, rng: Rng) -> int:
    """Somewhere; every other time near the start, where headers are."""
    most = len(data) if rng.random() < 0.5 else min(len(data), 600)
    return int(rng.integers(max(1, most)))


def _flip(data: bytes, other: bytes, rng: Rng) -> bytes:
    new = bytearray(data)
    for _ in range(int(rng.integers(1, 20))):
        if new:
            new[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(new)


def _number(data: bytes, other: bytes, rng: Rng) -> bytes:
    size = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(_EDGES)) % 256**size
    at = _place(data, rng)
    order = "big" if rng.random() < 0.5 else "little"
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _cut(data: bytes, other: bytes, rng: Rng) -> bytes:
    return data[: _place(data, rng)]


def _drop(data: bytes, other: bytes, rng: Rng) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 400)) :]


def _repeat(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _place(data, rng), int(rng.integers(1, 400))
    return data[:at] + data[at : at + size] * int(rng.integers(2, 6)) + data[at + size :]


def _swap(data: bytes, other: bytes, rng: Rng) -> bytes:
    a, b = sorted((_place(data, rng), _place(data, rng)))
    size = min(int(rng.integers(1, 400)), b - a)
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def _noise(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _place(data, rng), int(rng.integers(1, 200))
    return data[:at] + rng.bytes(size) + data[at + size :]


def _splice(data: bytes, other: bytes, rng: Rng) -> bytes:
    return data[: _place(data, rng)] + other[_place(other, rng) :]


_KINDS = (_flip, _number, _number, _cut, _drop, _repeat, _swap, _noise, _splice)


@contextmanager
def held(name: str, folder: Path, seconds: float, kilobytes: int = 600_000) -> Iterator[None]:
    """One case: its time and memory are bounded, and a failure says its name.

    Whatever was written beside what was there before must be whole: nothing unfinished stays.
    """
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except BaseException as error:
        raise AssertionError(f"case {name!r}: {type(error).__name__}: {error}") from error
    assert time.monotonic() - started < seconds, f"case {name!r} took too long"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < kilobytes, f"case {name!r} took {grown} kB"
    unfinished = [path.name for path in folder.iterdir() if ".part" in path.name]
    assert not unfinished, f"case {name!r} left {unfinished}"


def refused(error: Exception) -> bool:
    """Whether an error is one that a user is told in a sentence; else it is a finding."""
    message = str(error)
    assert isinstance(error, StillframeError | ValueError), repr(error)
    assert message
    assert "\n" not in message, message
    assert "object at 0x" not in message, message
    assert "Traceback" not in message, message
    return True
