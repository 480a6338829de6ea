"""Pages, plots and commands: every reference is there, and every number is the rows'."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.edit_fixtures import model_folder_fixture  # noqa: F401
from tests.evaluation_fixtures import QUICK, make_bench, plan_fixture  # noqa: F401
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.evaluation.experiments import experiments
from stillframe.evaluation.findings import Exhibit, Findings, Plot, Point, Series, Table
from stillframe.evaluation.plots import draw, ticks
from stillframe.evaluation.report_html import page
from stillframe.evaluation.results_page import results_page
from stillframe.evaluation.runs import Plan, evaluate, reproduce
from stillframe.evaluation.variants import Variant, expand
from stillframe.metrics import metrics

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


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 17), (0.00012, 0.00019), (1e6, 3e6), (-1, -0.2), (29.9, 30.1)]
)
def test_ticks_are_round_even_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    step = found[1] - found[0]
    assert 3 <= len(found) <= 11
    assert low - 1e-9 * abs(high) <= found[0] < low + step
    assert high - step < found[-1] <= high + 1e-9 * abs(high)
    assert [b - a for a, b in pairwise(found)] == pytest.approx([step] * (len(found) - 1))
    digits = f"{step:.3e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "2.5", "5")
    with pytest.raises(ValueError, match="got 1 to 1"):
        ticks(1, 1)


def plot(**more: Any) -> Plot:
    series = [
        Series("a < b", [Point(0, 1), Point(1, 3, 2.5, 3.5), Point(2, 2)], line=True),
        Series("c", [Point(0.5, 2)]),
    ]
    return Plot("caption", "x & y", "y", **{"series": series, "rule": (1.5, "dense"), **more})


def test_plots_show_every_point_where_it_belongs() -> None:
    drawn = draw(plot())
    assert 'xmlns="' not in drawn  # inline in a page
    root = ElementTree.fromstring(drawn)
    circles = [c for c in root.iter("circle") if c.get("r") == "4"]
    points = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in circles[:3]]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]  # up is more
    middle = (points[0][1] + points[1][1]) / 2
    assert points[2][1] == pytest.approx(middle, abs=0.2)
    bars = [p for p in root.iter("path") if p.get("class") == "bar"]
    assert len(bars) == 1
    titles = [t.text for t in root.iter("title")]
    assert titles == ["a < b: 1 at 0", "a < b: 3 at 1 [2.5, 3.5]", "a < b: 2 at 2", "c: 2 at 0.5"]
    texts = [t.text for t in root.iter("text")]
    assert {"a < b", "c", "x & y", "dense"} <= set(texts)


def test_plots_of_one_point_or_none() -> None:
    assert draw(plot(series=[])) == ""
    single = draw(plot(series=[Series("one", [Point(3, 0)])], rule=None))
    root = ElementTree.fromstring(single)
    assert len(list(root.iter("circle"))) == 1
    assert "nan" not in single


def test_legends_wrap_and_make_room() -> None:
    many = [Series(f"a rather long name {i}", [Point(i, i)]) for i in range(9)]
    root = ElementTree.fromstring(draw(plot(series=many)))
    height = float(root.get("viewBox", "").split()[3])
    keys = [t for t in root.iter("text") if t.get("class") == "key"]
    assert len(keys) == 9
    assert max(float(t.get("y", "")) for t in keys) < height
    ends = [float(t.get("x", "")) + 6 * len(t.text or "") for t in keys]
    assert max(ends) <= 640


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
        "exhibits": [Exhibit("clip", [("source", 'v"1.mp4')])],
    }
    return Findings(**{**given, **more})


def test_pages_escape_what_they_show() -> None:
    text = page("T", "intro", {"model": "<b>"}, ["note"], [findings(), findings(name="other")])
    found = References(text)
    words = " ".join(found.words)
    for shown in ("T <1>", "H & H.", "C.", "M.", "x|y", "<2>", "<b>", "note", "intro"):
        assert shown in words
    assert {"#n", "#other", "v%221.mp4#t=0.01"} == set(found.links)
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
