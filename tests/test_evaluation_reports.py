"""Pages, plots and commands: every reference is there, and every number is the rows'."""

from __future__ import annotations

import csv
import importlib
import math
import pkgutil
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.edit_fixtures import model_folder_fixture  # noqa: F401
from tests.evaluation_fixtures import QUICK, make_bench, plan_fixture  # noqa: F401
from typer.testing import CliRunner

import stillframe.metrics
from stillframe.cli.app import app
from stillframe.evaluation.editing import as_video
from stillframe.evaluation.experiments import experiments
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, VideoGroup
from stillframe.evaluation.plots import draw
from stillframe.evaluation.report_html import page
from stillframe.evaluation.results_page import results_page
from stillframe.evaluation.runs import Plan, evaluate, reproduce
from stillframe.evaluation.variants import Variant, expand
from stillframe.metrics import metrics
from stillframe.metrics.base import _REGISTRY as registry

SVG = "{http://www.w3.org/2000/svg}"


class References(HTMLParser):
    """Everything that a page points to, its anchors, and whether its tags match."""

    VOID = ("meta", "br", "img", "link", "input", "path", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "poster")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_page(folder: Path) -> References:
    """Open the report of a run: it needs nothing that is not beside it."""
    text = (folder / "report.html").read_text()
    found = References(text)
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in found.ids
        else:
            assert (folder / link.partition("#")[0]).is_file(), link
    assert len(found.ids) == len(set(found.ids))
    for outside in ("http:", "https:", "url(", "@import", "import("):
        assert outside not in text
    return found


# plots


def plot(**more: Any) -> Plot:
    series = [
        Series("a < b", [Point(0, 1), Point(1, 3, 2.5, 3.5), Point(2, 2)], line=True),
        Series("c", [Point(0.5, 2)]),
    ]
    return Plot("caption", "x & y", "y", **{"series": series, "rule": (1.5, "dense"), **more})


