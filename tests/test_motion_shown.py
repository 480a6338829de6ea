"""What moved, wherever it is told: report, map, masks, summary, telemetry, the server.

Here blocks say so themselves, whatever the engine found: of what a block did not compute, every
second patch has moved.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.chromium import CHROMIUM, browsing
from tests.edit_fixtures import (
    clip_path_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.live_fixtures import levels, open_session, play
from tests.server_fixtures import pictures, serving, wait_until
from tests.video_samples import decode

from stillframe.cli.screen import summary
from stillframe.controls import GivenMasks
from stillframe.engine.stream import BlockStats
from stillframe.jobs.edit import Progress, edit_file
from stillframe.live import Worker
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.overlay import MaskTrack, draw_map


def shifted(stats: BlockStats) -> BlockStats:
    """Every second patch that was not computed has moved, by more from patch to patch."""
    every = torch.arange(stats.keep.numel()).view_as(stats.keep)
    moved = ~stats.keep & (every % 2 == 0)
    if not moved.any():
        return stats._replace(moved=None, motion=None)
    motion = torch.stack([every / 4, -every / 8], -1).float() * moved[..., None]
    return stats._replace(moved=moved, motion=motion)


@pytest.fixture(name="blocks")
def blocks_fixture(monkeypatch: pytest.MonkeyPatch) -> list[BlockStats]:
    """The blocks of all streams that are opened from here on."""
    blocks: list[BlockStats] = []
    opened = CausalWanPipeline.stream

    def stream(pipe: CausalWanPipeline, *args: Any, on_block: Any, **options: Any) -> Any:
        def note(stats: BlockStats) -> None:
            blocks.append(shifted(stats))
            on_block(blocks[-1])

        return opened(pipe, *args, on_block=note, **options)

    monkeypatch.setattr(CausalWanPipeline, "stream", stream)
    return blocks


def test_a_block_knows_its_share() -> None:
    keep = torch.tensor([[[[True, False, False, False]]]])
    stats = BlockStats(0, 1, 4, keep, {})
    assert (stats.moved_share, stats.moved, stats.motion) == (0, None, None)
    moved = shifted(stats)
    assert moved.moved_share == 0.25
    assert moved.kept_share == stats.kept_share
    found = moved.patches()
    assert moved.motion is not None
    assert np.array_equal(found[0], keep[0].numpy())
    assert found[1] is not None
    assert found[1].tolist() == [[[False, False, True, False]]]
    assert np.array_equal(found[2], moved.motion[0].numpy())  # type: ignore[arg-type]
    assert stats.patches()[1:] == (None, None)


def test_a_file_tells_what_moved(
    tmp_path: Path, clip_path: Path, tiny_pipe: Any, blocks: list[BlockStats]
) -> None:
    told: list[Progress] = []
    names = [tmp_path / name for name in ("out.mkv", "map.mkv", "a.masks", "report.json")]
    report = edit_file(
        tiny_pipe, clip_path, names[0], prompt="oil", crf=0, map_path=names[1], masks_out=names[2],
        on_progress=told.append,
    )  # fmt: skip
    shares = [block.moved_share for block in blocks]
    assert shares[0] == 0 < max(shares)
    assert report.moved_share_blocks == tuple(shares)
    assert report.moved_share == pytest.approx(np.mean(shares))
    assert report.moved_share + report.kept_share < 1
    assert told[-1].moved_share == report.moved_share
    assert report.motion == "full"
    report.write(names[3])

    masks, track = GivenMasks.read(names[2]), MaskTrack(tiny_pipe.timeline)
    for number, block in enumerate(blocks):
        track.add(*block.patches())
        motion = masks.motion(number)
        assert torch.equal(masks.block(number), block.keep)
        assert (motion is None) == (block.motion is None)
        if motion is not None and block.motion is not None:
            assert torch.equal(motion, (block.motion * 16).round() / 16)
    sources = [pixels for _, pixels in decode(clip_path)]
    for number, (_, drawn) in enumerate(decode(names[1])):
        keep, moved, shift = track.at(number)
        wanted = draw_map(sources[number], keep, 16, moved, shift)
        assert np.abs(drawn.astype(int) - wanted).mean() < 6
        if moved is not None:
            plain = draw_map(sources[number], keep, 16)
            assert np.abs(drawn.astype(int) - plain).mean() > 8


def test_the_summary_says_what_moved(
    tmp_path: Path, clip_path: Path, tiny_pipe: Any, blocks: list[BlockStats]
) -> None:
    report = edit_file(tiny_pipe, clip_path, tmp_path / "out.mkv", prompt="oil", compare=True)
    kept, moved = report.kept_share, report.moved_share
    told = f"{kept:.0%} of the patches recomputed, {moved:.0%} moved, {1 - kept - moved:.0%} unch"
    assert told in summary(report)[0]
    still = replace(report, moved_share=0.0)
    assert summary(still)[0].endswith(f"{kept:.0%} of the patches recomputed")
    assert report.full is not None
    assert (report.full.motion, report.full.moved_share) == ("off", 0)


def test_a_session_tells_what_moved(blocks: list[BlockStats]) -> None:
    worker = Worker()
    session = open_session(tiny.pipeline(), worker, policy="all")
    frames = play(session, worker, levels(36))
    assert max(block.moved_share for block in blocks) > 0
    for block, told in zip(blocks, session.telemetry.blocks, strict=True):
        assert told.moved_share == told.figures()["moved_share"] == block.moved_share
        keep, moved, motion = block.patches()
        assert (told.moved is None) == (moved is None)
        mine = [frame for frame in frames if frame.block == told.block]
        for number, frame in enumerate(mine):
            latent = number // 4
            assert np.array_equal(frame.keep, keep[latent])
            for found, wanted in ((frame.moved, moved), (frame.motion, motion)):
                assert (found is None) == (wanted is None)
                assert wanted is None or np.array_equal(found, wanted[latent])  # type: ignore[arg-type]
    assert session.telemetry.summary()["moved_share_p95"] == max(b.moved_share for b in blocks)
    session.close()


def test_a_server_tells_what_moved(blocks: list[BlockStats]) -> None:
    with serving(tiny.pipeline()) as server, server.client({"policy": "all"}) as client:
        for number, picture in enumerate(pictures(36)):
            client.send(number / 10, picture)
        client.until("frame", 36)
        told = [text for text in client.texts if text["type"] == "telemetry"]
    assert max(text["moved_share"] for text in told) > 0
    for block, text, moved in zip(blocks, told, client.moved, strict=True):
        assert text["moved_share"] == block.moved_share
        wanted = torch.zeros_like(block.keep) if block.moved is None else block.moved
        assert np.array_equal(moved, wanted[0].numpy())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_the_page_shows_what_moved_and_chooses_the_motion(
    tmp_path: Path, blocks: list[BlockStats]
) -> None:
    pipe = tiny.pipeline()
    with serving(pipe, height=64, width=96) as server, browsing(tmp_path) as browser:
        tab = browser.tab(f"http://127.0.0.1:{server.port}/")
        tab.click("#start")
        patch = tab.until("Number(document.getElementById('overlay').dataset.moved ?? 0)")
        assert not tab.js("document.getElementById('map-moved').hidden")
        assert 0 < patch < 24
        tab.until("document.getElementById('value-moved').innerText.includes('% moved')")
        value = tab.js("Number(document.getElementById('value-moved').dataset.value)")
        assert value in [block.moved_share for block in blocks]

        [session] = server.state.sessions.values()
        for motion in ("global", "off", "full"):
            tab.js(f"document.getElementById('motion').value = '{motion}'")
            tab.js("document.getElementById('motion').dispatchEvent(new Event('change'))")
            wait_until(lambda wanted=motion: session.request.method.motion == wanted)
        tab.click("#stop")
        tab.close()
