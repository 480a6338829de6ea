"""What aligned recovery may align to, and the long still, against loops over single tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation_fixtures import make_bench, plan_fixture  # noqa: F401
from torch import Tensor

from stillframe.attention.cache import CacheShape
from stillframe.controls import Controls
from stillframe.controls.refresh import Refresh
from stillframe.detection.latents import patch_distance
from stillframe.evaluation.alignments import ALIGNMENTS, AlignedToNewest
from stillframe.evaluation.experiments import find_experiment
from stillframe.evaluation.experiments.recovery import LONG_RUNS, relaxed_share, rms
from stillframe.evaluation.latents import encode
from stillframe.evaluation.layers import LayerProbe
from stillframe.evaluation.runs import Plan
from stillframe.evaluation.static_scene import (
    block_errors,
    encoded_scene,
    run_latents,
    scene_frames,
)
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.recovery import RecoverySetup, recoveries
from stillframe.tokens.grid import Grid, plan_tokens
from stillframe.tokens.source import SourceBlock

S, N, P, TOLERANCE = 3, 4, 8, 0.3


def setup() -> RecoverySetup:
    shape = CacheShape(1, 1, Grid(S, 2, 2), 1, 4, 0, 6)
    cpu = torch.device("cpu")
    return RecoverySetup(shape, 1, cpu, torch.float32, TOLERANCE, 0.0, torch.float32)


def provider_slowly(name: str, now: Tensor, origin: Tensor, computed: Tensor, t: int) -> int:
    """One token: its patch now (P,), the store's (S, P), when its entries were computed (S,)."""
    distance = [float(patch_distance(now, origin[j], 0.0)) for j in range(S)]
    matching = [j for j in range(S) if distance[j] < TOLERANCE]
    closest = min(range(S), key=lambda j: distance[j])
    if name == "closest source" or not matching:
        return closest
    if name == "last frame":
        return matching[-1]
    if name == "newest entry":
        return max(matching, key=lambda j: int(computed[j]))
    return t if t in matching else matching[-1]


@pytest.mark.parametrize("name", list(ALIGNMENTS))
def test_choices_are_those_of_a_loop_over_tokens(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    recovery = ALIGNMENTS[name](setup())
    base = torch.randn(1, 1, N, P, generator=generator)
    origin, computed = torch.zeros(S, N, P), torch.zeros(S, N, dtype=torch.int64)
    moved = 0
    for block in range(8):
        jumps = (torch.rand(1, S, N, 1, generator=generator) < 0.5) * 0.5
        tokens = base + jumps * torch.randn(1, S, N, P, generator=generator)
        keep = torch.rand(1, S, N, generator=generator) < 0.4
        if block == 0:
            keep[:] = True
        plan = plan_tokens(keep)
        recovery.observe(SourceBlock(tokens, tokens[:, 0], tokens[:, 0], Grid(S, 2, 2)), plan)
        before, ages = origin.clone(), computed.clone()
        for t in range(S):
            for p in range(N):
                if block == 0 or keep[0, t, p]:
                    origin[t, p], computed[t, p] = tokens[0, t, p], block * S + t
                    continue
                chosen = provider_slowly(name, tokens[0, t, p], before[:, p], ages[:, p], t)
                assert recovery.provider is not None
                assert int(recovery.provider[0, t, p]) == chosen
                origin[t, p], computed[t, p] = before[chosen, p], ages[chosen, p]
                moved += chosen != t
    assert moved > 0
    if isinstance(recovery, AlignedToNewest):
        assert recovery.computed is not None
        assert torch.equal(recovery.computed[0], computed)


@pytest.fixture(name="probe", scope="module")
def probe_fixture(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> LayerProbe:
    bench = make_bench(plan, tmp_path_factory.mktemp("alignments"))
    latents = encode(plan.pipe, bench.matrix.source("one").frames)
    settings = plan.pipe.settings(sigmas=(0.8, 0.4), conditioning="sdedit")
    return LayerProbe(plan.pipe, latents.blocks, bench.matrix.embeds("sepia"), settings)


def test_the_first_choice_is_what_aligned_does(probe: LayerProbe) -> None:
    method = InterFramePruning(recovery="aligned", detector="latent")
    usual = probe.run(method)
    assert usual.pruned
    runs = {name: probe.run(method, kind=kind) for name, kind in ALIGNMENTS.items()}
    first, *others = runs.values()
    assert all(torch.equal(a, b) for a, b in zip(first.latents, usual.latents, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.calls, usual.calls, strict=True))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other.keep, usual.keep, strict=True))
    # other frames' entries, and means of two, are other numbers
    assert not torch.equal(runs["last frame"].calls[-1], first.calls[-1])
    assert not torch.equal(runs["mean of two"].calls[-1], first.calls[-1])
    assert set(ALIGNMENTS.values()) & set(recoveries().values()) == {recoveries()["aligned"]}


