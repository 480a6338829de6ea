"""Clips, variants, cells and the matrix: what is run, what is kept, and going on after a crash."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.edit_fixtures import busy_frames, model_folder_fixture  # noqa: F401
from tests.evaluation_fixtures import (
    QUICK,
    clean_methods_fixture,  # noqa: F401
    listing,
    make_matrix,
    plan_fixture,  # noqa: F401
    write_picture,
)
from tests.video_samples import LOSSLESS, gradient, make_video, noise
from torch import Tensor
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import InputError
from stillframe.evaluation.cells import Cell, Conditions, Row, RowStore, identity
from stillframe.evaluation.matrix import Matrix, Progress, fingerprint, pick_metrics
from stillframe.evaluation.runs import Plan
from stillframe.evaluation.sources import Clip, find_clips, spread
from stillframe.evaluation.tables import write_table
from stillframe.evaluation.variants import FULL, Variant, at_rate, expand, missing_methods
from stillframe.jobs.edit import edit_file
from stillframe.jobs.report import DENOISING_STAGES
from stillframe.methods import Method, Selector, methods
from stillframe.methods import base as method_registry
from stillframe.metrics import metrics
from stillframe.tokens.source import SourceBlock

# clips


def test_davis_is_read_as_it_is_distributed(tmp_path: Path) -> None:
    pictures, lists = tmp_path / "JPEGImages" / "480p", tmp_path / "ImageSets" / "2017"
    for clip in ("swan", "camel", "train-only"):
        for index in range(3):
            write_picture(pictures / clip / f"{index:05d}.jpg", gradient(index + len(clip)))
    found = find_clips([tmp_path])
    assert [clip.name for clip in found] == ["camel", "swan", "train-only"]
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("swan\ncamel\n")
    found = find_clips([tmp_path])
    assert [clip.name for clip in found] == ["swan", "camel"]
    assert found[0].fps == 24
    for index, pixels in enumerate(found[0].frames()):
        expected = gradient(index + len("swan")).astype(int)
        assert pixels.dtype == np.uint8
        assert np.abs(pixels - expected).mean() < 3  # JPEG
    assert index == 2
    (lists / "val.txt").write_text("swan\ngoat\n")
    with pytest.raises(InputError, match="names goat, which is not in"):
        find_clips([tmp_path])


def test_pictures_of_any_name_are_frames_in_order(tmp_path: Path) -> None:
    # FFmpeg would take these for patterns
    for index, name in enumerate(("a%02d.png", "b[1].png", "c.png")):
        write_picture(tmp_path / "still life" / name, noise(index))
    (tmp_path / "still life" / "notes.txt").touch()
    (clip,) = find_clips([tmp_path / "still life"])
    assert clip.name == "still life"
    assert [np.array_equal(p, noise(i)) for i, p in enumerate(clip.frames())] == [True] * 3
    write_picture(tmp_path / "still life" / "d.png", noise(0, 80, 48))
    with pytest.raises(InputError, match="is 80x48 and the first picture of its folder 64x48"):
        list(clip.frames())
    (tmp_path / "still life" / "d.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"d\.png"):
        list(clip.frames())


def test_files_and_folders_of_videos(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("b", "a"):
        make_video(tmp_path / "clips" / f"{name}.mp4", busy_frames(3), options=LOSSLESS)
    (tmp_path / "clips" / "notes.txt").touch()
    found = find_clips([tmp_path / "clips"])
    assert [clip.name for clip in found] == ["a", "b"]
    assert find_clips([tmp_path / "clips" / "b.mp4", tmp_path / "clips" / "a.mp4"]) == found[::-1]
    assert found[0].fps == 25
    assert len(list(found[0].frames())) == 3
    (tmp_path / "empty").mkdir()
    for places, said in (
        (["none.mp4"], "none.mp4 does not exist"),
        ([tmp_path / "empty"], "neither videos nor pictures"),
        ([tmp_path / "clips", tmp_path / "clips" / "a.mp4"], "2 clips are called a"),
    ):
        with pytest.raises(InputError, match=said):
            find_clips(places)


def test_some_clips_are_spread_over_all() -> None:
    clips = [Clip(str(i), Path()) for i in range(12)]
    assert spread(clips, None) == spread(clips, 20) == tuple(clips)
    for most in range(1, 13):
        some = [int(clip.name) for clip in spread(clips, most)]
        assert len(some) == most
        assert some == sorted(set(some))
        if most > 1:
            assert (some[0], some[-1]) == (0, 11)
            assert max(np.diff(some)) - min(np.diff(some)) <= 1
    with pytest.raises(ValueError, match="got 0"):
        spread(clips, 0)


# variants


def test_variants_multiply_what_a_method_has() -> None:
    found = expand(["full", "prune"], [0.1, 0.2], ["none", "aligned"])
    labels = [variant.label for variant in found]
    assert labels[0] == "dense"
    assert len(labels) == len(set(labels))
    rated = "rate" in {field.name for field in fields(methods()["prune"])}
    assert len(found) == 1 + 2 * (2 if rated else 1)
    assert {dict(v.params)["recovery"] for v in found[1:]} == {"none", "aligned"}
    assert all(isinstance(variant.build(), methods()[variant.method]) for variant in found)
    assert expand(["prune", "prune"]) == (Variant("prune"),)


def test_a_method_that_is_its_recovery_keeps_it() -> None:
    for name, kind in methods().items():
        default = kind().recovery
        found = expand([name], recoveries=["none", "clean"])
        is_open = kind.prunes and default == "aligned"
        assert len(found) == (2 if is_open else 1), name
        if not is_open:
            assert found[0].build().recovery == default


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: expand(["nothing"]), "unknown method 'nothing'"),
        (lambda: expand(["prune"], recoveries=["magic"]), "unknown recovery 'magic'"),
        (lambda: at_rate("full", 0.1), "'full' has no rate"),
        (lambda: Variant.of("prune", tau1=-1), "tau1 must not be negative"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_missing_methods_are_told() -> None:
    assert missing_methods(["full", "prune"]) == {}
    told = missing_methods(["full", "nothing"], rate=True)
    assert told["full"] == "full: it takes no rate in this version"
    assert "no such method" in told["nothing"]


# cells and rows


def test_rows_survive_their_files(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "new" / "cells")
    cell = Cell(Variant.of("prune", recovery="clean", tau1=0.1), "a clip/%", "oil, thick", 3)
    row = Row(
        cell=cell,
        kept_share=0.5,
        moved_share=0.25,
        metrics={"psnr": math.inf, "ssim": 0.25},
        fps=2.0,
    )
    store.put(cell.variant.label, "key", row.as_json())
    text = store.path(cell.variant.label, "key").read_text()
    assert "Infinity" not in text
    back = Row.from_json(store.get(cell.variant.label, "key"))
    assert (back.cell, back.metrics, back.kept_share) == (cell, row.metrics, 0.5)
    assert back.moved_share == 0.25
    assert math.isnan(back.full_fps)
    assert back.cell.variant.build() == cell.variant.build()
    store.path(cell.variant.label, "key").write_text(text[:-20])
    with pytest.raises(InputError, match="is damaged; delete it"):
        store.get(cell.variant.label, "key")


def test_cells_and_conditions_that_differ_in_anything_have_other_names() -> None:
    cell = Cell(Variant("prune"), "clip", "prompt")
    others: dict[str, Any] = {"variant": FULL, "clip": "x", "prompt": "x", "seed": 1}
    others |= {"conditioning": "sdedit", "paired": True}
    names = [identity(replace(cell, **{name: value})) for name, value in others.items()]
    assert len({identity(cell), *names}) == 1 + len(others)
    assert identity(replace(cell)) == identity(cell)
    conditions = Conditions("model", "weights", 24, 48, None, "cpu", "float32")
    other: dict[str, Any] = {f.name: "other" for f in fields(conditions)}
    changed = [replace(conditions, **{name: value}) for name, value in other.items()]
    assert len({identity(conditions), *map(identity, changed)}) == 1 + len(changed)


def test_a_fingerprint_is_of_the_weights(plan: Plan) -> None:
    weight = plan.pipe.transformer.proj_out.bias
    kept, before = weight.data.clone(), fingerprint(plan.pipe)
    weight.data[0] += 1
    changed = fingerprint(plan.pipe)
    weight.data.copy_(kept)
    assert changed != before == fingerprint(plan.pipe)


# the matrix


def cells_of(plan: Plan, *variants: Variant, **more: Any) -> list[Cell]:
    return [Cell(v, clip.name, "oil painting", **more) for clip in plan.clips for v in variants]


def test_a_cell_is_what_edit_file_does(plan: Plan, tmp_path: Path) -> None:
    """The same clip needs no scaling, so frames, mask and likeness must be the same."""
    variant = Variant.of("prune", recovery="clean")
    matrix = make_matrix(plan, tmp_path / "out")
    (row,) = matrix.run([Cell(variant, "one", "oil painting", seed=5, paired=True)])
    report = edit_file(
        plan.pipe,
        plan.clips[0].path,
        tmp_path / "edit.mp4",
        prompt="oil painting",
        method=variant.build(),
        seed=5,
        max_frames=24,
        compare=True,
    )
    assert report.full is not None
    assert row.kept_share == report.kept_share < 1
    assert row.moved_share == report.moved_share
    assert [b.kept / b.tokens for b in row.blocks] == list(report.kept_share_blocks)
    assert row.metrics["psnr"] == pytest.approx(report.psnr_vs_full_db, abs=1e-6)
    assert row.metrics["flicker"] == pytest.approx(report.flicker)
    assert (row.frames, row.width, row.height) == (24, 128, 48)
    assert row.cache_bytes == report.cache_bytes
    assert row.full_seconds["total"] / row.seconds["total"] == pytest.approx(row.speedup("total"))
    assert row.speedup(*DENOISING_STAGES) > 0
    assert {p.suffix for p in map(Path, row.videos.values())} == {".mp4"}
    assert all((tmp_path / "out" / path).is_file() for path in row.videos.values())
    # its dense edit was made and kept, and a cell that is not paired has nothing left to do
    before = listing(tmp_path / "out")
    (same,) = matrix.run([replace(row.cell, paired=False)])
    assert (same.metrics, same.cell.paired) == (row.metrics, False)
    assert listing(tmp_path / "out") == before


def test_metrics_are_measured_against_what_they_compare_with(plan: Plan, tmp_path: Path) -> None:
    matrix = make_matrix(plan, tmp_path, metric_names=(*QUICK, "ms_ssim"))
    dense, pruned = matrix.run(cells_of(plan, FULL, Variant("prune"))[:2])
    assert set(dense.metrics) == {"flicker"}
    assert "is what it compares with" in dense.skipped["psnr"]
    assert set(pruned.metrics) == set(QUICK)
    assert "needs at least" in pruned.skipped["ms_ssim"]


def test_going_on_after_an_interruption_does_the_rest_only(plan: Plan, tmp_path: Path) -> None:
    cells = cells_of(plan, Variant("prune"), Variant.of("prune", recovery="none"))
    told: list[tuple[str, int, int]] = []
    progress = Progress(lambda *step: told.append(step), lambda: len(told) > 2)
    with pytest.raises(KeyboardInterrupt):
        make_matrix(plan, tmp_path, progress).run(cells)
    before = listing(tmp_path)
    done = {name for name in before if name.startswith("cells/")}
    assert 0 < len(done) < 6  # with the dense edits of two clips
    assert not [name for name in before if "part" in name]
    rows = make_matrix(plan, tmp_path).run(cells)
    after = listing(tmp_path)
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert len([name for name in after if name.startswith("cells/")]) == 6
    assert [row.cell for row in rows] == cells
    assert all(row.error is None for row in rows)
    again = make_matrix(plan, tmp_path).run(cells)
    assert [row.as_json() for row in again] == [row.as_json() for row in rows]
    assert listing(tmp_path) == after


def test_an_interruption_in_an_edit_leaves_nothing_of_it(plan: Plan, tmp_path: Path) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 20  # in the midst of the first edit's 24 frames

    with pytest.raises(KeyboardInterrupt):
        make_matrix(plan, tmp_path, Progress(stop=stop)).run(cells_of(plan, FULL))
    assert [Path(name).parent.name for name in listing(tmp_path)] == ["frames"]
    assert all("source" in name for name in listing(tmp_path))


KILLED = """
import os, signal
from stillframe.evaluation.cells import RowStore
from stillframe.cli import main

