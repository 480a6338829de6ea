"""The change detector from the codec: vectors read, mapped onto patches, and never ahead."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.edit_fixtures import (
    clip_path_fixture,  # noqa: F401
    model_folder_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.test_control import STILL, Run, scene
from tests.test_engine import H, W
from tests.video_samples import Pixels, make_video
from typer.testing import CliRunner

from stillframe.autoencoders.timeline import Timeline
from stillframe.cli.app import app
from stillframe.controls import CodecDetector, ControlledBlock, Controls, MotionMap
from stillframe.controls.codec import CodecTrack
from stillframe.errors import InputError
from stillframe.jobs.edit import edit_file
from stillframe.methods.prune import InterFramePruning
from stillframe.tokens.grid import Grid
from stillframe.video import VideoReader

GRID = Grid(3, H // 16, W // 16)
EVERYTHING = InterFramePruning(tau1=0.0)


def still_map(*moved: tuple[int, int], unknown: tuple[int, int] | None = None) -> MotionMap:
    """A map of 16-pixel cells, one a patch."""
    maps = np.zeros((2, GRID.height, GRID.width), np.bool_)
    for place in moved:
        maps[0][place] = True
    if unknown is not None:
        maps[1][unknown] = True
    return MotionMap(maps[0], maps[1], (1.0, 1.0))


def fed(detector: CodecDetector, maps: dict[int, MotionMap | None], method: Any) -> Run:
    """Four blocks, with maps of some of their 48 frames; others are still."""
    run = Run(Controls(detector), method)
    state: Any = run.stream.control_state
    latents = scene(0, 12)
    for number, block in enumerate(latents.split(3, 2)):
        for frame in range(12 * number, 12 * number + 12):
            state.frame(maps.get(frame, still_map()))
        run.stream.edit_block(block)
    return run


def kept(run: Run) -> list[tuple[int, int, int]]:
    """Latent frame, row and column of what was recomputed after the first block."""
    return [tuple(x) for x in torch.cat([b.keep[0] for b in run.blocks])[3:].nonzero().tolist()]


@pytest.mark.parametrize("kind", ["codec", "both"])
def test_what_moved_is_recomputed_for_two_latent_frames(kind: str) -> None:
    """Frame 21 belongs to latent frame 5, which the encoder remembers in the next."""
    run = fed(CodecDetector(kind, 0, 0), {21: still_map((1, 2))}, STILL)
    assert kept(run) == [(5 - 3, 1, 2), (6 - 3, 1, 2)]
    around = {
        (y, x) for _, y, x in kept(fed(CodecDetector(kind, 0), {21: still_map((1, 2))}, STILL))
    }
    assert around == {(y, x) for y in range(3) for x in (1, 2, 3)}


def test_the_codec_decides_where_it_knows_and_the_method_elsewhere() -> None:
    maps: dict[int, MotionMap | None] = {14: still_map((0, 0), unknown=(3, 5)), 30: None}
    alone = fed(CodecDetector("codec", 0, 0), maps, EVERYTHING)
    # latent 3 and, remembered, 4; of frame 30, latent 7 and 8, nothing is known at all
    every = [(t - 3, y, x) for t in (7, 8) for y in range(4) for x in range(6)]
    here = [(t - 3, y, x) for t in (3, 4) for y, x in ((0, 0), (3, 5))]
    assert kept(alone) == sorted(here + every)
    both = fed(CodecDetector("both", 0, 0), maps, EVERYTHING)
    assert min(b.kept_share for b in both.blocks) == 1
    quiet = fed(CodecDetector("codec", 0, 0), maps, STILL)
    assert kept(quiet) == [(0, 0, 0), (1, 0, 0)]


def test_half_of_a_patch_makes_it_moved_and_what_could_be_is_unknown() -> None:
    """Over the four frames of a latent frame; with 1, 2 and 3 of them moved, and 1 unknown."""
    maps: dict[int, MotionMap | None] = {}
    for frame in range(12, 16):
        count = 16 - frame
        maps[frame] = still_map(*[(0, x) for x in range(3) if count <= x + 1])
    maps[12] = still_map(unknown=(0, 1))
    run = fed(CodecDetector("codec", spread=0), maps, EVERYTHING)
    assert kept(run) == [(t, 0, x) for t in (0, 1) for x in (1, 2)]
    assert kept(fed(CodecDetector("codec", spread=0), maps, STILL)) == [(0, 0, 2), (1, 0, 2)]


def test_agreement_is_counted_by_hand() -> None:
    maps: dict[int, MotionMap | None] = {14: still_map((0, 0)), 30: None}
    state: Any = fed(CodecDetector("codec", 0, 0), maps, EVERYTHING).stream.control_state
    tokens, unknown = 9 * 24, 2 * 24
    known = tokens - unknown
    found = state.find(CodecTrack).agreement
    assert found == pytest.approx((known / tokens, 2 / known, 1.0, 2 / known))
    still: Any = fed(CodecDetector("both", 0), {}, STILL).stream.control_state
    assert still.find(CodecTrack).agreement == (1.0, 1.0, None, None)


def test_no_frame_looks_ahead_and_a_late_map_is_only_in_what_follows() -> None:
    early = fed(CodecDetector(), {}, STILL)
    late = fed(CodecDetector(share=0), {40: still_map((0, 0))}, STILL)
    assert all(
        torch.equal(a.keep, b.keep) for a, b in zip(early.blocks[:3], late.blocks[:3], strict=True)
    )
    assert late.blocks[3].kept


def test_cells_of_any_size_touch_the_patches_that_they_overlap() -> None:
    """A picture of 40x24 in 48x32: 3x2 patches, cells of 8 pixels, padding to the right, below."""
    cells = np.zeros((3, 5), np.bool_)
    cells[1, 3] = True
    track = CodecTrack(
        CodecDetector(share=0, spread=0, extent=(40 / 48, 24 / 32), clock=Timeline(temporal=1))
    )
    track.frame(MotionMap(cells, np.zeros_like(cells), (1.0, 1.0)))
    block = ControlledBlock(torch.zeros(1, 1, 6, 4), Grid(1, 2, 3), [track])
    track.begin(block)
    keep = track.mask(block, torch.zeros(1, 1, 2, 3, dtype=torch.bool))
    assert keep[0, 0].tolist() == [[False, True, False], [False, False, False]]


def square(count: int, size: tuple[int, int] = (96, 128)) -> list[Pixels]:
    """A textured square that moves 4 pixels a frame over a still, textured ground."""
    # smooth enough for an encoder to find where things went
    ground = np.zeros((*size, 3), np.uint8) + np.linspace(0, 160, size[1]).astype(np.uint8)[:, None]
    coarse = np.random.default_rng(1).integers(0, 255, (4, 4, 3)).astype(np.uint8)
    patch = coarse.repeat(6, 0).repeat(6, 1)
    frames = []
    for i in range(count):
        frame = ground.copy()
        frame[32:56, 8 + 4 * i : 32 + 4 * i] = patch
        frames.append(frame)
    return frames


def centre(places: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of what is true, in shares of the sides."""
    return np.argwhere(places).mean(0) / places.shape


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("turn", [None, (90, False), (180, False), (0, True)])
def test_vectors_tell_where_it_moves(tmp_path: Path, codec: str, turn: Any) -> None:
    """In a picture turned or mirrored as well: there the square is where it is shown."""
    path = make_video(
        tmp_path / "a.mp4", square(16), codec=codec, turn=turn,
        options={"bf": "0", "crf": "12"} if codec == "libx264" else {"b": "4000000"},
    )  # fmt: skip
    with VideoReader(path, motion=True) as reader:
        frames = list(reader)
    assert frames[0].motion is not None
    assert frames[0].motion.unknown.all(), "an intra frame knows nothing"
    apart = []
    for before, frame in pairwise(frames):
        assert frame.motion is not None
        moved = frame.motion.moved
        assert not (moved & frame.motion.unknown).any()
        changed = np.abs(frame.pixels.astype(int) - before.pixels).max(2) > 40
        if moved.any():
            apart.append(np.abs(centre(moved) - centre(changed)).max())
    # shares of the picture's sides; turned the wrong way, it would be at the other end of one
    assert len(apart) > 10
    assert np.median(apart) < 0.12
    with VideoReader(path) as reader:
        assert next(iter(reader)).motion is None


