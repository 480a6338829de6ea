"""Experiments on a tiny clip, and what they compute against slow definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.evaluation_fixtures import listing, make_bench, plan_fixture  # noqa: F401

from stillframe.errors import InputError
from stillframe.evaluation.baselines import RECOVERIES, at_rates, by_recovery
from stillframe.evaluation.cells import Cell
from stillframe.evaluation.editing import worst_patches
from stillframe.evaluation.experiments import Bench, Scale, experiments, find_experiment
from stillframe.evaluation.experiments.correlation import changes
from stillframe.evaluation.experiments.curve import replaced
from stillframe.evaluation.experiments.latency import PrescribedShares
from stillframe.evaluation.experiments.layerwise import readings_of
from stillframe.evaluation.experiments.settle import Verdict, conclusion, judge
from stillframe.evaluation.findings import number, span
from stillframe.evaluation.latents import decode, encode
from stillframe.evaluation.layers import LayerProbe, PruneFrom, relative_error
from stillframe.evaluation.motion_cases import CASES
from stillframe.evaluation.runs import BUNDLED_SCALE, PUBLISHED_SCALE, Plan, scaled
from stillframe.evaluation.statistics import Interval
from stillframe.evaluation.variants import FULL, Variant
from stillframe.methods import find_method, methods
from stillframe.metrics import find_metric
from stillframe.recovery import recoveries
from stillframe.tokens.grid import patchify
from stillframe.tokens.restore import restore_slowly


@pytest.fixture(name="out", scope="module")
def out_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all experiments: they share cells."""
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("name", sorted(experiments()))
def test_every_experiment_runs_once_and_is_then_remembered(
    plan: Plan, out: Path, name: str
) -> None:
    kind = find_experiment(name)
    assert kind.summary
    assert kind.title
    assert kind.question.endswith("?") or "?" in kind.question
    found = kind().run(make_bench(plan, out))
    assert found.name == name
    assert found.headline.endswith(".")
    assert not [sentence for sentence in found.missing if "failed" in sentence]
    assert any(table.rows for table in found.tables)
    for table in found.tables:
        assert {len(row) for row in table.rows} <= {len(table.columns)}
    for group in found.videos:
        assert all((out / path).is_file() for _, path in group.videos)
    before = listing(out)
    again = kind().run(make_bench(plan, out))
    assert listing(out) == before
    assert again.headline == found.headline
    assert again.tables == found.tables


@pytest.mark.parametrize(
    "name", ["settle", "ablation", "quality", "layerwise", "throughput", "motion"]
)
def test_the_bundled_model_is_said_to_be_small(plan: Plan, out: Path, name: str) -> None:
    found = find_experiment(name)().run(make_bench(plan, out, bundled=True))
    words = " ".join([found.headline, *found.caveats])
    assert "undled model" in words or "carries over" in words


def test_baselines_are_there_or_said_to_be_missing() -> None:
    variants, missing = at_rates([0.1, 0.3])
    told = " ".join(missing)
    for name in ("prune", "plain", "noisy", "runlength", "tomesd", "tome", "importance", "idm"):
        there = [v for v in variants if v.method == name]
        assert bool(there) != (f"{name}:" in told)
        assert {dict(v.params)["rate"] for v in there} <= {0.1, 0.3}
    assert set(RECOVERIES) == set(recoveries())
    assert [v.build().recovery for v in by_recovery()] == list(RECOVERIES)
    assert "prune" in methods()


def test_scales_are_checked_and_changed() -> None:
    assert BUNDLED_SCALE.frames <= 36
    assert scaled(BUNDLED_SCALE, frames=12, height=None).frames == 12
    assert scaled(PUBLISHED_SCALE) == PUBLISHED_SCALE
    for given, said in (
        ({"seeds": 1}, "2 or more seeds, got 3 and 1"),
        ({"prompts": ()}, "1 or more prompts"),
        ({"rates": (0.1, 1.0)}, "between 0 and 1"),
        ({"frames": 0}, "got 0, 2 and 3"),
    ):
        with pytest.raises(ValueError, match=said):
            scaled(BUNDLED_SCALE, **given)
    assert isinstance(BUNDLED_SCALE, Scale)


def test_prompts_go_round_and_do_not_depend_on_who_asks(plan: Plan, out: Path) -> None:
    bench = make_bench(plan, out)
    assert [bench.prompt(clip) for clip in plan.clips] == ["oil painting", "sepia"]
    assert bench.larger(1) == bench.larger() == plan.clips[:1]
    assert [cell.prompt for cell in bench.cells(by_recovery(), plan.clips[1:])] == ["sepia"] * 4
    assert bench.conditionings() == ("sdedit", "source")


