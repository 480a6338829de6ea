"""Masks as a side-car, and controls from the command line to the report."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.edit_fixtures import (
    clip_path_fixture,  # noqa: F401
    model_folder_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.test_control import STILL, Run, scene
from tests.tiny import clip
from tests.video_samples import LOSSLESS, decode, make_video
from typer.testing import CliRunner

from stillframe.autoencoders.timeline import Timeline
from stillframe.cli.app import app
from stillframe.controls import (
    Box,
    Controls,
    Cuts,
    GivenMasks,
    Gop,
    MaskHeader,
    MaskRecorder,
    Refresh,
    Region,
    SourceFacts,
)
from stillframe.errors import InputError, OutputError
from stillframe.jobs.edit import edit_file
from stillframe.methods.prune import MOTIONS, InterFramePruning
from stillframe.tokens.grid import Grid

HEADER = MaskHeader(3, 5, 7, 16, 4, frames=30, tau1=0.15)


def some_masks() -> tuple[GivenMasks, list[torch.Tensor]]:
    kept = [torch.rand(1, 3, 5, 7) < share for share in (0.0, 0.3, 1.0)]
    recorder = MaskRecorder()
    for keep in kept:
        recorder.add(keep)
    return recorder.masks(HEADER), kept


def test_a_side_car_holds_what_was_recorded(tmp_path: Path) -> None:
    masks, kept = some_masks()
    masks.write(tmp_path / "a.masks")
    read = GivenMasks.read(tmp_path / "a.masks")
    assert read == masks
    assert all(torch.equal(read.block(i), keep) for i, keep in enumerate(kept))
    assert [path.name for path in tmp_path.iterdir()] == ["a.masks"]


def moving_masks() -> tuple[GivenMasks, list[torch.Tensor], list[torch.Tensor | None]]:
    """Masks of blocks in which something moved, nothing did, and nobody says."""
    kept = [torch.rand(1, 3, 5, 7) < 0.4 for _ in range(4)]
    shift = torch.randn(1, 3, 5, 7, 2) * 40 * ~kept[0][..., None]
    far = torch.full((1, 3, 5, 7, 2), 9e4)
    motions = [shift, torch.zeros(1, 3, 5, 7, 2), None, far]
    recorder = MaskRecorder()
    for keep, motion in zip(kept, motions, strict=True):
        recorder.add(keep, motion)
    return recorder.masks(replace(HEADER, motion="full")), kept, motions


def test_a_side_car_holds_what_moved(tmp_path: Path) -> None:
    masks, kept, (shift, *_) = moving_masks()
    masks.write(tmp_path / "a.masks")
    read = GivenMasks.read(tmp_path / "a.masks")
    assert read == masks
    assert read.header.motion == "full"
    assert all(torch.equal(read.block(i), keep) for i, keep in enumerate(kept))
    found, still, unknown, far = (read.motion(i) for i in range(4))
    assert found is not None
    assert shift is not None
    assert found.dtype == torch.float32
    assert (found - shift).abs().max() <= 1 / 32
    assert (found * 16 % 1 == 0).all()
    assert (still, unknown) == (None, None)
    assert far is not None
    assert (far == 2**11 - 1 / 16).all()
    # a block takes no more than before where nothing moved
    alone = MaskRecorder()
    alone.add(kept[1])
    assert alone.masks(HEADER).blocks[0] == masks.blocks[1]
    with pytest.raises(InputError, match="masks of 4 blocks"):
        read.motion(4)


@pytest.mark.parametrize("version", [1, 2])
def test_side_cars_of_earlier_versions_are_read(version: int, tmp_path: Path) -> None:
    masks, kept = some_masks()
    masks.write(tmp_path / "a.masks")
    magic, line, body = (tmp_path / "a.masks").read_bytes().split(b"\n", 2)
    head = json.loads(line)
    later = ["motion"] if version == 2 else ["motion", "tolerance"]
    head = {name: value for name, value in head.items() if name not in later}
    line = json.dumps({**head, "version": version}).encode()
    (tmp_path / "old.masks").write_bytes(b"\n".join((magic, line, body)))
    read = GivenMasks.read(tmp_path / "old.masks")
    assert read == masks
    assert read.header.motion is None
    assert all(torch.equal(read.block(i), keep) for i, keep in enumerate(kept))
    assert all(read.motion(i) is None for i in range(3))
    read.check(InterFramePruning(motion="off"), Controls(read))


@pytest.mark.parametrize("made", [None, *MOTIONS])
@pytest.mark.parametrize("motion", MOTIONS)
def test_masks_of_what_moved_need_a_method_that_moves(made: str | None, motion: str) -> None:
    masks = MaskRecorder().masks(replace(HEADER, motion=made))
    method = InterFramePruning(motion=motion)
    if MOTIONS.index(made or "off") <= MOTIONS.index(motion):
        masks.check(method, Controls(masks))
        return
    said = f"the masks were made with motion '{made}': with '{motion}' what they leave out"
    with pytest.raises(ValueError, match=said):
        masks.check(method, Controls(masks))
    # also while a stream runs
    run = Run(Controls(masks), InterFramePruning(motion=made or "off"))
    with pytest.raises(ValueError, match=said):
        run.stream.update(method=method)


def test_damaged_displacements_are_refused() -> None:
    masks, _, _ = moving_masks()
    content, header = zlib.decompress(masks.blocks[0]), masks.header
    assert len(content) == 14 + 4 * 105
    for size in (0, 13, 15, 14 + 4 * 104, len(content) - 1):
        with pytest.raises(InputError, match=r"block 0 is damaged: it has not 14 or 434 bytes"):
            GivenMasks(header, (zlib.compress(content[:size]),)).motion(0)
    with pytest.raises(InputError, match="it has not 14 or 434 bytes"):
        GivenMasks(header, (zlib.compress(content + b"x" * 10**6),)).block(0)
    # in masks made without motion there are none
    for motion in ("off", None):
        still = GivenMasks(replace(header, motion=motion), masks.blocks)
        for read in (still.block, still.motion):
            with pytest.raises(InputError, match="it has not 14 bytes"):
                read(0)
    # a record that breaks off between the mask and the displacements is no short one
    stored = zlib.compress(content, 0)
    cut = next(
        n for n in range(len(stored)) if len(zlib.decompressobj().decompress(stored[:n])) >= 14
    )
    with pytest.raises(InputError, match="block 0 is damaged: it is cut off"):
        GivenMasks(header, (stored[:cut],)).block(0)
    recorder = MaskRecorder()
    recorder.add(torch.ones(1, 3, 5, 7, dtype=torch.bool), torch.ones(1, 3, 5, 7, 2))
    with pytest.raises(ValueError, match="with motion 'off' nothing can have moved"):
        recorder.masks(replace(HEADER, motion="off"))


def test_a_side_car_is_what_its_description_says(tmp_path: Path) -> None:
    """Read by hand, as another tool would, from docs/control.md."""
    masks, kept, motions = moving_masks()
    masks.write(tmp_path / "a.masks")
    with open(tmp_path / "a.masks", "rb") as file:
        assert file.readline() == b"stillframe masks\n"
        head = json.loads(file.readline())
        for keep, motion in zip(kept, motions, strict=True):
            size = int.from_bytes(file.read(4), "little")
            content = zlib.decompress(file.read(size))
            number = int.from_bytes(content[:14], "big")
            bits = f"{number:0112b}"[: 3 * 5 * 7]
            assert [bit == "1" for bit in bits] == keep.flatten().tolist()
            numbers = [n / 16 for (n,) in struct.iter_unpack("<h", content[14:])]
            if motion is None or not motion.any():
                assert not numbers
            else:
                wanted = motion.clamp(-2048, 2047.9375).flatten().tolist()
                assert numbers == pytest.approx(wanted, abs=1 / 32)
        assert not file.read()
    assert head["version"] == 3
    assert head["blocks"] == 4
    assert head["motion"] == "full"
    text = (Path(__file__).parents[1] / "docs" / "control.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in head)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "not a file of masks"),
        (lambda data: b"x" + data, "not a file of masks"),
        (lambda data: data[:-1], "damaged: its last block lacks 1 bytes"),
        (lambda data: data[:30], "damaged"),
        (lambda data: data + data[-2:], "damaged"),
        (lambda data: data.replace(b'"blocks": 3', b'"blocks": 4'), "has 3 of 4 blocks"),
        (lambda data: data.replace(b'"version": 3', b'"version": 4'), "version 4, not up to 3"),
        (
            lambda data: data.replace(b'"motion": null', b'"motion": "m"'),
            "one of off, global, full",
        ),
        (
            lambda data: data.replace(b'"motion": null', b'"motion": [1]'),
            "one of off, global, full",
        ),
        (lambda data: data.replace(b'"patch"', b'"match"'), "damaged"),
        (lambda data: data.replace(b'"patch": 16', b'"patch": -6'), "sizes of masks"),
    ],
)
def test_what_is_no_side_car_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    path = tmp_path / "a.masks"
    some_masks()[0].write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=said):
        GivenMasks.read(path)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    masks, _ = some_masks()
    with pytest.raises(InputError, match="masks of 3 blocks, and the video has more"):
        masks.block(3)
    with pytest.raises(InputError, match="the mask of block 0 is damaged"):
        GivenMasks(HEADER, (b"what",)).block(0)
    bomb = MaskRecorder()
    bomb.add(torch.ones(1, 3, 50, 70, dtype=torch.bool))
    blocks = bomb.masks(MaskHeader(3, 50, 70, 16, 4)).blocks
    with pytest.raises(InputError, match="it has not 14 bytes"):
        GivenMasks(HEADER, blocks).block(0)
    with pytest.raises(InputError, match=r"3x5x7 patches of 16 pixels, 4 .*3x5x7 patches of 8 "):
        masks.fitted(SourceFacts(56, 40, timeline=Timeline(4), grid=Grid(3, 5, 7), patch=8))
    with pytest.raises(ValueError, match="height=5"):
        Run(Controls(masks)).feed(scene(0, 3))
    recorder = MaskRecorder()
    recorder.add(torch.ones(1, 3, 5, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(3, 5, 7\) tokens"):
        recorder.masks(MaskHeader(3, 7, 5, 16, 4))
    with pytest.raises(OutputError, match="could not be written"):
        masks.write(tmp_path / "none" / "a.masks")
    with pytest.raises(InputError, match="could not be read"):
        GivenMasks.read(tmp_path / "none")


def test_a_stream_takes_the_masks_of_another(tmp_path: Path) -> None:
    """With all controls on: they add nothing to masks that they have been in already."""
    latents = torch.cat([scene(0, 13, drift=0.2), scene(1, 17, drift=0.2)], 2)
    others = Controls(Gop(4), Refresh(5), Cuts(), Region(Box(0, 0, 0.4, 0.4), "never"))
    first = Run(others)
    result = first.feed(latents)
    recorder = MaskRecorder()
    for block in first.blocks:
        recorder.add(block.keep)
    _, frames, height, width = first.blocks[0].keep.shape
    masks = recorder.masks(MaskHeader(frames, height, width, 16, 4))
    control = Controls(*others, masks)
    second = Run(control, STILL)
    assert torch.equal(second.feed(latents), result)
    assert first.stream.control_state is not None
    assert second.stream.control_state is not None
    was, now = first.stream.control_state.report(), second.stream.control_state.report()
    assert all(was[name] == now[name] for name in ("cut_frames", "oldest_blocks"))
    assert was["refreshed_tokens"] > 0 == now["refreshed_tokens"]


def test_a_file_edited_with_its_own_masks_is_equal(
    tmp_path: Path, clip_path: Path, tiny_pipe: Any
) -> None:
    side = [tmp_path / f"{i}.masks" for i in range(2)]
    out = [tmp_path / f"{i}.mkv" for i in range(2)]
    report = edit_file(tiny_pipe, clip_path, out[0], prompt="oil", crf=0, masks_out=side[0])
    assert report.control is None
    masks = GivenMasks.read(side[0])
    assert masks.header.frames == 30
    assert (masks.header.patch, masks.header.temporal) == (16, 4)
    assert (masks.header.tolerance, masks.header.tau1, masks.header.tau2) == (3.0, None, None)
    assert masks.header.motion == report.motion == "full"
    again = edit_file(
        tiny_pipe, clip_path, out[1], prompt="oil", crf=0, masks_out=side[1],
        control=Controls(masks),
    )  # fmt: skip
    assert side[0].read_bytes() == side[1].read_bytes()
    pictures = [np.stack([frame for _, frame in decode(path)]) for path in out]
    assert np.array_equal(pictures[0], pictures[1])
    assert again.kept_share_blocks == report.kept_share_blocks
    assert min(again.kept_share_blocks) < 1
    assert again.control is not None
    assert again.control["masks_in"]
    with pytest.raises(InputError, match=r"the masks are of 3x3x4 .* the video has 3x6x8"):
        edit_file(
            tiny_pipe, clip_path, tmp_path / "no.mkv", prompt="oil", height=96,
            control=Controls(masks),
        )  # fmt: skip
    assert not (tmp_path / "no.mkv").exists()


def _edit(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["edit", *map(str, arguments), "--prompt", "oil", "--quiet"])


def test_controls_from_the_command_line_to_the_report(tmp_path: Path, model_folder: Path) -> None:
    """A hard cut after 24 of 48 frames, on the boundary of a block."""
    scenes = [clip(24, 48, 64, seed=seed)[0] for seed in (0, 3)]
    pictures = (torch.cat(scenes).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    frames = list(pictures.numpy())
    source = make_video(tmp_path / "in.mkv", frames, options=LOSSLESS)
    painting = tmp_path / "roi.png"
    Image.fromarray(np.kron(np.eye(2), np.full((9, 16), 255)).astype(np.uint8)).save(painting)
    report, side = tmp_path / "report.json", tmp_path / "a.masks"
    done = _edit(
        source, "-o", tmp_path / "out.mkv", "--model", model_folder, "--report", report,
        "--masks-out", side, "--gop", 3, "--refresh", 4, "--cuts", "--roi", painting,
        "--roi-mode", "always", "--roi-invert", "--compare",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    written = json.loads(report.read_text())
    control = written["control"]
    assert control["cut_frames"] == [24]
    assert (control["gop"], control["refresh"], control["cuts"]) == (3, 4, True)
    assert control["roi"] == {"box": None, "mode": "always", "invert": True}
    # the encoder remembers the old scene for a latent frame, so the block after it is whole as well
    assert control["whole_blocks"] == written["kept_share_blocks"][1:].count(1)
    assert control["oldest_blocks"] < 4
    assert written["kept_share_blocks"][2] == 1
    assert written["full"]["kept_share"] == 1
    assert len(GivenMasks.read(side).blocks) == 4
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in control)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--roi", "1,2,3"], "got 3 numbers"),
        (["--roi", "0,0,0,0"], "sides above 0"),
        (["--roi", "900,0,10,10"], "outside of 64x48 pixels"),
        (["--roi", "none.png"], "neither x,y,width,height nor a readable image"),
        (["--roi-invert"], "--roi-invert needs --roi"),
        (["--roi", "0,0,1,1", "--roi-mode", "often"], "always, never or only, got 'often'"),
        (["--roi", "0,0,1,1", "--roi-mode", "never", "--method", "full"], "computes everything"),
        (["--masks-in", "none.masks"], "could not be read"),
        (["--masks-in", "in.mp4"], "not a file of masks"),
        (["--motion", "some"], "--motion is off, global or full, got 'some'"),
        (["--motion", "full", "--detector", "latent"], "motion 'full' needs the detector 'pixels'"),
        (["--motion", "off", "--method", "full"], "method 'full' has no motion"),
        (["--masks-out", "none/a.masks"], "no folder"),
        (["--masks-out", "in.mp4"], "same file"),
        (["--masks-out", "r.json", "--report", "r.json"], "choose another name"),
    ],
)
def test_refusals_are_one_sentence(
    tmp_path: Path,
    clip_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.mp4").write_bytes(clip_path.read_bytes())
    result = _edit("in.mp4", "-o", "out.mp4", "--model", model_folder, *more)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
