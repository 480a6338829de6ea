"""Methods and recoveries as plug-ins: one class each, and no second file opened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest
import torch
from tests import tiny
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.detection.latents import keep_most
from stillframe.methods import Method, Selector, as_method, find_method, methods
from stillframe.methods import base as method_registry
from stillframe.methods.prune import MOTIONS, InterFramePruning
from stillframe.recovery import Recovery, find_recovery, recoveries
from stillframe.recovery import base as recovery_registry
from stillframe.tokens.grid import Grid, Plan
from stillframe.tokens.source import SourceBlock


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
    pixels = torch.rand(batch, 16, 3, 32, 40)
    anchor = torch.rand(batch, 2, 3, 32, 40)
    return SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid, pixels, anchor)


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

        def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
            shape = cache.shape
            row = torch.zeros(1, shape.layers, shape.batch, 1, shape.heads, shape.head_dim)
            return Reuse(plan.rows, torch.zeros_like(plan.rows), Bank(row, row))

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
    merging = {"idm", "importance", "tome", "tomesd"}
    assert {"full", "prune", "plain", "noisy", "runlength", *merging} <= set(known)
    assert list(known) == sorted(known)
    assert len(set(known.values())) == len(known)
    for name, cls in known.items():
        assert cls.name == name
        assert find_method(name) is cls
        assert cls.summary
        assert cls.__doc__
        assert re.fullmatch(r"\d{4}\.\d{5}", cls.paper) or name == "full"
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
            pass

    assert find_method("prune") is InterFramePruning
    assert method_registry.register("prune")(InterFramePruning) is InterFramePruning


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'; known: full, idm, imp"):
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


def test_the_default_goes_by_pixels_and_thresholds_mean_the_papers_detector() -> None:
    method = InterFramePruning()
    assert (method.detector, method.tolerance, method.recovery) == ("pixels", 3.0, "aligned")
    assert method.tau1 is None
    assert method.holds
    papers = InterFramePruning(detector="latent")
    assert (papers.tau1, papers.tau2, papers.match) == (0.15, 0.30, (0.30, 0.0))
    assert not papers.holds
    assert InterFramePruning(tau1=0.15) == papers
    assert InterFramePruning(tau2=0.2).detector == "latent"
    assert replace(papers, recovery="clean").tau1 == 0.15
    assert method.prunes
    assert not find_method("full").prunes


def test_motion_is_followed_where_the_picture_that_was_shown_is() -> None:
    assert InterFramePruning().motion == "full"
    for still in (InterFramePruning(hold=False), InterFramePruning(detector="latent")):
        assert still.motion == "off"
        assert as_method(still, motion="off") == still
        for motion in ("global", "full"):
            with pytest.raises(ValueError, match=f"motion {motion!r} needs the detector 'pixels'"):
                as_method(still, motion=motion)
    moving = {name for name, each in methods().items() if each().motion != "off"}
    assert moving == {"prune", "plain", "noisy"}


def test_motion_follows_the_other_fields_until_it_is_given() -> None:
    usual = InterFramePruning()
    assert as_method(usual, detector="latent") == InterFramePruning(detector="latent")
    still = as_method(usual, hold=False)
    assert still == InterFramePruning(hold=False)
    assert as_method(still, hold=True) == usual
    # what was asked for stays
    for motion in MOTIONS:
        asked = InterFramePruning(motion=motion)
        assert as_method(asked, tolerance=5.0, hold=True).motion == motion
        assert as_method(f"prune:motion={motion}") == asked


@pytest.mark.parametrize("cls", methods().values())
def test_every_selector_is_a_streams_own(cls: Any) -> None:
    method, source = cls(), block()
    keep = method.selector()(source)
    assert keep.shape == (2, 3, 4, 5)
    assert keep.dtype == torch.bool
    moved = source._replace(
        tokens=source.tokens + torch.randn_like(source.tokens),
        pixels=torch.rand_like(torch.as_tensor(source.pixels)),
    )
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
        ({"tolerance": -1.0}, r"tolerance must be in \[0, 255\] grey levels, got -1.0"),
        ({"tolerance": float("nan")}, "got nan"),
        ({"tolerance": 256}, "got 256"),
        ({"detector": "magic"}, "detectors are pixels and latent, got 'magic'"),
        ({"detector": "pixels", "tau1": 0.1}, "thresholds of the detector 'latent'"),
        ({"tau2": 0.1, "tolerance": 2.0}, "limit of the detector 'pixels'"),
        ({"motion": "some"}, "motion is off, global or full, got 'some'"),
        ({"motion": "full", "hold": False}, "got 'pixels' and hold=False"),
        ({"motion": "global", "tau1": 0.1}, "got 'latent' and hold=True"),
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"rate": -0.1}, "got -0.1"),
        ({"rate": float("nan")}, "got nan"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InterFramePruning(**wrong)


def test_plain_and_noisy_are_pruning_with_another_recovery() -> None:
    for name, recovery in (("plain", "none"), ("noisy", "noisy")):
        method = find_method(name)()
        assert isinstance(method, InterFramePruning)
        assert method.recovery == recovery
        assert vars(method) == vars(InterFramePruning(recovery=recovery))


# a fixed share instead of thresholds

BY_RATE = ["noisy", "plain", "prune", "runlength"]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.32, 0.5, 0.99])
@pytest.mark.parametrize("name", BY_RATE)
def test_a_rate_keeps_exactly_its_share_of_every_block(name: str, rate: float) -> None:
    method: Any = find_method(name)
    select = method(rate=rate).selector()
    source = block()
    for _ in range(2):
        keep = select(source)
        assert keep.flatten(1).sum(1).tolist() == [round((1 - rate) * 60)] * 2
        source = block()
    still = source._replace(tokens=source.tokens[:, :1].expand(-1, 3, -1, -1))
    assert select(still).sum() == 2 * round((1 - rate) * 60)


def test_what_changed_more_is_not_pruned_before_what_changed_less() -> None:
    score = torch.randint(0, 9, (3, 2, 4, 5)).float()
    for rate in (0.1, 0.5, 0.9):
        keep = keep_most(score, rate)
        for row in range(3):
            assert score[row][keep[row]].min() >= score[row][~keep[row]].max()
            # of equals, the first ones
            tied = score[row].flatten() == score[row][keep[row]].min()
            kept_ties = keep[row].flatten()[tied].int()
            assert (kept_ties.diff() <= 0).all()


def test_a_ranking_is_by_both_distances_in_units_of_their_thresholds() -> None:
    """Short-term change grows to the right of the picture, the long-term one to the left."""
    grid = Grid(3, 12, 24)
    right = torch.arange(1, 25) * 0.01  # each frame
    tokens = (torch.arange(1, 4).view(-1, 1, 1) * right).expand(3, 12, 24)
    reference = -0.5 * torch.arange(24, 0, -1).expand(12, 24)

    def patches(x: Tensor) -> Tensor:
        return x.flatten(-2).unsqueeze(-1).expand(*x.shape[:-2], -1, 16).unsqueeze(0)

    previous = patches(torch.zeros(12, 24))
    source = SourceBlock(patches(tokens), previous, patches(reference), grid)

    def kept(tau1: float, tau2: float) -> Tensor:
        method = InterFramePruning(tau1=tau1, tau2=tau2, rate=0.75)
        return method.selector()(source)[0].int()

    assert torch.equal(kept(0.15, 1e6)[..., 18:], torch.ones(3, 12, 6, dtype=torch.int32))
    assert (kept(1e6, 0.3).diff() <= 0).all()
    both = kept(0.15, 8.0)
    assert both[..., 0].all()
    assert both[..., -1].all()
    assert ((both.diff() != 0).sum(-1) == 2).all()
    # no threshold at all is no division by zero
    assert kept(0.0, 0.0).sum() == 216


def test_a_ranking_does_not_look_ahead() -> None:
    """Of blocks: within one, a share is a share of all its frames."""
    for name in BY_RATE:
        method: Any = find_method(name)
        one, other = (method(rate=0.4).selector() for _ in range(2))
        same = [block() for _ in range(2)]
        masks = [[select(source) for source in same] for select in (one, other)]
        assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
        last = block()
        assert one(last).shape == other(last._replace(tokens=last.tokens + 1)).shape


@pytest.mark.parametrize("name", ["noisy", "plain", "prune", "runlength"])
def test_a_rate_is_kept_by_a_stream(name: str) -> None:
    pipe: Any = tiny.pipeline()
    method: Any = find_method(name)
    out = pipe(tiny.clip(37), "night", method=method(rate=0.25))
    assert [b.kept for b in out.blocks] == [72, 54, 54, 54]
    assert [int(b.keep.sum()) for b in out.blocks] == [72, 54, 54, 54]