# latents


def test_latents_are_those_of_a_stream(plan: Plan, out: Path) -> None:
    bench = make_bench(plan, out)
    frames = bench.matrix.source("one").frames
    coded = encode(plan.pipe, frames)
    assert [block.shape for block in coded.blocks] == [(1, tiny.CHANNELS, 3, 6, 16)] * 3
    assert (coded.timeline.pad, coded.timeline.temporal) == (0, 4)
    assert torch.equal(coded.whole[:, :, 3:6], coded.blocks[1])
    again = decode(plan.pipe, coded.whole, frames)
    assert again.shape == (36, 3, 48, 128)
    assert float(again.min()) >= 0
    assert float(again.max()) <= 1
    with pytest.raises(InputError, match="11 frames are too few: a block takes 12"):
        encode(plan.pipe, frames[:11])


def test_wans_autoencoder_has_a_shorter_first_latent_frame() -> None:
    pipe = tiny.pipeline(wan=True)
    frames = np.random.default_rng(0).integers(0, 255, (21, 32, 32, 3), dtype=np.uint8)
    coded = encode(pipe, frames)
    assert (coded.timeline.pad, coded.timeline.temporal, coded.whole.shape[2]) == (3, 4, 6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_replacing_follows_time_and_takes_what_changed_least(share: float) -> None:
    latents = torch.randn(1, 4, 5, 4, 6)
    found = replaced(latents, share, 2)
    tokens, changed = patchify(latents, 2), patchify(found, 2)
    by_frame = tokens.unflatten(1, (5, 6))
    distance = (by_frame[0, 1:] - by_frame[0, :-1]).abs().mean(-1)
    count = min(round(share * 30), 24)
    least = sorted(
        ((float(distance[t, p]), t, p) for t in range(4) for p in range(6)), key=lambda x: x[0]
    )
    keep = torch.ones(1, 5, 6, dtype=torch.bool)
    for _, t, p in least[:count]:
        keep[0, t + 1, p] = False
    assert torch.equal(changed, restore_slowly(tokens, by_frame[:, 0], keep))
    assert torch.equal(found[:, :, 0], latents[:, :, 0])
    if not share:
        assert torch.equal(found, latents)


def test_changes_are_means_over_patches_of_eight_latents() -> None:
    latents, pixels = torch.randn(3, 5, 4, 6), torch.rand(20, 3, 16, 24)
    found = changes(latents, pixels, spatial=4, temporal=4)
    assert found.shape == (2, 1 * 2 * 3)
    expected = []
    for y in range(2):
        for x in range(3):
            patch = latents[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            a, b = patch[:, 0:2], patch[:, 2:4]
            cut = pixels[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            c, d = cut[0:8], cut[8:16]
            expected.append([float((b - a).abs().mean()), float((d - c).abs().mean())])
    assert np.allclose(found.T, expected, atol=1e-6)
    with pytest.raises(ValueError, match="3 latent frames are too few"):
        changes(latents[:, :3], pixels, spatial=4, temporal=4)


# motion


def test_motion_is_told_of_every_clip_and_style(plan: Plan, out: Path) -> None:
    bench = make_bench(plan, out)
    found = find_experiment("motion")().run(bench)
    rows = {(r["prompt"], r["motion"]): r for r in found.rows if r["clip"] not in CASES}
    assert list(rows) == [(p, m) for p in bench.scale.styles for m in ("off", "global", "full")]
    for (prompt, motion), row in rows.items():
        assert row["clip"] == "one"
        assert not row["moved"] or motion != "off"
        assert 0 < row["computed"] <= 1 - row["moved"] + 1e-9
        assert row["ratio"] == row["worst_p99"] / max(row["seed_p99"], 0.5)
        assert row["stale_p99"] <= row["stale_max"] <= 3.75
        # one style is timed: tokens take the same time in any
        assert math.isnan(row["speedup"]) == (prompt != bench.scale.styles[0])
        given = Cell(Variant.of("prune", motion=motion), "one", prompt)
        assert row["computed"] == bench.matrix.run([given])[0].kept_share
    # what another seed differs by is that of the prompt, whatever the motion
    assert len({(r["prompt"], r["seed_p99"], r["seed_p99.9"]) for r in rows.values()}) == 2


def test_less_of_built_motion_is_computed(plan: Plan, out: Path) -> None:
    found = find_experiment("motion")().run(make_bench(plan, out))
    rows = {row["clip"]: row for row in found.rows if row["clip"] in CASES}
    assert list(rows) == list(CASES)
    table = next(table for table in found.tables if table.columns[0] == "motion")
    assert [line[0] for line in table.rows] == list(CASES)
    for name, row in rows.items():
        assert 0 < row["computed"] <= 1 - row["moved"] + 1e-9
        assert not row["stale_max"] > 3.75  # nan where nothing was reused
        if name in ("pan 1", "pan 0.5"):
            # the first of three blocks is whole
            assert row["computed"] < 0.9
            assert row["moved"] > 0.1
    # what moves by less than a latent pixel in a block has moved, too
    assert rows["pan 0.1"]["moved"] > 0


def test_worst_patches_leave_the_first_block_out(plan: Plan) -> None:
    random = np.random.default_rng(0)
    a, b, c = random.integers(0, 255, (3, 15, 32, 48, 3), dtype=np.uint8)
    b[:12] = 255 - a[:12]
    c[12:] = a[12:]
    c[13, 5, 7] ^= 128
    apart = [
        np.sqrt(np.mean((x[y : y + 16, z : z + 16].astype(float) - w[y : y + 16, z : z + 16]) ** 2))
        for other in (b, c)
        for x, w in zip(a[12:], other[12:], strict=True)
        for y in (0, 16)
        for z in (0, 16, 32)
    ]
    told = worst_patches([(a, b), (a, c)], plan.pipe)
    assert told["max"] == pytest.approx(max(apart))
    # half of them are equal: those of the second pair, but for one
    assert 0 <= told["p50"] - sorted(apart)[17] <= 0.05 + 1e-9
    assert worst_patches([(a[:12], b[:12])], plan.pipe) == {}


# layers


@pytest.fixture(name="probe")
def probe_fixture(plan: Plan, out: Path) -> LayerProbe:
    bench = make_bench(plan, out)
    latents = encode(plan.pipe, bench.matrix.source("one").frames)
    settings = plan.pipe.settings(sigmas=(0.8, 0.4), conditioning="sdedit")
    return LayerProbe(plan.pipe, latents.blocks, bench.matrix.embeds("sepia"), settings)


def test_relative_errors_are_ratios_of_norms() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert relative_error(a, b) == pytest.approx(5 / 4)
    assert relative_error(b, b) == 0
    assert relative_error(a * 0, b * 0) == 0


def test_a_probe_hears_every_pass_and_layer_and_leaves_no_hook(probe: LayerProbe) -> None:
    dense = probe.run(find_method("full")())
    layers = tiny.transformer().config.num_layers
    assert len(dense.calls) == 3 * layers  # two passes and the context pass
    assert {call.shape for call in dense.calls} == {(1, 72, tiny.HEADS * tiny.HEAD_DIM)}
    assert dense.pruned == {}
    hooks = [len(b.attn1._forward_hooks) for b in probe._pipe.transformer.blocks]
    assert hooks == [0] * layers
    nothing = torch.zeros(72, dtype=torch.bool)
    again = probe.run(find_method("full")())
    assert {reading.error for reading in probe.compare(again, dense, nothing)} == {0.0}
    steps = [(r.step, r.layer) for r in probe.compare(again, dense, nothing)]
    assert steps == [(step, layer) for step in range(3) for layer in range(layers)]


def test_only_redrawn_tokens_get_other_noise(probe: LayerProbe) -> None:
    dense = probe.run(find_method("full")())
    some = torch.zeros(72, dtype=torch.bool)
    assert probe.run(find_method("full")(), {2: some}).calls[0].equal(dense.calls[0])
    some[:7] = True
    other = probe.run(find_method("full")(), {2: some})
    errors = [r.error for r in probe.compare(other, dense, some)]
    assert all(error > 0 for error in errors)
    # noise of an earlier block reaches this one through the cache alone
    earlier = probe.run(find_method("full")(), {1: some})
    assert 0 < probe.compare(earlier, dense, some * False)[0].error < errors[0]


def test_readings_start_from_the_same_mask(probe: LayerProbe) -> None:
    dense = probe.run(find_method("full")())
    settings = probe._settings
    for history, first in (("own", 1), ("dense", 2)):
        runs = [probe.run(PruneFrom(recovery=r, first=first)) for r in RECOVERIES]
        assert all(run.pruned.keys() == runs[0].pruned.keys() for run in runs)
        assert min(runs[0].pruned) >= first
        records = readings_of(probe, settings, dense, history)
        assert len(records) == 5 * 3 * probe.layers
        assert {r["sigma"] for r in records} == {0.8, 0.4, 0.0}
        assert all(0 < r["error"] < 5 for r in records)
        by_name: dict[str, list[float]] = {}
        for record in records:
            by_name.setdefault(record["stands_in"], []).append(record["error"])
        # noisy is clean where a place is pruned in the whole block, as it may be everywhere here
        by_name.pop("noisy")
        assert len({tuple(errors) for errors in by_name.values()}) == 4
    with pytest.raises(ValueError, match="a stream of 1 block"):
        LayerProbe(probe._pipe, probe._blocks[:1], torch.zeros(1, 8, 16), settings)


# latency


def test_prescribed_shares_are_kept(plan: Plan, out: Path) -> None:
    bench = make_bench(plan, out)
    blocks = encode(plan.pipe, bench.matrix.source("one").frames).blocks
    kept: list[float] = []
    stream = plan.pipe.stream(
        prompt_embeds=bench.matrix.embeds("sepia"),
        method=PrescribedShares(shares=(0.5, 0.25)),
        on_block=lambda stats: kept.append(stats.kept_share),
    )
    for index in range(4):
        stream.edit_block(blocks[index % 3])
    assert kept == [1.0, 0.5, 0.25, 0.25]
    assert "prescribed" not in methods()


# settle


@pytest.mark.parametrize(
    ("ends", "margin", "word"),
    [
        ((-3.0, -1.5), 1.0, "below"),
        ((-3.0, -0.5), 1.0, "undecided"),
        ((-0.5, 0.2), 1.0, "not below"),
        ((-0.5, 0.2), 0.0, "undecided"),
        ((0.1, 0.2), 0.0, "not below"),
        ((-0.2, -0.1), 0.0, "below"),
        ((math.nan, math.nan), 1.0, "undecided"),
        ((0.1, 0.2), math.nan, "undecided"),
    ],
)
def test_verdicts_follow_the_interval(ends: tuple[float, float], margin: float, word: str) -> None:
    assert judge(Interval(sum(ends) / 2, *ends, 5), margin) == word
    assert judge(Interval(sum(ends) / 2, *ends, 4), margin) == "undecided"


def verdicts(none: str, clean: str, aligned: str) -> list[Verdict]:
    gap = Interval(0.0, -1.0, 1.0, 3)
    words = {"none": none, "clean": clean, "aligned": aligned}
    return [Verdict("flicker", name, gap, 0.5, word) for name, word in words.items()]


def test_the_conclusion_is_what_the_verdicts_say() -> None:
    settled = verdicts("below", "below", "not below")
    assert conclusion(settled, bundled=False) == (
        "Pruning alone falls below dense in flicker where recovery does not."
    )
    assert "not shown to do better" in conclusion(verdicts("below", "undecided", "below"), False)
    assert "is not shown to fall below" in conclusion(
        verdicts("not below", "below", "below"), False
    )
    for given in (settled, verdicts("below", "below", "below"), verdicts(*["undecided"] * 3)):
        assert conclusion(given, bundled=True).startswith("The bundled model cannot settle it.")


def test_better_is_up_in_every_gap(plan: Plan, out: Path) -> None:
    """Gaps of the settling test are turned so that more is better, whatever the metric's way."""
    bench: Bench = make_bench(plan, out)
    found: Any = find_experiment("settle")().run(bench)
    rows = {row.cell: row for row in bench.matrix.rows}
    gaps = {(r["metric"], r["recovery"]): r["gap"] for r in found.rows}
    names = {v.recovery: v for v in by_recovery(("none", "clean", "aligned"))}
    for recovery, variant in names.items():
        flickers = []
        for clip in plan.clips:
            own, dense = bench.cells([variant, FULL], [clip], conditioning="sdedit")
            flickers.append(rows[dense].metrics["flicker"] - rows[own].metrics["flicker"])
        assert gaps["flicker", recovery] == pytest.approx(np.mean(flickers))
    assert not find_metric("flicker").higher_is_better


def test_numbers_are_written_for_people() -> None:
    assert number(-0.001) == "0.00"
    assert [number(x, 1) for x in (1.25, -0.5, math.nan, math.inf, None)] == [
        "1.2",
        "−0.5",
        "—",
        "∞",
        "—",
    ]
    assert span(Interval(1.0, 0.5, 1.5, 4)) == "1.00 [0.50, 1.50]"
    assert span(Interval(1.0, math.nan, math.nan, 1)) == "1.00"