def marks(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Where each point is, by what it says of itself."""
    return {
        use[0].text or "": (float(use.get("x", "")), float(use.get("y", "")))
        for use in root.iter("use")
        if len(use)
    }


def test_plots_show_every_point_where_it_belongs() -> None:
    drawn = draw(plot())
    assert 'xmlns="' not in drawn  # inline in a page
    root = ElementTree.fromstring(drawn)
    found = marks(root)
    assert list(found) == [
        "a < b: 1 at 0",
        "a < b: 3 at 1 [2.5, 3.5]",
        "a < b: 2 at 2",
        "c: 2 at 0.5",
    ]
    points = list(found.values())
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]  # up is more
    middle = (points[0][1] + points[1][1]) / 2
    assert points[2][1] == points[3][1] == pytest.approx(middle, abs=0.01)
    x, quarter = points[1][0], abs(points[0][1] - points[1][1]) / 4
    ends = [
        [float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))]
        for path in root.iter("path")
        if "stroke-opacity" in path.get("style", "")
    ]
    assert ends == [pytest.approx([x, points[1][1] + quarter, x, points[1][1] - quarter], abs=0.01)]
    texts = {t.text for t in root.iter("text")}
    assert {"a < b", "c", "x & y", "dense"} <= texts


def test_colours_of_plots_are_the_page_s() -> None:
    many = [Series(f"_{i} $x$", [Point(i, i)]) for i in range(9)]
    drawn = draw(plot(series=many))
    assert not re.findall("#[0-9a-f]{6}", drawn)
    style = files("stillframe.evaluation").joinpath("page.css").read_text()
    for name in set(re.findall(r"var\((--\w+)\)", drawn)):
        assert style.count(f"{name}:") == 2  # light and dark
    assert drawn == draw(plot(series=many))


def test_plots_of_one_point_or_none() -> None:
    assert draw(plot(series=[])) == ""
    assert draw(plot(series=[Series("none", [Point(1, math.nan)])])) == ""
    single = draw(plot(series=[Series("one", [Point(3, 0), Point(2, math.inf)])], rule=None))
    assert list(marks(ElementTree.fromstring(single))) == ["one: 0 at 3"]
    assert "nan" not in single


def test_legends_wrap_and_make_room() -> None:
    names = [f"_rather long ${i}$" for i in range(9)]
    root = ElementTree.fromstring(draw(plot(series=[Series(n, [Point(1, 1)]) for n in names])))
    width, height = (float(side) for side in root.get("viewBox", "").split()[2:])
    keys = [t for t in root.iter("text") if t.text in names]
    assert sorted(t.text or "" for t in keys) == names
    assert max(float(t.get("y", "")) for t in keys) < height
    assert max(float(t.get("x", "")) + 6 * len(t.text or "") for t in keys) <= width
    places = {(t.get("x"), t.get("y")) for t in keys}
    assert len(places) == 9


# pages


def findings(**more: Any) -> Findings:
    given: dict[str, Any] = {
        "name": "n",
        "title": "T <1>",
        "question": "Q?",
        "headline": "H & H.",
        "caveats": ["C."],
        "missing": ["M."],
        "tables": [Table("cap", ("a", "b"), [["x|y", "<2>"]])],
        "plots": [plot()],
        "videos": [VideoGroup("clip", [("source", 'v"1.mp4')])],
    }
    return Findings(**{**given, **more})


def test_pages_escape_what_they_show() -> None:
    text = page("T", "intro", {"model": "<b>"}, ["note"], [findings(), findings(name="other")])
    found = References(text)
    words = " ".join(found.words)
    for shown in ("T <1>", "H & H.", "C.", "M.", "x|y", "<2>", "<b>", "note", "intro"):
        assert shown in words
    marks_of_plots = {link for link in found.links if link.startswith("#m")}
    assert set(found.links) - marks_of_plots == {"#n", "#other", "v%221.mp4#t=0.01"}
    assert {link[1:] for link in marks_of_plots} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert "<2>" not in text
    assert "prefers-color-scheme: dark" in text


def test_markdown_has_the_same_words_and_whole_tables() -> None:
    text = results_page("T", "stillframe reproduce x", {"model": "m"}, ["note"], [findings()])
    for shown in (
        "# T",
        "    stillframe reproduce x",
        "## T \\<1\\>",
        "**H \\& H.**",
        "- C.",
        "- M.",
    ):
        assert shown in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| x\\|y | \\<2\\> |" in rows
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)


def test_a_matrix_leaves_rows_and_a_page(plan: Plan) -> None:
    variants = [*expand(["prune"], recoveries=["none", "clean"]), Variant("full")]
    rows = evaluate(plan, variants, prompts=["sepia"], seeds=[0, 1], frames=24, paired=True)
    assert len(rows) == 2 * 2 * 3
    found = check_page(plan.out)
    assert len([link for link in found.links if ".mp4" in link]) > 8
    words = " ".join(found.words)
    for shown in ("prune clean", "psnr", "called from Python", "one, two", "dense"):
        assert shown in words
    with (plan.out / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    assert {"method", "clip", "prompt", "seed", "kept_share", "fps", "speedup_total", "error"} <= (
        set(table[0])
    )
    assert set(metrics()) <= set(table[0])
    for row, line in zip(rows, table, strict=True):
        assert (line["clip"], line["label"]) == (row.cell.clip, row.cell.variant.label)
        for name in QUICK:
            assert (line[name] == "") == (name not in row.metrics)
            if name in row.metrics:
                assert float(line[name]) == row.metrics[name]


def test_reproduce_leaves_one_page_for_all(plan: Plan, tmp_path: Path) -> None:
    scale = make_bench(plan, tmp_path).scale
    given = Plan(plan.pipe, "tiny", plan.clips, tmp_path / "out", "stillframe x", QUICK)
    done = reproduce(given, ["curve", "latency", "ablation"], scale)
    assert [found.name for found in done] == ["ablation", "latency", "curve"]
    found = check_page(given.out)
    assert {"curve", "latency", "ablation"} <= set(found.ids)
    words = " ".join(found.words)
    assert "cannot settle claims about quality" in words
    text = (given.out / "results.md").read_text()
    assert "    stillframe x\n" in text
    assert all(f"## {one.title}" in text for one in done)
    assert {"curve.csv", "latency.csv", "rows.csv"} <= {p.name for p in given.out.iterdir()}
    with pytest.raises(ValueError, match="unknown experiment 'nothing'"):
        reproduce(given, ["nothing"], scale)


# commands


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "none.mp4"], "none.mp4 does not exist"),
        (["eval", "CLIP", "--methods", "half"], "unknown method 'half'"),
        (["eval", "CLIP", "--rates", "few"], "--rates is numbers between commas"),
        (["eval", "CLIP", "--methods", "prune", "--recoveries", "x"], "unknown recovery 'x'"),
        (["eval", "CLIP", "--seeds", "0,a"], "--seeds is whole numbers between"),
        (["eval", "CLIP", "--metrics", "beauty"], "unknown metric 'beauty'"),
        (["reproduce", "nothing", "--clips", "CLIP"], "unknown experiment 'nothing'"),
        (["reproduce", "all", "--clips", "CLIP", "--rates", "x"], "--rates is numbers between"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(
    plan: Plan, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [str(plan.clips[0].path) if part == "CLIP" else part for part in arguments]
    result = run(*given, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["eval", "none.mp4"], ["reproduce", "x", "--clips", "none"]])
def test_the_commands_name_the_extra_that_is_missing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(*command, "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "needs matplotlib: install them with pip install 'stillframe[eval]'" in result.stderr
    assert not (tmp_path / "out").exists()


METRIC = """
from dataclasses import dataclass
from stillframe.metrics.base import Metric, Score, register

@register("brightness")
@dataclass(frozen=True)
class Brightness(Metric):
    summary = "mean of all numbers"
    higher_is_better = True
    reference = "none"

    def _measure(self, video, reference):
        return Score(float(video.mean()), video.mean((1, 2, 3)).double())
"""


def test_a_metric_of_one_file_is_in_all_reports(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brightness.py").write_text(METRIC)
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
    monkeypatch.setattr(stillframe.metrics, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "stillframe.metrics.brightness", raising=False)
    for module in pkgutil.iter_modules(stillframe.metrics.__path__):
        importlib.import_module(f"stillframe.metrics.{module.name}")
    given = replace(plan, out=tmp_path / "out", clips=plan.clips[:1], metric_names=["brightness"])
    rows = evaluate(given, [Variant("prune")], prompts=["sepia"], frames=12)
    frames = as_video(np.load(next((given.out / "frames").glob("*dense*.npy"))))
    assert rows[0].metrics == {"brightness": pytest.approx(float(frames.mean()))}
    with (given.out / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["brightness"]) for line in table] == [r.metrics["brightness"] for r in rows]
    for name in ("report.html", "results.md"):
        assert "brightness ↑" in (given.out / name).read_text()
    sys.modules.pop("stillframe.metrics.brightness")


def test_the_commands_run(plan: Plan, model_folder: Path, tmp_path: Path) -> None:
    common = ["--model", model_folder, "--frames", 24, "--metrics", "psnr,flicker"]
    folder = plan.clips[0].path.parent
    done = run(
        *("eval", folder, "--out", tmp_path / "a", "--prompts", "sepia", "--seeds", "3"),
        *("--recoveries", "none,aligned", "--conditioning", "sdedit", *common),
    )
    assert done.exit_code == 0, done.output
    assert "6 of 6 cells done" in done.stdout
    check_page(tmp_path / "a")
    done = run(
        *("reproduce", "ablation,correlation", "--clips", folder, "--out", tmp_path / "b"),
        *("--most", 1, "--height", 48, "--width", 128, "--quiet", *common),
    )
    assert done.exit_code == 0, done.output
    assert not done.stdout
    check_page(tmp_path / "b")
    help_text = run("reproduce", "--help").stdout
    assert all(name in " ".join(help_text.split()) for name in experiments())
