"""The report as a file: complete, strict JSON, and documented field by field."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from stillframe.errors import OutputError
from stillframe.jobs.outputs import check_outputs
from stillframe.jobs.report import STAGES, Report
from stillframe.video import check_file


def test_the_report_file_holds_what_the_report_holds(tmp_path: Path) -> None:
    report = _some_report()
    report.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert Report(**{**read, **_tuples(read)}) == report
    assert os.listdir(tmp_path) == ["report.json"]


def _some_report() -> Report:
    return Report(
        method="prune",
        recovery="aligned",
        tolerance=None,
        motion="off",
        tau1=0.15,
        tau2=0.3,
        kept_share=0.4,
        kept_share_blocks=(1.0, 0.1),
        moved_share=0.3,
        moved_share_blocks=(0.0, 0.6),
        seconds={"total": 2.0},
        fps=12.0,
        cache_bytes=1,
        recovery_bytes=2,
        stillframe="0",
        source="in.mp4",
        output="out.mp4",
        frames_in=24,
        frames_out=24,
        fps_source=25.0,
        width=64,
        height=48,
        source_width=64,
        source_height=48,
        model="tiny",
        prompt="Ölgemälde",
        device="cpu",
        dtype="float32",
        seed=0,
        sigmas=(0.6,),
        conditioning="source",
        store="exact",
        peak_memory_bytes=None,
        psnr_vs_full_db=30.5,
    )


def _tuples(read: dict[str, Any]) -> dict[str, Any]:
    names = ("kept_share_blocks", "moved_share_blocks", "sigmas", "warnings")
    return {name: tuple(read[name]) for name in names}


@pytest.mark.parametrize("place", ["missing/report.json", ".", "/dev/full"])
def test_reports_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError):
        check_file(tmp_path / place)


def test_every_field_of_the_report_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    for name in [*(field.name for field in fields(Report)), *STAGES, "load", "total"]:
        assert f"`{name}`" in text, name


def test_no_two_results_are_the_same_file(tmp_path: Path) -> None:
    """Whichever of them they are, and by whatever name."""
    names = [tmp_path / f"{name}.mkv" for name in "abcde"]
    (tmp_path / "link.mkv").symlink_to(tmp_path / "e.mkv")
    check_outputs(*names)
    check_outputs(names[0], names[1], None, None, names[2])
    for place in range(4):
        others = [*names[:place], tmp_path / "link.mkv", *names[place + 1 :]]
        check_outputs(*others[:4], None)
        with pytest.raises(OutputError, match="is the same file as"):
            check_outputs(*others)
