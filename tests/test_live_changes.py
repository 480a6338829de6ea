"""A live session that is changed, paused and reset: at which block, at what cost."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tests.live_fixtures import (
    BLOCK,
    counted,
    embeds,
    file_path,
    levels,
    open_session,
    pipe_fixture,  # noqa: F401
    pipeline,
    pixels,
    play,
    read,
    shares,
    while_decoding,
)

from stillframe.controls import Box, Controls, Cuts, Gop, Refresh, Region
from stillframe.live import (
    Worker,
)
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline

# what hangs shall not hang for long
pytestmark = pytest.mark.timeout(60)


# changes


def test_a_prompt_changes_at_the_next_block_and_nothing_is_lost(pipe: CausalWanPipeline) -> None:
    """In the middle of a block: that one is finished, the next is whole, then pruning goes on.

    Context and recovery store are kept, so it is what the engine makes with `set_text` there, and
    not what a fresh stream would make.
    """
    frames, worker = levels(72, 64, 96), Worker()
    session, told = open_session(pipe, worker, policy="all"), []

    def during() -> None:
        if len(session.telemetry.blocks) == 2:
            told.append(session.change(prompt="sepia"))

    with while_decoding(pipe, during):
        out = play(session, worker, frames)
    assert told == [3]
    got = shares(session)
    assert got[0] == got[3] == 1
    assert max(got[1], got[2], *got[4:]) < 1
    assert [frame.timestamp for frame in out] == pytest.approx([i / 10 for i in range(72)])
    stream = pipe.stream(prompt_embeds=embeds(), generator=torch.Generator().manual_seed(0))
    parts = []
    for block in range(6):
        if block == 3:
            stream.set_text(pipe.text("sepia"))
        part = frames[block * BLOCK :][:BLOCK].astype(np.float32).transpose(0, 3, 1, 2) / 255
        parts.append(stream.push(torch.from_numpy(part).unsqueeze(0)))
    expected = (torch.cat(parts, 1)[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()  # type: ignore[arg-type]
    assert np.array_equal(pixels(out), expected)
    assert not np.array_equal(expected[36:], file_path(pipe, frames[36:]))
    session.close()


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({"prompt": "night"}, True),
        ({"strength": 0.7}, True),
        ({"num_inference_steps": 1}, True),
        ({"sigmas": [0.9, 0.5, 0.2]}, True),
        ({"recovery": "clean"}, True),
        ({"tolerance": 3.5}, False),
        ({"tolerance": 2.5, "trim": 0.1}, False),
        ({"method": InterFramePruning(tolerance=5.0)}, False),
        ({"motion": "off"}, False),
        ({"motion": "global", "tolerance": 2.5}, False),
        # what the store's entries were computed from is compared in other units
        ({"method": InterFramePruning(tau1=0.2)}, True),
        ({"method": "prune"}, False),
        ({"method": "full"}, True),
        ({"prompt": "night", "strength": 0.6, "recovery": "noisy", "tolerance": 2.5}, True),
    ],
)
def test_what_a_change_costs_is_at_most_one_whole_block(
    pipe: CausalWanPipeline, changes: dict[str, Any], whole: bool
) -> None:
    """A still scene shows it: after the change one block is whole, or none, and then nothing."""
    worker, still = Worker(), levels(1).repeat(72, 0)
    session = open_session(pipe, worker, policy="all")
    out = play(session, worker, still[:36])
    assert session.change(**changes) == 3
    out += play(session, worker, still[36:], 3.6)
    after = [1.0] * 3 if changes == {"method": "full"} else [float(whole), 0, 0]
    assert shares(session) == [1, 0, 0, *after]
    assert [frame.timestamp for frame in out] == pytest.approx([i / 10 for i in range(72)])
    same = np.array_equal(pixels(out), file_path(pipe, still))
    assert same == (not whole), "what was not recomputed is what it was"
    session.close()


def test_what_was_changed_is_what_the_model_is_run_with(pipe: CausalWanPipeline) -> None:
    worker, frames = Worker(), levels(48)
    session = open_session(pipe, worker, policy="all", method="full", sigmas=[0.8, 0.5])
    with counted(pipe.transformer.condition_embedder) as seen:
        play(session, worker, frames[:12])
        session.change(sigmas=(0.9, 0.6, 0.3))
        play(session, worker, frames[12:24], 1.2)
        session.change(strength=0.5)
        play(session, worker, frames[24:36], 2.4)
        session.change(num_inference_steps=2)
        play(session, worker, frames[36:], 3.6)
    expected = [
        (0.8, 0.5),
        (0.9, 0.6, 0.3),
        pipe.settings(strength=0.5, num_inference_steps=3).sigmas,
        pipe.settings(strength=0.5, num_inference_steps=2).sigmas,
    ]
    flat = [1000 * sigma for sigmas in expected for sigma in (*sigmas, 0.0)]
    assert [float(t) for t in seen] == pytest.approx(flat)
    assert session.request.settings.sigmas == expected[-1]
    session.close()


def test_changes_before_the_first_block_are_as_if_it_was_opened_with_them(
    pipe: CausalWanPipeline,
) -> None:
    frames, worker = levels(24), Worker()
    session = open_session(pipe, worker, policy="all", prompt_embeds=embeds(9))
    session.change(prompt_embeds=embeds(), recovery="clean", strength=0.3)
    got = pixels(play(session, worker, frames))
    assert np.array_equal(
        got, file_path(pipe, frames, InterFramePruning(recovery="clean"), strength=0.3)
    )
    session.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strength": 2.0}, "strength must be in"),
        ({"sigmas": [0.2, 0.4]}, "fall strictly"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"recovery": "magic"}, "unknown recovery 'magic'"),
        ({"tolerance": -1.0}, "tolerance must be in"),
        ({"motion": "some"}, "motion is off, global or full, got 'some'"),
        ({"motion": "full", "hold": False}, "motion 'full' needs the detector 'pixels'"),
        ({"method": "full", "motion": "off"}, "'full' has no motion"),
        ({"tau7": 1.0}, "'prune' has no tau7"),
        ({"method": "full", "tolerance": 2}, "'full' has no tolerance"),
        ({"conditioning": "source"}, "no source channels"),
        ({"prompt": "a", "prompt_embeds": embeds()}, "either prompt or prompt_embeds"),
        ({"prompt_embeds": embeds().expand(2, -1, -1)}, r"one prompt.* got \(2, 5, 16\)"),
    ],
)
def test_a_wrong_change_is_refused_and_changes_nothing(
    pipe: CausalWanPipeline, wrong: dict[str, Any], said: str
) -> None:
    frames, worker = levels(24), Worker()
    session = open_session(pipe, worker, policy="all")
    out = play(session, worker, frames[:12])
    with pytest.raises(ValueError, match=said):
        session.change(**{"prompt": "night", **wrong} if "prompt_embeds" not in wrong else wrong)
    out += play(session, worker, frames[12:], 1.2)
    assert np.array_equal(pixels(out), file_path(pipe, frames))
    session.close()


# pause, reset, sizes


def test_a_still_scene_costs_nothing_after_its_first_block(pipe: CausalWanPipeline) -> None:
    worker, still = Worker(), levels(1).repeat(60, 0)
    session = open_session(pipe, worker)
    with counted(pipe.transformer.patch_embedding) as seen:
        play(session, worker, still)
    assert [block.kept for block in session.telemetry.blocks] == [18, 0, 0, 0, 0]
    assert len(seen) == len(session.request.settings.sigmas) + 1
    session.close()


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_pause_turns_frames_away_and_keeps_the_stream(
    pipe: CausalWanPipeline, policy: str
) -> None:
    worker, frames = Worker(), levels(60, 64, 96)
    session = open_session(pipe, worker, policy=policy)
    out = play(session, worker, frames[:15])
    session.pause()
    assert session.paused
    assert not any(session.push(frame, 1.5 + i / 10) for i, frame in enumerate(frames[15:24]))
    assert session.dropped == 9 + (3 if policy == "latest" else 0)
    session.resume()
    out += play(session, worker, frames[24:48], 2.4)
    kept = [0.1 * i for i in (*range(12), *([] if policy == "latest" else range(12, 15)))]
    stamps = [frame.timestamp for frame in out]
    assert stamps[: len(kept)] == pytest.approx(kept)
    assert stamps[len(kept)] == pytest.approx(2.4)
    assert {block.stream for block in session.telemetry.blocks} == {0}
    assert all(share < 1 for share in shares(session)[1:])
    session.close()


@pytest.mark.parametrize("policy", ["latest", "all"])
@pytest.mark.parametrize("kind", ["tiny", "trimming"])
def test_after_a_reset_a_session_is_as_new(kind: str, policy: str) -> None:
    pipe, worker, frames = pipeline(kind), Worker(), levels(66)
    session = open_session(pipe, worker, policy=policy)
    out = play(session, worker, frames[:27])
    session.reset()
    out += play(session, worker, frames[27:], 2.7)
    after = [frame for frame in out if frame.timestamp > 2.65]
    fresh = file_path(pipe, frames[27:])
    assert np.array_equal(pixels(after), fresh[: len(after)])
    before = [frame for frame in out if frame.timestamp < 2.65]
    if policy == "all":
        assert np.array_equal(pixels(before), file_path(pipe, frames[:27]))
        assert session.dropped == 0
    else:
        held = 3 if kind == "trimming" else 0
        assert (len(before), session.dropped) == (24 - held, 3 + held)
    assert next(b.kept_share for b in session.telemetry.blocks if b.stream == 1) == 1
    session.close()


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_frames_of_another_size_begin_a_new_stream(pipe: CausalWanPipeline, policy: str) -> None:
    worker, small, large = Worker(), levels(20), levels(24, 48, 64)
    session = open_session(pipe, worker, policy=policy)
    out = play(session, worker, small)
    out += play(session, worker, large, 2.0)
    after = [frame for frame in out if frame.timestamp > 1.95]
    assert np.array_equal(pixels(after), file_path(pipe, large))
    before = pixels([frame for frame in out if frame.timestamp < 1.95])
    whole = file_path(pipe, small)
    assert np.array_equal(before, whole if policy == "all" else whole[:12])
    assert session.dropped == (0 if policy == "all" else 8)
    stamps = [frame.timestamp for frame in out]
    assert stamps == sorted(set(stamps))
    session.close()


# prompts and controls


def test_a_prompt_is_encoded_by_the_worker_in_a_turn_of_its_own(pipe: CausalWanPipeline) -> None:
    """Nobody who asks waits for it, and others wait for one encoding, not for a block besides."""
    worker, frames, encoders = Worker(), levels(36), list[int]()
    hook = pipe.text_encoder.register_forward_pre_hook(
        lambda _module, _args: encoders.append(threading.get_ident())
    )
    asks, other = (open_session(pipe, worker, policy="all") for _ in range(2))
    for number, frame in enumerate(frames[:24]):
        asks.push(frame, float(number), timeout=0)
        other.push(frame, float(number), timeout=0)
    for prompt in ("night", "sepia", "night sepia"):
        asks.change(prompt=prompt)
    assert encoders == []
    runner = threading.Thread(target=lambda: [worker.step() for _ in range(3)])
    runner.start()
    runner.join()
    hook.remove()
    assert encoders == [runner.ident], "the latest wish alone, and not on this thread"
    # one turn for the prompt, one for the other's block, and then its own
    assert [len(each.telemetry.blocks) for each in (asks, other)] == [1, 1]
    fresh = open_session(pipe, Worker(), policy="all", prompt="night sepia", prompt_embeds=None)
    assert np.array_equal(pixels(read(asks)), pixels(play(fresh, fresh._worker, frames[:12])))
    for session in (asks, other, fresh):
        session.close()


CONTROLS = [
    Controls(Gop(2)),
    Controls(Refresh(3)),
    Controls(Cuts()),
    Controls(Region(Box(0.0, 0.0, 0.5, 1.0), "always")),
]


@pytest.mark.parametrize("control", CONTROLS, ids=["gop", "refresh", "cuts", "region"])
def test_a_session_with_controls_is_a_file_with_them(
    pipe: CausalWanPipeline, control: Controls
) -> None:
    worker, frames = Worker(), levels(72, 64, 96)
    session = open_session(pipe, worker, policy="all", control=control)
    got = pixels(play(session, worker, frames))
    assert np.array_equal(got, file_path(pipe, frames, control=control))
    session.close()


def test_a_control_comes_and_goes_between_blocks(pipe: CausalWanPipeline) -> None:
    """A still scene shows it: whole blocks are counted from the change on."""
    worker, still = Worker(), levels(1).repeat(96, 0)
    session = open_session(pipe, worker, policy="all")
    play(session, worker, still[:36])
    session.change(control=Controls(Gop(2)))
    play(session, worker, still[36:84], 3.6)
    session.change(control=None, tolerance=2.0)
    play(session, worker, still[84:], 8.4)
    assert shares(session) == [1, 0, 0, 0, 0, 1, 0, 0]
    spared = Controls(Region(Box(0.0, 0.0, 0.5, 1.0), "never"))
    with pytest.raises(ValueError, match="'full' computes everything"):
        session.change(method="full", control=spared)
    assert session.request.method.name == "prune"
    session.close()
