"""Many files: what is taken, what is refused in a sentence, what is edited again, what is not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.batch_fixtures import batch, begun, clips, item, log, start, times
from tests.edit_fixtures import busy_frames, model_folder_fixture  # noqa: F401
from tests.video_samples import decode, make_video, noise
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import InputError, ModelError, OutputError
from stillframe.jobs.batch.executors import InProcess
from stillframe.jobs.batch.plan import Failure
from stillframe.jobs.batch.record import Record
from stillframe.jobs.batch.rows import read_rows
from stillframe.jobs.batch.run import BatchResult, run_batch
from stillframe.jobs.batch.stores import identity
from stillframe.jobs.batch.work import Task
from stillframe.options import Option


def test_a_folder_is_edited_as_each_file_would_be_and_only_once(
    model_folder: Path, tmp_path: Path
) -> None:
    source = clips(tmp_path / "in", 2)
    clips(source / "sub", 1, 12)
    (source / "notes.txt").write_text("no video")
    (source / "broken.mp4").write_bytes(b"nothing")
    out = tmp_path / "out"
    command = [source, "-o", out, "--style", "oil", "--model", model_folder]
    done = batch(*command)
    assert done.exit_code == 3, done.output
    assert "broken.mp4 (7 bytes) is not a video" in " ".join(done.output.split())
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "0.mp4",
        "1.mp4",
        "batch.jsonl",
        "sub/0.mp4",
    ]
    one = tmp_path / "one.mp4"
    edit = ["edit", str(source / "1.mp4"), "-o", str(one), "--style", "oil", "-q"]
    assert CliRunner().invoke(app, [*edit, "--model", str(model_folder)]).exit_code == 0
    assert one.read_bytes() == (out / "1.mp4").read_bytes()
    # longest first, and nothing twice
    assert [entry["output"] for entry in log(out, "done")] == ["1.mp4", "0.mp4", "sub/0.mp4"]
    before = times(out)
    (source / "broken.mp4").unlink()
    again = batch(*command)
    assert again.exit_code == 0, again.output
    assert times(out) == before
    # what has changed is made again, and nothing else
    make_video(source / "0.mp4", busy_frames(13))
    assert batch(*command, "-q").output == ""
    assert {name for name, when in times(out).items() if when != before[name]} == {"0.mp4"}
    assert batch(*command, "--tolerance", 5).exit_code == 0
    assert not set(times(out).values()) & set(before.values())


def test_rows_have_prompts_and_options_of_their_own(model_folder: Path, tmp_path: Path) -> None:
    clips(tmp_path / "in", 1)
    table, out = tmp_path / "rows.csv", tmp_path / "out"
    table.write_text(
        "input,output,style,tolerance,cuts,nonsense\n"
        "in/0.mp4,a.mp4,oil,,true,\n"
        "in/0.mp4,b.mkv,sepia,6,,\n"
        "in/0.mp4,c.mp4,oil,lots,,\n"
        "in/0.mp4,d.mp4,oil,,,1\n"
        "in/none.mp4,e.mp4,oil,,,\n"
        "in/0.mp4,../f.mp4,oil,,,\n"
        "in/0.mp4,g.txt,oil,,,\n"
        "in/0.mp4,a.mp4,sepia,,,\n"
        "in/0.mp4,h.mp4,,,,\n"
        ",i.mp4,oil,,,\n"
        "in/0.mp4,j.mp4,oil,,,,,\n"
        "in/0.mp4,k.mp4,oil,,maybe,\n"
    )
    done = batch(table, "-o", out, "--model", model_folder)
    assert done.exit_code == 3, done.output
    assert [entry["output"] for entry in log(out, "done")] == ["a.mp4", "b.mkv"]
    told = [line for line in done.output.splitlines() if line.startswith("Warning: ")]
    wrong = (
        "tolerance is a number from 0 to 255, got 'lots'",
        "no column 'nonsense'",
        "none.mp4 does not exist",
        "got '../f.mp4'",
        "output ends in one of .mp4",
        "would be written to a.mp4, as",
        "give either --prompt TEXT or --style NAME",
        "it has no input",
        "it has 8 cells, and there are 6 columns",
        "cuts is true or false, got 'maybe'",
    )
    assert len(told) == len(wrong), told
    for line, words in zip(sorted(told, key=_row), wrong, strict=True):
        assert words in line
    # a method that there is not is found out by the worker, and is not tried twice
    lines = [{"input": "in/0.mp4", "output": "z.mp4", "method": "magic", "style": "oil"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{not json\n")
    done = batch(rows, "-o", out, "--model", model_folder)
    assert done.exit_code == 3, done.output
    assert "unknown method 'magic'" in done.output
    assert "row 2 cannot be edited: it is not JSON" in done.output
    assert len(log(out, "failed")) == 1


def _row(line: str) -> int:
    return int(line.partition("row ")[2].split()[0].rstrip(":"))


def test_what_others_have_made_is_not_replaced(model_folder: Path, tmp_path: Path) -> None:
    source = clips(tmp_path / "in", 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "0.mp4").write_bytes(b"a film")
    command = ["--style", "oil", "--model", model_folder]
    done = batch(source, "-o", out, *command)
    assert done.exit_code == 3
    assert "0.mp4 is there already, and this batch has not made it" in done.output
    assert (out / "0.mp4").read_bytes() == b"a film"
    assert [entry["output"] for entry in log(out, "done")] == ["1.mp4"]
    # into its own folder, where all outputs would be inputs
    done = batch(source, "-o", source, *command)
    assert done.exit_code == 2 or "there already" in done.output
    other = clips(tmp_path / "other", 1)
    done = batch(other / "0.mp4", source / "0.mp4", "-o", tmp_path / "new", *command)
    assert done.exit_code == 3
    assert "would be written to 0.mp4, as" in done.output
    assert [entry["output"] for entry in log(tmp_path / "new", "done")] == ["0.mp4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in", "-o", "out"], "give either --prompt TEXT or --style NAME"),
        (["in", "-o", "out", "--style", "polish"], "unknown style 'polish'"),
        (["in", "-o", "out", "--style", "oil", "--method", "magic"], "unknown method 'magic'"),
        (["none.csv", "-o", "out", "--style", "oil"], "none.csv cannot be read"),
        (["empty", "-o", "out", "--style", "oil"], "empty has no video in it"),
        (["in/*.mkv", "-o", "out", "--style", "oil"], "in/*.mkv has no video in it"),
        (["in", "-o", "memory://x", "--style", "oil"], "needs --log FILE"),
        (["in", "-o", "in/0.mp4", "--style", "oil"], "in/0.mp4 cannot be made"),
        (["in", "-o", "out", "--style", "oil", "--model", "nobody"], "unknown model 'nobody'"),
    ],
)
def test_what_would_fail_for_every_file_is_refused(
    model_folder: Path, tmp_path: Path, arguments: list[str], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clips(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(model_folder)]
    done = batch(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert done.output.count("\n") == 1


def test_a_full_disk_fails_the_files_that_do_not_fit(model_folder: Path, tmp_path: Path) -> None:
    source = clips(tmp_path / "in", 2)
    make_video(source / "large.mp4", [noise(i) for i in range(30)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        done = batch(
            source, "-o", tmp_path / "out", "--style", "oil", "--model", model_folder,
            "--crf", 0,
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 3, done.output
    assert done.output.count("large.mp4 could not be written") == 1
    assert sorted(times(tmp_path / "out")) == ["0.mp4", "1.mp4"]
    assert [entry["attempt"] for entry in log(tmp_path / "out", "failed")] == [1, 2]
    assert not list((tmp_path / "out").glob(".stillframe-*"))


def killed(out: Path, command: list[object]) -> None:
    """A batch in a process of its own, which is killed after two files."""
    process = start(*command)
    begun(out, process.poll, 2)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def interrupted(out: Path, command: list[object]) -> None:
    """A batch in this process; Ctrl-C after two files."""

    def press() -> None:
        begun(out, lambda: None, 2)
        os.kill(os.getpid(), signal.SIGINT)

    hand = threading.Thread(target=press)
    hand.start()
    done = batch(*command)
    hand.join()
    made = len(log(out, "done"))
    assert done.exit_code == 130, done.output
    assert f"interrupted: {made} files are done, and the same command goes on" in done.output
    assert not list(out.glob(".stillframe-*"))


@pytest.mark.parametrize("stopped", [killed, interrupted])
def test_a_batch_that_was_stopped_goes_on_where_it_was(
    model_folder: Path, tmp_path: Path, stopped: Callable[[Path, list[object]], None]
) -> None:
    source = clips(tmp_path / "in", 5, 40)
    out = tmp_path / "out"
    command: list[object] = [source, "-o", out, "--style", "oil", "--model", model_folder]
    stopped(out, command)
    before, made = times(out), log(out, "done")
    assert 2 <= len(made) < 5
    done = batch(*command)
    assert done.exit_code == 0, done.output
    assert sorted(times(out)) == [f"{n}.mp4" for n in range(5)]
    kept = {entry["output"] for entry in made}
    assert {name: times(out)[name] for name in kept} == {name: before[name] for name in kept}
    assert sorted(entry["output"] for entry in log(out, "done")) == sorted(times(out))
    assert not list(out.glob(".stillframe-*"))
    assert [len(decode(out / f"{n}.mp4")) for n in range(5)] == [40 + n for n in range(5)]


def test_object_stores_are_read_and_written(model_folder: Path, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    source = clips(tmp_path / "in", 2)
    store.put(str(source), "/bucket/in", recursive=True)
    command = ["-o", "memory://bucket/out", "--log", tmp_path / "log.jsonl", "--style", "oil"]
    command += ["--model", model_folder]
    try:
        done = batch("memory://bucket/in", *command)
        assert done.exit_code == 0, done.output
        names = sorted(path.rsplit("/", 1)[-1] for path in store.find("/bucket/out"))
        assert names == ["0.mp4", "1.mp4"]
        store.get("/bucket/out/1.mp4", str(tmp_path / "1.mp4"))
        assert len(decode(tmp_path / "1.mp4")) == 15
        again = batch("memory://bucket/in/*.mp4", "memory://bucket/none.mp4", *command)
        assert again.exit_code == 3
        assert "memory://bucket/none.mp4 does not exist" in again.output
        assert "files edited" not in again.output
        done = batch("nosuch://bucket/in.mp4", *command)
        assert "nosuch://bucket/in.mp4 cannot be reached" in done.output
    finally:
        store.rm("/bucket", recursive=True)


def test_workers_without_ray_are_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = clips(tmp_path / "in", 1)
    command = [source, "-o", tmp_path / "out", "--style", "oil", "--model", model_folder]
    for more in (["--workers", 2], ["--address", "auto"]):
        done = batch(*command, *more)
        assert done.exit_code == 2
        said = "Error: several workers need ray: pip install 'stillframe[cluster]'\n"
        assert done.output == said
    done = batch(*command, "--workers", 1)
    assert done.exit_code == 0, done.output


# the loop, with work that is not an edit


def run(
    work: Callable[[Task, Callable[[], bool]], dict[str, Any]], costs: list[float], log: Path,
    **options: Any,
) -> BatchResult:  # fmt: skip
    record = Record(log)
    items = [item(f"{number}.mp4", cost) for number, cost in enumerate(costs)]
    executor = InProcess(lambda: work, lambda: False)
    try:
        return run_batch(items, executor, record, **options)
    finally:
        record.close()


def test_what_costs_most_goes_first_and_what_fails_goes_last(tmp_path: Path) -> None:
    order: list[str] = []

    def work(task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        order.append(task.item.name)
        if task.item.name == "1.mp4" and order.count("1.mp4") == 1:
            raise InputError("a network is away")
        if task.item.name == "0.mp4":
            raise RuntimeError("nobody foresaw\nthis")
        return {"frames": 3}

    told: list[Failure] = []
    result = run(work, [2, 5, 3], tmp_path / "log", on_failure=told.append)
    assert order == ["1.mp4", "2.mp4", "0.mp4", "1.mp4", "0.mp4"]
    assert (result.done, result.left, result.retried, result.frames) == (2, 0, 2, 6)
    assert told == result.failures
    assert told == [Failure("0.mp4", "the edit failed with RuntimeError: nobody foresaw")]
    failed = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any("Traceback" in entry.get("trace", "") for entry in failed)


def test_a_worker_that_cannot_work_loses_no_file(tmp_path: Path) -> None:
    def broken() -> Any:
        raise ModelError("device 'cuda' is not there: torch sees 0 CUDA devices")

    record = Record(tmp_path / "log")
    told: list[Failure] = []
    executor = InProcess(broken, lambda: False)
    items = [item("a.mp4"), item("b.mp4")]
    result = run_batch(items, executor, record, on_failure=told.append)
    record.close()
    assert (result.done, result.left, result.failures) == (0, 2, [])
    assert [failure.error for failure in told] == [
        "device 'cuda' is not there: torch sees 0 CUDA devices"
    ]


def test_time_that_is_left_follows_the_work_that_is_done(tmp_path: Path) -> None:
    seen: list[Any] = []
    run(lambda task, stop: {"frames": 1}, [6.0, 3.0, 1.0], tmp_path / "log",
        on_progress=seen.append)  # fmt: skip
    assert [round(now.share, 9) for now in seen] == [0.6, 0.9, 1.0]
    assert [now.done for now in seen] == [1, 2, 3]
    assert all(now.left >= 0 for now in seen)


# the log


def test_a_torn_line_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    record = Record(path)
    record.plan(["a", "b"])
    record.done("a", "made", 7)
    record.close()
    whole = path.read_bytes()
    torn = whole + b'{"event": "done", "output": "b", "finger'
    path.write_bytes(torn + b"")
    record = Record(path)
    assert record.planned == {"a", "b"}
    assert record.finished == {"a": ("made", 7)}
    record.done("b", "made", 8)
    record.close()
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    path.write_bytes(b"garbage\n[]\n{}\n" + path.read_bytes())
    record = Record(path)
    assert record.finished == {"a": ("made", 7), "b": ("made", 8)}
    record.close()


def test_a_log_on_a_full_disk_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    record = Record(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for name in "abc":
            record.done(name, "made", 1)
        assert record.failure is not None
        assert str(path) in record.failure
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    record.done("d", "made", 1)
    assert record.failure is None
    record.close()
    assert [json.loads(line)["output"] for line in path.read_text().splitlines()] == list("abcd")


def test_a_log_is_one_batch_s(tmp_path: Path) -> None:
    record = Record(tmp_path / "log")
    with pytest.raises(OutputError, match="is in use by another batch"):
        Record(tmp_path / "log")
    record.close()
    Record(tmp_path / "log").close()
    with pytest.raises(OutputError, match="cannot be written"):
        Record(tmp_path / "no" / "log")


def test_files_are_told_apart_by_content_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    found = set()
    for content in (b"a" * 300_000, b"b" + b"a" * 299_999, b"a" * 299_999 + b"b", b"a" * 300_001):
        path.write_bytes(content)
        found.add(identity(str(path)).split(" ", 2)[2] + str(len(content)))
    assert len(found) == 4
    copy = tmp_path / "b"
    shutil.copy2(path, copy)
    assert identity(str(copy)) == identity(str(path))


# rows


@pytest.fixture
def columns() -> dict[str, Option]:
    return {"height": Option("int", "", least=1), "sigmas": Option("floats", "")}


def test_tables_are_read_as_people_write_them(columns: Any, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(
        '\ufeffinput, height,sigmas\r\n"a, b.mov",48,"1,0.5"\r\n\r\nc.ts,,\r\n'.encode()
    )
    first, second = read_rows([str(table)], columns)
    assert (first.source, first.name) == (str(tmp_path / "a, b.mov"), "a, b.mov")
    assert first.values == {"height": 48, "sigmas": (1.0, 0.5)}
    assert (second.name, second.values, second.problem) == ("c.mp4", {}, None)
    table.write_bytes(b"input\n\xff\n")
    with pytest.raises(InputError, match="not text in UTF-8"):
        list(read_rows([str(table)], columns))
    table.write_bytes(b'input\n"a\n')
    with pytest.raises(InputError, match="is not CSV behind its row 0"):
        list(read_rows([str(table)], columns))
    table.write_bytes(b"input\n")
    with pytest.raises(InputError, match="has 0 rows"):
        list(read_rows([str(table)], columns))


def test_a_batch_does_not_take_its_own_outputs(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.MOV", "out/c.mp4", ".hidden/d.mp4", "sub/.e.mp4", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    rows = list(read_rows([str(tmp_path)], {}, outside=str(tmp_path / "out")))
    assert [row.name for row in rows] == ["a.mp4", "sub/b.MOV"]
    rows = list(read_rows([f"{tmp_path}/**/*.mp4"], {}, outside=str(tmp_path / "out")))
    assert [row.name for row in rows] == ["a.mp4"]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", " 12 ", 12),
        ("float", "1e-1", 0.1),
        ("bool", "True", True),
        ("bool", "false", False),
        ("str", "an oil, painted", "an oil, painted"),
        ("floats", "1,.5", (1.0, 0.5)),
        ("int", "  ", None),
    ],
)
def test_cells_are_read_as_the_kind_of_their_option(kind: Any, text: str, value: Any) -> None:
    assert Option(kind, "").parsed("x", text) == value


@pytest.mark.parametrize(("kind", "text"), [("int", "1.5"), ("float", "nan"), ("bool", "1")])
def test_cells_that_are_none_are_refused(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match="x is "):
        Option(kind, "").parsed("x", text)