def test_with_nothing_pruned_all_are_the_dense_run(probe: LayerProbe) -> None:
    dense = probe.run(find_method("full")())
    for kind in ALIGNMENTS.values():
        run = probe.run(InterFramePruning(tau1=0.0), kind=kind)
        assert rms(run.latents, dense.latents) < 1e-5


def clip(frames: int = 5) -> Any:
    return np.random.default_rng(1).integers(40, 200, (frames, 64, 128, 3), dtype=np.uint8)


def test_a_static_scene_moves_in_its_corner_and_nowhere_else() -> None:
    source = clip()
    made = scene_frames(source, 12, 16).astype(float)
    assert made.shape == (12, 32, 64, 3)
    half = source.reshape(5, 32, 2, 64, 2, 3).mean((2, 4))
    for t, shown in enumerate([0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]):
        expected = half[0].copy()
        expected[:16, :32] = half[shown, :16, :32]
        assert np.abs(made[t] - expected).max() < 12  # six deviations of the noise
        assert 1.5 < (made[t] - expected).std() < 2.5
    assert not np.array_equal(made[0], made[8])  # the noise is new in every frame
    assert np.array_equal(made, scene_frames(source, 12, 16))
    with pytest.raises(ValueError, match="takes 2 frames of 128 pixels a side, got 5 of 128x64"):
        scene_frames(source, 12, 64)


def test_errors_are_told_apart_by_place() -> None:
    dense = [torch.zeros(1, 2, 3, 4, 6)]
    other = [dense[0].clone()]
    other[0][..., :2, :3] = 2.0
    assert block_errors(other, dense) == [(2.0, 0.0)]
    other[0][..., 3, 5] += 3.0
    moving, still = block_errors(other, dense)[0]
    # all frames and channels of one of 18 places
    assert moving == 2.0
    assert still == pytest.approx((9 / 18) ** 0.5)


def test_a_refresh_recomputes_what_stands_still(plan: Plan, tmp_path: Path) -> None:
    bench = make_bench(plan, tmp_path)
    source = encoded_scene(plan.pipe, clip(24), 6)
    assert len(source) == 6
    settings = plan.pipe.settings(sigmas=(0.8,), conditioning="sdedit")
    embeds = bench.matrix.embeds("sepia")
    method = InterFramePruning(tau1=9.0, tau2=9.0)
    dense = run_latents(plan.pipe, source, embeds, settings, find_method("full")())
    held = run_latents(plan.pipe, source, embeds, settings, method)
    renewed = run_latents(plan.pipe, source, embeds, settings, method, Controls(Refresh(1)))
    # thresholds that nothing passes: the first block's last frame, for ever
    assert all(torch.equal(block[:, :, 2], held[0][:, :, 2]) for block in held)
    assert block_errors(held, dense)[0] == (0.0, 0.0)
    assert block_errors(held, dense)[-1].still > 0
    assert max(e.still for e in block_errors(renewed, dense)) < 1e-5


def test_shares_at_equal_error_are_interpolated() -> None:
    def record(name: str, scale: float, pruned: float, latent: float) -> dict[str, Any]:
        return {"name": name, "scale": scale, "pruned": pruned, "latent": latent}

    records = [record("clean", 1.0, 0.3, 0.6), record("clean", 2.0, 0.5, 1.0)]
    records += [record("aligned", 1.0, 0.3, 0.4), record("aligned", 2.0, 0.5, 0.8)]
    assert relaxed_share(records, "clean") == pytest.approx(0.3)
    assert relaxed_share(records, "aligned") == pytest.approx(0.4)
    assert relaxed_share([*records, record("none", 1.0, 0.3, 1.2)], "none") == pytest.approx(0.15)
    assert relaxed_share([*records, record("none", 1.0, 0.3, 0.1)], "none") == pytest.approx(0.3)


def test_the_experiment_says_what_it_measured(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = find_experiment("recovery")
    monkeypatch.setattr(kind, "blocks", 10)
    found = kind().run(make_bench(plan, tmp_path))
    rows = [[row[0] for row in table.rows] for table in found.tables]
    assert rows[0][:-1] == list(ALIGNMENTS)
    assert rows[1] == [name for name in ("none", "clean", "aligned") for _ in range(4)]
    assert rows[2][1:] == list(LONG_RUNS)
    assert "late error over early error" in " ".join(found.words)
    long = [r for r in found.rows if r["part"] == "long"]
    assert len(long) == 10 * (len(LONG_RUNS) + 1)
    first = [r for r in long if r["block"] == 0 and "another" not in r["name"]]
    assert {(r["moving"], r["still"]) for r in first} == {(0.0, 0.0)}
