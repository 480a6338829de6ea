"""Changing a stream's method and settings while it runs: what is kept, and what begins anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.test_engine import SIGMAS, calls, open_stream
from tests.tiny import clip
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.engine.stream import BlockStats, EditStream, StreamSettings
from stillframe.methods import Method, find_method
from stillframe.methods.prune import InterFramePruning

FULL = find_method("full")()


class Run:
    """A stream fed a block at a time."""

    def __init__(self, model: Any, vae: Any, method: Method, **settings: Any) -> None:
        self.blocks: list[BlockStats] = []
        self.video = clip(96)
        self.stream: EditStream = open_stream(
            model, open_autoencoder(vae, 3), method, on_block=self.blocks.append, **settings
        )

    def block(self) -> Tensor:
        start = 12 * len(self.blocks)
        out = self.stream.push(self.video[:, start : start + 12])
        assert out is not None
        return out

    def run(self, count: int) -> Tensor:
        return torch.cat([self.block() for _ in range(count)], 1)

    @property
    def recovery(self) -> Any:
        assert self.stream._state is not None
        return self.stream._state.recovery

    @property
    def shares(self) -> list[float]:
        return [block.kept_share for block in self.blocks]


def test_an_update_that_changes_nothing_does_nothing(transformer: Any, autoencoder: Any) -> None:
    left, updated = (Run(transformer, autoencoder, InterFramePruning()) for _ in range(2))
    left.run(2)
    updated.run(2)
    updated.stream.update()
    updated.stream.update(method=InterFramePruning(), settings=StreamSettings(SIGMAS))
    assert torch.equal(left.run(3), updated.run(3))


def test_thresholds_change_without_a_whole_block_and_keep_the_store(
    transformer: Any, autoencoder: Any
) -> None:
    run = Run(transformer, autoencoder, InterFramePruning(detector="latent"))
    run.run(3)
    store = run.recovery
    assert run.recovery.setup.tolerance == 0.3
    run.stream.update(method=InterFramePruning(tau1=0.2, tau2=0.5, trim=0.1))
    run.run(1)
    assert run.recovery is store
    assert (store.setup.tolerance, store.setup.trim) == (0.5, 0.1)
    assert run.shares[3] < 1
    # from now on the mask is that of the new thresholds
    run.stream.update(method=InterFramePruning(tau1=0.0))
    run.run(1)
    run.stream.update(method=InterFramePruning(tau1=9.0, tau2=9.0))
    run.run(1)
    assert run.shares[4:] == [1, 0]


def test_from_a_whole_block_on_thresholds_are_as_if_they_had_always_been(
    transformer: Any, autoencoder: Any
) -> None:
    """Two streams that computed the same whole blocks differ in nothing but their filters' past."""
    late = Run(transformer, autoencoder, InterFramePruning(tau1=0.0))
    early = Run(transformer, autoencoder, InterFramePruning(tau1=0.0))
    late.run(3)
    early.run(1)
    # a method equal but for what it does not use while everything is kept
    early.stream.update(method=InterFramePruning(tau1=0.0, tau2=0.31))
    early.run(2)
    for run in (late, early):
        run.stream.update(method=InterFramePruning(detector="latent"))
    assert torch.equal(late.run(3), early.run(3))
    assert all(0 < share < 1 for share in late.shares[3:])


@pytest.mark.parametrize(
    ("method", "settings", "kept_store"),
    [
        (None, {"sigmas": (0.9, 0.4)}, True),
        (None, {"sigmas": (0.9, 0.5, 0.4)}, False),
        (None, {"conditioning": "source"}, True),
        (InterFramePruning(recovery="clean"), {}, False),
        (InterFramePruning(recovery="none"), {}, False),
        (InterFramePruning(recovery="noisy"), {"sigmas": (0.9,)}, False),
    ],
)
def test_what_cannot_go_on_begins_with_a_whole_block(
    source_transformer: Any,
    autoencoder: Any,
    method: Method | None,
    settings: dict[str, Any],
    kept_store: bool,
) -> None:
    run = Run(source_transformer, autoencoder, InterFramePruning())
    run.run(2)
    store, cache = run.recovery, run.stream._state.cache  # type: ignore[union-attr]
    run.stream.update(
        method=method,
        settings=StreamSettings(**{"sigmas": SIGMAS, **settings}) if settings else None,
    )
    run.run(3)
    assert run.shares[2] == 1
    assert all(share < 1 for share in run.shares[3:])
    assert (run.recovery is store) == kept_store
    assert run.stream._state.cache is cache  # type: ignore[union-attr]
    assert run.stream._state.attention.recovery is run.recovery  # type: ignore[union-attr]
    assert cache.frames == 15