def test_a_picture_that_stands_still_has_no_motion(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [square(1)[0]] * 12, options={"crf": "20"})
    with VideoReader(path, motion=True) as reader:
        maps = [frame.motion for frame in reader]
    assert all(m is not None and not m.moved.any() for m in maps)
    assert sum(m is not None and m.unknown.all() for m in maps) <= 2


def test_codecs_that_tell_nothing_are_refused_in_one_sentence(
    tmp_path: Path, model_folder: Path
) -> None:
    path = make_video(tmp_path / "a.mkv", square(3), codec="libvpx-vp9")
    with pytest.raises(InputError, match="coded as vp9, whose decoder tells no motion vectors"):
        VideoReader(path, motion=True)
    done = CliRunner().invoke(
        app,
        f"edit {path} -o {tmp_path / 'b.mkv'} --model {model_folder} --prompt oil --quiet "
        "--detector both",
    )
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert "vp9" in done.stderr
    assert not (tmp_path / "b.mkv").exists()


def test_from_the_command_line_to_the_report(
    tmp_path: Path, clip_path: Path, model_folder: Path, tiny_pipe: Any
) -> None:
    report, out = tmp_path / "r.json", tmp_path / "out.mkv"
    arguments = [clip_path, "-o", out, "--model", model_folder, "--report", report]
    arguments += ["--prompt", "oil", "--quiet", "--detector", "both"]
    done = CliRunner().invoke(app, ["edit", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    control = json.loads(report.read_text())["control"]
    assert control["detector"] == "both"
    assert 0 < control["agreement"]["known"] <= 1
    assert set(control["agreement"]) == {"known", "agreed", "precision", "recall"}
    # "both" recomputes no less than the method alone
    alone = edit_file(tiny_pipe, clip_path, tmp_path / "b.mkv", prompt="oil")
    assert json.loads(report.read_text())["kept_share"] >= alone.kept_share
    said = CliRunner().invoke(app, ["edit", *map(str, arguments[:-1]), "vectors"])
    assert said.exit_code == 2
    assert "got 'vectors'" in said.stderr
