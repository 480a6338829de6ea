"""Methods and recoveries as plug-ins: one class each, and no second file opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import pytest
import torch
from tests import tiny
from torch import Tensor

from stillframe.attention import BlockAttention
from stillframe.change import SourceBlock
from stillframe.grid import Grid
from stillframe.methods import Method, Selector, find_method, methods
from stillframe.methods import base as method_registry
from stillframe.methods.prune import InterFramePruning
from stillframe.recovery import Recovery, find_recovery, recoveries
from stillframe.recovery import base as recovery_registry


@pytest.fixture(autouse=True)
def _clean_registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    registries: list[Any] = [method_registry._REGISTRY._kinds, recovery_registry._REGISTRY._kinds]
    before = [dict(registry) for registry in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


def block(batch: int = 2) -> SourceBlock:
    grid = Grid(3, 4, 5)
    tokens = torch.randn(batch, 3, grid.frame_tokens, 16)
    return SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid)


def test_a_throw_away_method_and_recovery_run_through_the_pipeline() -> None:
    """The proof of the recipe in CONTRIBUTING.md: everything that is needed stands in this test."""

    @method_registry.register("checkerboard")
    @dataclass(frozen=True)
    class Checkerboard(Method):
        """Every other token, the other half at the next frame."""

        summary = "every other token"
        phase: int = 0

        def selector(self) -> Selector:
            def select(source: SourceBlock) -> Tensor:
                grid = source.grid
                s, h, w = map(torch.arange, (grid.frames, grid.height, grid.width))
                board = (s.view(-1, 1, 1) + h.view(-1, 1) + w + self.phase) % 2 == 0
                return board.expand(len(source.tokens), -1, -1, -1)

            return select

    @recovery_registry.register("silence")
    class Silence(Recovery):
        """Zero keys and values."""

        summary = "zeros"

        def place(
            self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
        ) -> None:
            empty = block.scattered(key).zero_()
            block.write(layer, None, empty, empty)
            block.write_own(layer, key, value)

    assert methods()["checkerboard"] is Checkerboard
    assert recoveries()["silence"] is Silence
    pipe: Any = tiny.pipeline()
    video = tiny.clip(37, batch=2)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    out = pipe(video, "night", method="checkerboard", generator=generators)
    assert [b.kept_share for b in out.blocks] == [1.0, 0.5, 0.5, 0.5]
    board = out.blocks[1].keep
    assert torch.equal(board[:, :, :, 1:], ~board[:, :, :, :-1])
    assert torch.equal(board[:, 1:], ~board[:, :-1])
    other = pipe(
        video, "night", method=Checkerboard(recovery="silence", phase=1), generator=generators
    )
    assert torch.equal(other.blocks[1].keep, ~board)
    assert other.frames.shape == out.frames.shape == (2, 37, 64, 96, 3)


def test_names_are_unique_and_known() -> None:
    known = methods()
    assert {"full", "prune"} <= set(known)
    assert list(known) == sorted(known)
    assert len(set(known.values())) == len(known)
    for name, cls in known.items():
        assert cls.name == name
        assert find_method(name) is cls
        assert cls.summary
    known.clear()
    assert methods()


def test_a_name_cannot_be_taken_twice() -> None:
    with pytest.raises(ValueError, match="'prune' is already the name of InterFramePruning"):

        @method_registry.register("prune")
        @dataclass(frozen=True)
        class Other(Method):
            def selector(self) -> Selector:
                raise AssertionError

    with pytest.raises(ValueError, match="'clean' is already the name of CleanRecovery"):

        @recovery_registry.register("clean")
        class Another(Recovery):
            def place(self, *_: Any) -> None:
                raise AssertionError

    assert find_method("prune") is InterFramePruning
    assert method_registry.register("prune")(InterFramePruning) is InterFramePruning


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'; known: full, prune"):
        find_method("magic")
    with pytest.raises(ValueError, match="unknown recovery 'magic'; known: aligned, clean"):
        find_recovery("magic")


@pytest.mark.parametrize("cls", methods().values())
def test_methods_are_values(cls: Any) -> None:
    one, same = cls(), cls()
    assert one == same
    assert hash(one) == hash(same)
    assert one is not same
    for field in fields(cls):
        assert f"{field.name}={getattr(one, field.name)!r}" in repr(one)
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, None)
    assert cls(trim=0.1) != one


def test_the_defaults_are_the_papers_thresholds_and_our_recovery() -> None:
    method = InterFramePruning()
    assert (method.tau1, method.tau2, method.recovery) == (0.15, 0.30, "aligned")
    assert method.prunes
    assert not find_method("full").prunes


@pytest.mark.parametrize("cls", methods().values())
def test_every_selector_is_a_streams_own(cls: Any) -> None:
    method, source = cls(), block()
    keep = method.selector()(source)
    assert keep.shape == (2, 3, 4, 5)
    assert keep.dtype == torch.bool
    moved = source._replace(tokens=source.tokens + torch.randn_like(source.tokens))
    used = method.selector()
    used(moved)
    assert torch.equal(method.selector()(source), keep)


def test_full_keeps_everything() -> None:
    assert find_method("full")().selector()(block()).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tau1": -0.1}, "tau1 must not be negative, got -0.1"),
        ({"tau2": -1.0}, "tau2 must not be negative, got -1.0"),
        ({"tau1": float("nan")}, "tau1 must not be negative, got nan"),
        ({"tau2": float("nan")}, "tau2 must not be negative, got nan"),
        ({"trim": 0.5}, r"trim must be in \[0, 0.5\), got 0.5"),
        ({"trim": -0.01}, "got -0.01"),
        ({"recovery": "magic"}, "unknown recovery 'magic'"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InterFramePruning(**wrong)
