"""CUDA graphs: nothing comes between while one is captured."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from stillframe.kernels.graphs import uncollected


class Ended:
    """What only the garbage collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def eager() -> Iterator[None]:
    """A collector that runs at almost every object that is made."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


def survives() -> bool:
    """Whether garbage is there after many objects were made."""
    garbage = weakref.ref(Ended())
    made: list[list[int]] = [[] for _ in range(2000)]
    return garbage() is not None and len(made) == 2000


@pytest.mark.usefixtures("eager")
def test_garbage_stays_until_the_end_and_is_collected_afterwards() -> None:
    assert not survives()
    with uncollected():
        assert survives()
        with uncollected():
            assert survives()
        assert survives()
    assert not survives()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_who_collects_by_hand_goes_on_to_do_so() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
