"""Long files in pieces: every frame once, sound in step, and the edit that the whole file has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batch_fixtures import batch, log
from tests.edit_fixtures import (
    model_folder_fixture,  # noqa: F401
    random_pipeline,
    tiny_pipe_fixture,  # noqa: F401
)
from tests.video_samples import LOSSLESS, Pixels, decode, make_video, packets

from stillframe.autoencoders.timeline import Timeline
from stillframe.config import EditConfig
from stillframe.controls import Controls, Cuts
from stillframe.errors import InputError
from stillframe.jobs.batch.split import (
    Piece,
    check_split,
    find_cuts,
    find_pieces,
    join_pieces,
    run_in,
)
from stillframe.jobs.edit import Part, edit_file
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Source, VideoReader

SCENES = (50, 61, 39)


def scenes() -> list[Pixels]:
    """Three still pictures of large tiles, a square moving over each."""
    frames = []
    for number, count in enumerate(SCENES):
        tiles = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
        still = tiles.repeat(16, 0).repeat(16, 1)
        for index in range(count):
            frame = still.copy()
            left = index * 2 % 48
            frame[16:28, left : left + 12] = (250, 40, 40)
            frames.append(frame)
    return frames


@pytest.fixture(name="long", scope="module")
def long_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds with cuts at frames 50 and 111, and sound."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return make_video(path, scenes(), options=LOSSLESS, sound="aac", sound_seconds=6.0)


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(1, 400),
    length=st.integers(1, 200),
    cuts=st.lists(st.integers(1, 399), max_size=6).map(sorted),
    block=st.integers(1, 4),
    pad=st.sampled_from((0, 3)),
    trim=st.sampled_from((0, 3)),
)
def test_pieces_have_every_frame_once_and_whole_blocks_around_it(
    total: int, length: int, cuts: list[int], block: int, pad: int, trim: int
) -> None:
    clock = Timeline(block_frames=block, pad=pad, trim=trim)
    lead = run_in(clock, 2 * block)
    pieces = find_pieces([cut for cut in cuts if cut < total], total, length, clock, lead)
    taken: list[int] = []
    for piece in pieces:
        begin = piece.block * clock.later_frames
        first = begin + piece.drop
        taken += range(first, first + piece.keep)
        assert piece.drop >= min(lead, first)
        assert piece.drop + piece.keep <= piece.frames <= total - begin
        # by then so many blocks of the file's edit were read that its frames have come out
        blocks = (begin + piece.frames + clock.pad) // clock.later_frames
        is_last = begin + piece.frames == total
        assert is_last or clock.decoded_from(blocks) >= first + piece.keep
    assert taken == list(range(total))


def test_cuts_are_found_and_part_a_file(long: Path) -> None:
    assert find_cuts(Source.of(long)) == ([50, 111], 150)
    clock = Timeline(block_frames=3)
    kept = [piece.keep for piece in find_pieces([50, 111], 150, 50, clock, 24)]
    assert kept == list(SCENES)
    # not so far away
    assert [p.keep for p in find_pieces([10], 150, 75, clock, 24)] == [75, 75]


@pytest.mark.parametrize("trim", [0, 3])
def test_pieces_that_are_parted_at_cuts_are_the_whole_file_s_edit(
    trim: int, long: Path, tmp_path: Path
) -> None:
    """Where an edit forgets at cuts, what is left of the past is in the autoencoder."""
    pipe = random_pipeline(trim=trim)
    config = EditConfig(control=Controls(Cuts()))
    lead = run_in(pipe.timeline, pipe.config.window_frames)
    pieces = find_pieces([50, 111], 150, 50, pipe.timeline, lead)
    whole = _edit(pipe, long, tmp_path / "whole.mkv", Part(0, 150), config)
    joined: list[Pixels] = []
    for piece in pieces:
        part = Part(piece.block, piece.frames)
        frames = _edit(pipe, long, tmp_path / f"{piece.number}.mkv", part, config)
        joined += frames[piece.drop : piece.drop + piece.keep]
    assert len(joined) == len(whole) == 150
    assert all(np.array_equal(a, b) for a, b in zip(whole[:50], joined, strict=False))
    settled = [n for n in range(150) if not any(0 <= n - cut < 12 for cut in (50, 111))]
    assert _worst(whole, joined, settled) <= 1
    # which it would not be with other noise
    other = _edit(pipe, long, tmp_path / "other.mkv", Part(0, 150), config, seed=1)
    assert _worst(whole, other, settled) > 10


def _worst(some: list[Pixels], others: list[Pixels], frames: list[int]) -> int:
    """The largest difference of any of the frames, in grey levels."""
    return max(int(np.abs(some[n].astype(int) - others[n]).max()) for n in frames)


def _edit(
    pipe: CausalWanPipeline, source: Path, out: Path, part: Part, config: EditConfig, seed: int = 0
) -> list[Pixels]:
    edit_file(pipe, source, out, prompt="oil painting", part=part, config=config, seed=seed)
    return [frame for _, frame in decode(out)]


def test_a_file_that_is_split_is_one_file_again(
    model_folder: Path, long: Path, tmp_path: Path
) -> None:
    command = [long, "--style", "oil", "--model", model_folder, "--cuts"]
    assert batch(*command, "-o", tmp_path / "whole").exit_code == 0
    out = tmp_path / "split"
    done = batch(*command, "-o", out, "--split", 2)
    assert done.exit_code == 0, done.output
    assert [entry["pieces"] for entry in log(out, "split")] == [3]
    assert [(e["frames"], e["pieces"]) for e in log(out, "done")] == [(150, 3)]
    assert sorted(path.name for path in out.iterdir()) == ["batch.jsonl", "long.mp4"]
    whole, split = decode(tmp_path / "whole" / "long.mp4"), decode(out / "long.mp4")
    assert [time for time, _ in whole] == [time for time, _ in split]
    heard = packets(out / "long.mp4", "audio")
    assert heard == packets(tmp_path / "whole" / "long.mp4", "audio")
    assert heard
    before = (out / "long.mp4").stat().st_mtime_ns
    assert batch(*command, "-o", out, "--split", 2).exit_code == 0
    assert (out / "long.mp4").stat().st_mtime_ns == before


def test_what_belongs_to_a_whole_file_is_not_split(
    model_folder: Path, long: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.jsonl"
    rows: list[dict[str, Any]] = [
        {"input": str(long), "output": "a.mp4", "two_pass": True, "target_kept": 0.5},
        {"input": str(long), "output": "b.mp4", "roi": str(long)},
        {"input": str(long), "output": "c.mp4", "frames": 90},
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    done = batch(table, "-o", out, "--style", "oil", "--model", model_folder, "--split", 2)
    assert done.exit_code == 3, done.output
    assert "two passes belong to a whole file" in done.output
    assert "a region that is a video belong" in done.output
    assert [entry["output"] for entry in log(out, "done")] == ["c.mp4"]
    assert len(decode(out / "c.mp4")) == 90
    check_split(EditConfig(), two_pass=False)


def test_a_reader_begins_where_it_is_told(long: Path) -> None:
    with VideoReader(long) as reader:
        every = list(reader)
    with VideoReader(long, first_frame=60, max_frames=30) as reader:
        part = list(reader)
    assert [(f.pts, f.duration) for f in part] == [(f.pts, f.duration) for f in every[60:90]]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(part, every[60:], strict=False))
    with VideoReader(long, first_frame=500) as reader:
        assert list(reader) == []


def test_a_join_that_lacks_frames_leaves_nothing(
    tiny_pipe: CausalWanPipeline, long: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part.mkv"
    edit_file(tiny_pipe, long, part, prompt="oil painting", part=Part(0, 60))
    source, out = Source.of(long), tmp_path / "out.mp4"
    with pytest.raises(InputError, match=r"part\.mkv has 60 frames to take, and needs 70"):
        join_pieces(source, [(Piece(0, 0, 70, 0, 70), str(part))], str(out), 18)
    pieces = [(Piece(n, 0, 60, 0, 60), str(part)) for n in range(3)]
    with pytest.raises(InputError, match="has 150 frames, and had 180"):
        join_pieces(source, pieces, str(out), 18)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.mkv"]