def test_new_passes_are_those_that_run(transformer: Any, autoencoder: Any) -> None:
    run = Run(transformer, autoencoder, InterFramePruning())
    run.run(2)
    run.stream.update(settings=StreamSettings((0.9, 0.6, 0.3)))
    with calls(transformer.condition_embedder) as seen:
        run.run(1)
    assert [float(t) for t in seen] == pytest.approx([900, 600, 300, 0])


def test_to_full_and_back(transformer: Any, autoencoder: Any) -> None:
    """In between it is the plain causal model; the store that was given up is filled anew."""
    run, plain = (
        Run(transformer, autoencoder, InterFramePruning(tau1=0.0)),
        Run(transformer, autoencoder, FULL),
    )
    got = [run.run(2)]
    run.stream.update(method=FULL)
    got.append(run.run(2))
    assert run.stream.memory["recovery"] == 0
    run.stream.update(method=InterFramePruning())
    got.append(run.run(1))
    assert torch.equal(torch.cat(got, 1), plain.run(5))
    run.run(2)
    assert run.stream.memory["recovery"] > 0
    assert all(0 < share < 1 for share in run.shares[5:])


def test_holes_of_plain_pruning_are_forgotten_with_the_context(
    transformer: Any, autoencoder: Any
) -> None:
    """A recovery that takes every row for a token must not see rows that are none."""
    run = Run(transformer, autoencoder, InterFramePruning(recovery="none"))
    run.run(3)
    assert run.stream._state is not None
    assert run.stream._state.cache.holes
    run.stream.update(method=InterFramePruning(recovery="aligned"))
    run.run(3)
    cache = run.stream._state.cache
    assert not cache.holes
    assert cache.frames == 9, "the context began anew"
    assert run.shares[3] == 1
    assert max(run.shares[4:]) < 1
    # the other way there is nothing to forget
    run.stream.update(method=InterFramePruning(recovery="none"))
    run.run(1)
    assert run.stream._state.cache is cache


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"block_frames": 2}, "block_frames of a stream cannot change, from 3 to 2"),
        ({"window_frames": 9}, "window_frames of a stream cannot change, from 6 to 9"),
        ({"store": "fp8"}, "store of a stream cannot change, from auto to fp8"),
        ({"position_limit": 65}, "65 positions are too many"),
        ({"conditioning": "source"}, "no source channels"),
    ],
)
def test_an_update_that_cannot_be_is_refused_and_changes_nothing(
    transformer: Any, autoencoder: Any, wrong: dict[str, Any], said: str
) -> None:
    left, updated = (Run(transformer, autoencoder, InterFramePruning()) for _ in range(2))
    left.run(2)
    updated.run(2)
    with pytest.raises(ValueError, match=said):
        updated.stream.update(method=FULL, settings=StreamSettings(**{"sigmas": (0.3,), **wrong}))
    assert torch.equal(left.run(2), updated.run(2))


def test_before_the_first_block_an_update_is_another_choice(
    transformer: Any, autoencoder: Any
) -> None:
    """A whole first block, not a whole second one."""
    updated = Run(transformer, autoencoder, FULL)
    updated.stream.update(method=InterFramePruning(), settings=StreamSettings((0.7,)))
    chosen = Run(transformer, autoencoder, InterFramePruning(), sigmas=(0.7,))
    assert torch.equal(updated.run(4), chosen.run(4))
    assert updated.shares == chosen.shares
