"""One nasty name through every edge where text of others is shown or written."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillframe.cli import downloads, measuring, screen
from stillframe.cli.app import app
from stillframe.errors import InputError
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, VideoGroup
from stillframe.evaluation.report_html import page
from stillframe.evaluation.results_page import results_page
from stillframe.evaluation.tables import write_table
from stillframe.untrusted.printable import csv_cell, markdown_text, printable

NASTY = {
    "escape": "a\x1b]0;owned\x07\x1b[2Jb",
    "lines": "a\r\nb\x0bc\u2028d\u2029e\x85f",
    "direction": "a\u202egpj.exe\u2066b\u200f",
    "c1": "a\x9b31mb\x90c",
    "surrogate": "a\udcffb",
    "markup": "a[bold red]b[/bold red][link=http://x]c[/link]",
    "html": "a<script>alert('1')</script>\"><img src=x onerror=y>&amp;",
    "markdown": "a|b`c`*d*__e__[f](http://g)<br>~~h~~",
    "formula": "=cmd|' /C calc'!A1",
    "invisible": "a\ufeffb\U000e0041c",
}
everything = pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)


def shown(text: str) -> str:
    """Text of a terminal, checked: nothing in it acts."""
    for letter in text.replace("\n", ""):
        assert unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp"), repr(letter)
        assert unicodedata.bidirectional(letter) not in ("RLO", "LRI", "RLI", "LRE"), repr(letter)
        assert letter not in "\ufeff\u200f\U000e0041"
    return text


def terminal(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return shown(captured.out) + shown(captured.err)


@everything
def test_lines_and_warnings_are_one_line_with_everything_in_it(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.say(text)
    screen.warn(text)
    with pytest.raises(BaseException, match="2"), screen.one_sentence_errors():
        raise InputError(text)
    lines = terminal(capsys).splitlines()
    assert lines == [printable(text), f"Warning: {printable(text)}", f"Error: {printable(text)}"]


@everything
def test_tables_show_names_and_interpret_none(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    screen.names_table(("name", text), [(text, text)])
    screen.numbers_table((text, text), [(text, "1")])
    assert terminal(capsys).count(printable(text)) == 6


@everything
def test_progress_bars_interpret_no_names(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    with redirect_stderr(io.StringIO()) as stream:
        with measuring._progress(quiet=False) as tell:
            tell(text, 1, 2)
        with downloads._download_bar() as show:
            show(text, 1, 2)
    # what rich itself moves the cursor with
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    assert shown(plain).count(printable(text)) >= 2


@everything
def test_what_is_typed_is_not_obeyed(text: str) -> None:
    for arguments in (["edit", text, "more", text, "-o", "x"], ["edit", "--gop", text], [text]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        shown(result.output)


@everything
def test_a_file_by_that_name_is_told_of_in_one_sentence(text: str, tmp_path: Path) -> None:
    name = str(tmp_path / text.replace("/", ""))
    arguments = ["edit", name, "-o", str(tmp_path / "o.mp4"), "--prompt", "sepia"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert printable(name) in shown(result.output)


@pytest.mark.parametrize("field", ["name", "prompt", "summary"])
@everything
def test_styles_of_a_model_are_listed_as_they_are(
    text: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    (tmp_path / "model_index.json").write_text("{}")
    style = {"name": "n", "prompt": "p", "summary": "s", field: text}
    (tmp_path / "styles.json").write_text(json.dumps([style]))
    result = CliRunner().invoke(app, ["styles", "--model", str(tmp_path)])
    assert result.exit_code == 0
    assert printable(text) in shown(result.output)


class Words(HTMLParser):
    """Text of a page, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags += [tag, *(name for name, _ in attrs)]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def found(text: str) -> Findings:
    points = [Point(1, 2), Point(2, 3)]
    plot = Plot(text, text, text, [Series(text, points)], (1.0, text))
    return Findings(
        name="n", title=text, question=text, headline=text, papers=text, words=[text],
        caveats=[text], missing=[text], tables=[Table(text, (text, "b"), [[text, "1"]])],
        plots=[plot], videos=[VideoGroup(text, [(text, "a.mp4")])],
    )  # fmt: skip


@everything
def test_the_page_has_the_words_and_no_more_tags(text: str) -> None:
    made = Words(page(text, text, {text: text}, [text], [found(text)]))
    plain = Words(page("x", "x", {"x": "x"}, ["x"], [found("x")]))
    assert made.tags == plain.tags
    assert shown("".join(made.words)).count(printable(text)) >= 15


@everything
def test_markdown_has_the_words_and_no_more_markup(text: str) -> None:
    made = results_page(text, text, {text: text}, [text], [found(text)])
    plain = results_page("x", "x", {"x": "x"}, ["x"], [found("x")])
    assert len(made.splitlines()) == len(plain.splitlines())
    without = re.sub(r"\\[\\`*_\[\]<>|~&]", "", shown(made.replace(printable(text), "x", 1)))
    for line, same in zip(without.splitlines(), plain.splitlines(), strict=True):
        for mark in "|`<>[~":
            if not line.startswith("    "):
                assert line.count(mark) == same.count(mark), line


@everything
def test_a_table_file_holds_text_and_no_formula(text: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"name": text, text: 1.5, "less": -3, "share": "-0.5%"}])
    data = (tmp_path / "t.csv").read_bytes().decode()
    assert len(data.splitlines()) == 2
    shown(data)
    rows = list(csv.reader(io.StringIO(data)))
    assert rows[1][1:] == ["1.5", "-3", "-0.5%"]
    for cell in (rows[0][1], rows[1][0]):
        assert cell.lstrip("'") == printable(text)
        assert cell[0] not in "=+-@\t\r"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\\t=1"), ("\r=1", "'\\r=1"), ("＝1+1", "'＝1+1"), ("-1e-5", "-1e-5"),
        ("+.5", "+.5"), ("plain", "plain"), (-1, -1), (None, ""), (float("nan"), ""), (True, True),
    ],
)  # fmt: skip
def test_fields_that_begin_like_formulas(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


def test_long_text_loses_its_middle() -> None:
    text = "begin" + "x" * 9000 + "end"
    short = printable(text, 100)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert "8908 more" in short
    assert len(short) < 130


@pytest.mark.parametrize("text", ["été naïve", "日本語", "👩‍👩‍👧 family", "C:\\a\\b", "क्‍ष", "a  b"])
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def test_printable_is_idempotent_and_markdown_of_words_is_words() -> None:
    for text in NASTY.values():
        assert printable(printable(text)) == printable(text)
    assert markdown_text("a plain sentence, 3.5 dB") == "a plain sentence, 3.5 dB"


def test_standard_output_that_knows_ascii_only_is_no_obstacle() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with redirect_stdout(stream):
        screen.say("plain")
