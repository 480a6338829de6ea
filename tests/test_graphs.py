"""CUDA graphs: nothing comes between while one is captured."""

from __future__ import annotations

import gc
import weakref

import pytest

from stillframe.kernels.graphs import uncollected


class Ended:
    """What only the garbage collector can free."""

    def __init__(self) -> None:
        self.itself = self


def survives() -> bool:
    """Whether garbage is there after many objects were made."""
    gc.collect()  # so that none begins before the garbage is there
    garbage = weakref.ref(Ended())
    made: list[list[int]] = [[] for _ in range(5000)]
    return garbage() is not None and len(made) == 5000


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