put, done, replace = RowStore.put, [], os.replace

def last(*args):
    if str(args[1]).endswith(".json"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

def counting(*args):
    if len(done) == 3:
        os.replace = last  # the row is written, and not yet in its place
    put(*args)
    done.append(args)

RowStore.put = counting
main()
"""


def test_a_kill_loses_one_cell(plan: Plan, model_folder: Path, tmp_path: Path) -> None:
    """In the midst of writing the fourth row, which is the worst moment."""
    out = tmp_path / "out"
    clips = [str(clip.path) for clip in plan.clips]
    arguments = ["eval", *clips, "--out", str(out), "--model", str(model_folder)]
    arguments += ["--frames", "24", "--prompts", "sepia", "--metrics", "psnr", "--threads", "1"]
    arguments += ["--seeds", "0,1", "--methods", "prune"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    assert len(done) == 3
    assert len(list(out.glob("cells/.stillframe-*.part"))) == 1
    assert not (out / "report.html").exists()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(out.glob("cells/*.json"))) == 8
    with (out / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert not list(out.rglob(".stillframe-*")), "what the kill left half-written has gone"


def test_a_cell_that_fails_is_a_row_and_the_others_go_on(
    plan: Plan, tmp_path: Path, clean_methods: None
) -> None:
    works: list[bool] = []

    @method_registry.register("moody")
    @dataclass(frozen=True)
    class Moody(Method):
        """Fails until it is told not to."""

        summary = "fails"

        def selector(self) -> Selector:
            def select(source: SourceBlock) -> Tensor:
                if not works:
                    raise RuntimeError("this method\nis not in the mood")
                return methods()["full"]().selector()(source)

            return select

    cells = cells_of(plan, Variant("moody"), Variant("prune"))
    rows = make_matrix(plan, tmp_path).run(cells)
    assert [row.error for row in rows] == ["this method is not in the mood", None] * 2
    assert rows[0].metrics == {}
    before = listing(tmp_path / "cells")
    works.append(True)
    rows = make_matrix(plan, tmp_path).run(cells)
    assert [row.error for row in rows] == [None] * 4
    assert rows[0].metrics["psnr"] == math.inf
    after = listing(tmp_path / "cells")
    changed = {name for name in after if after[name] != before.get(name)}
    assert len(changed) == 2
    assert all("moody" in name for name in changed)


def test_a_metric_that_is_asked_for_later_is_measured_later(plan: Plan, tmp_path: Path) -> None:
    cells = cells_of(plan, Variant("prune"))[:1]
    (row,) = make_matrix(plan, tmp_path, metric_names=["psnr"]).run(cells)
    assert set(row.metrics) == {"psnr"}
    (row,) = make_matrix(plan, tmp_path, metric_names=["psnr", "ssim"]).run(cells)
    assert set(row.metrics) == {"psnr", "ssim"}
    before = listing(tmp_path)
    (row,) = make_matrix(plan, tmp_path, metric_names=["psnr"]).run(cells)
    assert listing(tmp_path) == before


def test_other_weights_are_other_cells(plan: Plan, tmp_path: Path) -> None:
    cells, conditions = cells_of(plan, FULL)[:1], plan.conditions(24, None, None)
    for weights in ("a", "b", "a"):
        given = replace(conditions, weights=weights)
        Matrix(plan.pipe, plan.clips, given, tmp_path, ["flicker"]).run(cells)
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_values_are_computed_once(plan: Plan, tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> list[float]:
        calls.append(1)
        return [1.5, float(len(calls))]

    for _ in range(2):
        matrix = make_matrix(plan, tmp_path)
        assert matrix.once("sums", {"clip": "one"}, compute) == [1.5, 1.0]
    assert matrix.once("sums", {"clip": "two"}, compute) == [1.5, 2.0]


def test_metrics_that_cannot_be_had_are_told() -> None:
    found, reasons = pick_metrics(None)
    assert {metric.name for metric in found} | reasons.keys() == set(metrics())
    assert all(metric.available() is None for metric in found)
    assert all(reason for reason in reasons.values())
    with pytest.raises(ValueError, match="unknown metric 'beauty'"):
        pick_metrics(["psnr", "beauty"])


# tables


def test_tables_hold_what_was_measured(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": math.nan, "c": "x, y"}, {"a": None, "d": math.inf}]
    written = write_table(tmp_path / "new" / "rows.csv", rows)
    with written[0].open(newline="") as file:
        found = list(csv.reader(file))
    assert found == [["a", "b", "c", "d"], ["1", "", "x, y", ""], ["", "", "", "inf"]]
    assert sorted(os.listdir(tmp_path / "new")) == sorted(path.name for path in written)


def test_parquet_where_it_can_be_had(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [{"a": 1.5, "b": "x"}, {"a": None, "b": "y"}]
    (_, path) = write_table(tmp_path / "rows.csv", rows)
    assert parquet.read_table(path).to_pylist() == rows
    assert json.dumps(rows)
