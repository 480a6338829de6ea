"""Editing takes no more memory the longer the file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.edit_fixtures import busy_frames, tiny_pipe_fixture  # noqa: F401
from tests.video_samples import make_video

from stillframe.jobs.edit import Progress, edit_file
from stillframe.methods import find_method
from stillframe.pipelines.causal_wan import CausalWanPipeline

PROMPT = "oil painting"


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("frames", [480, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_length(
    tiny_pipe: CausalWanPipeline, tmp_path: Path, frames: int
) -> None:
    clip = busy_frames(60, 96, 96)
    source = make_video(tmp_path / "in.mkv", [clip[i % 60] for i in range(frames)])
    held: dict[int, int] = {}
    waiting: list[int] = []

    def note(progress: Progress) -> None:
        held[progress.frames_out] = _resident_bytes()
        waiting.append(progress.frames_in - progress.frames_out)

    report = edit_file(
        tiny_pipe,
        source,
        tmp_path / "out.mkv",
        prompt=PROMPT,
        method=find_method("prune")(tau2=0.1),
        compare=True,
        map_path=tmp_path / "map.mkv",
        on_progress=note,
    )
    assert report.frames_out == frames
    assert max(waiting) == 0
    # the least that a frame could be kept in, and how many came in the second half
    leak = 3 * 96 * 96 * (frames // 2)
    late = [size for count, size in held.items() if count > frames // 2]
    early = max(size for count, size in held.items() if count <= frames // 2)
    assert max(late) - early < 0.7 * leak
