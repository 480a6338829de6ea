"""Wan 2.2's shape: 48 channels, 16x16 pixels a latent pixel and 32x32 a token, blocks of 8 frames.

A random checkpoint in LongLive 2.0's layout, loaded by its recipe's name, and run with both of its
autoencoders; and a checkpoint of one shape with an autoencoder of the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UniPCMultistepScheduler
from safetensors.torch import save_file
from tests import published, tiny
from tests.edit_fixtures import busy_frames
from tests.live_fixtures import file_path, levels, open_session, pixels, play
from tests.test_taehv import clamp, conv, grow, memory, of_layer, pool, relu, up
from tests.tiny import stock
from tests.video_samples import make_video
from torch import Tensor
from typer.testing import CliRunner

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.cli.app import app
from stillframe.engine.stream import BlockStats, StreamSettings
from stillframe.errors import ModelError
from stillframe.live import Worker
from stillframe.loading import hub
from stillframe.loading.load import load_pipeline, plan_pipeline
from stillframe.loading.memory import plan_memory
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.loading.taehv import TAEW_CONFIGS, load_taehv
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import VideoReader

CHANNELS, BLOCK, TOKEN = 48, 8, 32
HEIGHT, WIDTH = 64, 96
PUBLISHED = load_recipes()["longlive-2"]


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with the recipe, and what was published."""
    folder = tmp_path_factory.mktemp("longlive-2")
    transformer = tiny.transformer(channels=CHANNELS)
    base = published.base_folder(
        folder / "base", transformer=transformer, vae=tiny.wan22_autoencoder()
    )
    model, table = published.publish(folder, PUBLISHED, base, seed=3, channels=CHANNELS, flat=True)
    state = {name: value.clone() for name, value in tiny.taew22().state_dict().items()}
    save_file(state, folder / "tae.safetensors")
    return folder, table, model


@pytest.fixture(name="named", autouse=True)
def named_fixture(model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the recipe's name stand for what was published; gives its folder."""
    folder, table, _ = model
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    folder_: Path = folder
    return folder_


@pytest.fixture(name="pipes", scope="module")
def pipes_fixture(model: Any) -> dict[str, CausalWanPipeline]:
    """The model with each of its autoencoders."""
    folder, table, _ = model
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECIPES_VARIABLE, str(table))
        kinds = {"full": "full", "tiny": str(folder / "tae.safetensors")}
        return {
            name: load_pipeline("longlive-2", device="cpu", vae=vae) for name, vae in kinds.items()
        }


def moving(frames: int) -> Tensor:
    """A still picture in which, after the first block, the upper left token changes."""
    video = torch.rand(1, 1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    video = video.repeat(1, frames, 1, 1, 1)
    for t in range(40, frames):
        video[:, t, :, :TOKEN, :TOKEN] = (t % 5) / 5
    return video


# loading


def test_the_weights_are_those_that_were_published(model: Any, pipes: Any) -> None:
    weights = model[2].state_dict()
    loaded = pipes["full"].transformer.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


def test_entries_of_a_training_run_are_found_as_well(tmp_path: Path) -> None:
    """Whether its file has entries, and which, its authors' code leaves open."""
    transformer = tiny.transformer(channels=CHANNELS)
    base = published.base_folder(
        tmp_path / "base", transformer=transformer, vae=tiny.wan22_autoencoder()
    )
    model, table = published.publish(tmp_path, PUBLISHED, base, channels=CHANNELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECIPES_VARIABLE, str(table))
        pipe = load_pipeline("longlive-2", device="cpu", vae="full")
    weights = model.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in pipe.transformer.state_dict().items())


def test_numbers_are_the_recipe_s(pipes: Any) -> None:
    pipe = pipes["full"]
    assert (pipe.config.block_frames, pipe.frame_multiple) == (BLOCK, TOKEN)
    seen = pipe.generation_settings()
    assert (seen.window_frames + seen.sink_frames, seen.sink_frames) == (32, 8)
    assert seen.sigmas == pytest.approx((1, 0.9375, 0.8333, 0.625), abs=1e-4)
    assert pipe.timeline.spatial == 16


def test_an_autoencoder_of_the_other_shape_is_refused(named: Path, pipes: Any) -> None:
    said = "the autoencoder makes latents of 4 channels and the transformer takes 48"
    path = named / "taew2_1.safetensors"
    published.taehv_file(path)
    with pytest.raises(ModelError, match=said):
        load_pipeline("longlive-2", device="cpu", vae=str(path))
    parts = {**pipes["full"].components, "vae": tiny.autoencoder()}
    with pytest.raises(ModelError, match=said):
        CausalWanPipeline(**parts).stream(prompt_embeds=torch.zeros(1, 4, tiny.TEXT_DIM))
    with pytest.raises(ModelError, match="latents of 16 channels and the transformer takes 4:"):
        # a base on disk that the tiny autoencoder of Wan 2.1 would not fit
        plan_pipeline(str(tiny_folder(named)), 64, 64, vae="tiny", device="cpu")


def tiny_folder(folder: Path) -> Path:
    if not (place := folder / "of four channels").exists():
        published.base_folder(place)
    return place


def test_each_base_has_its_tiny_autoencoder(named: Path) -> None:
    """By its channels: those of a known base, or of its configuration on disk."""
    assert hub.tiny_vae("Wan-AI/Wan2.1-T2V-14B-Diffusers").files == ("taew2_1.safetensors",)
    assert hub.tiny_vae("Wan-AI/Wan2.2-TI2V-5B-Diffusers").files == ("taew2_2.safetensors",)
    pinned = f"Wan-AI/Wan2.2-TI2V-5B-Diffusers@{40 * 'a'}"
    assert hub.tiny_vae(pinned).files == ("taew2_2.safetensors",)
    assert hub.tiny_vae(str(named / "base")).files == ("taew2_2.safetensors",)
    assert hub.tiny_vae("somebody/unknown").files == ("taew2_1.safetensors",)


# autoencoders


@torch.no_grad()
def test_the_tiny_one_computes_what_it_is_published_for(named: Path) -> None:
    """Frame by frame: pixels in patches of 2x2 become channels before the first layer."""
    vae, state = load_taehv(named / "tae.safetensors"), tiny.taew22().state_dict()
    shape = {name: TAEW_CONFIGS[CHANNELS][name] for name in ("latent_channels", "patch_size")}
    assert {name: vae.config[name] for name in shape} == shape
    assert (vae.spatial_factor, vae.frames_to_trim) == (16, 3)
    video = torch.rand(1, 8, 3, 32, 48)
    cut = video.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 2, 4, 6, 3, 5)
    x = relu(conv(iter(cut.flatten(2, 4).unbind(1)), of_layer(state, "encoder.0")))
    for number, count in ((2, 2), (7, 2), (12, 1)):
        x = pool(x, of_layer(state, f"encoder.{number}.conv"), count)
        x = conv(x, of_layer(state, f"encoder.{number + 1}"), stride=2)
        for block in range(number + 2, number + 5):
            x = memory(x, [of_layer(state, f"encoder.{block}.conv.{i}") for i in (0, 2, 4)])
    latents = torch.stack(list(conv(x, of_layer(state, "encoder.17"))), 2)
    assert latents.std() > 0.1
    torch.testing.assert_close(vae.encode(video), latents, rtol=0, atol=1e-5)

    x = relu(conv(clamp(iter(latents.unbind(2))), of_layer(state, "decoder.1")))
    for number, count in ((3, 1), (9, 2), (15, 2)):
        for block in range(number, number + 3):
            x = memory(x, [of_layer(state, f"decoder.{block}.conv.{i}") for i in (0, 2, 4)])
        x = grow(up(x), of_layer(state, f"decoder.{number + 4}.conv"), count)
        x = conv(x, of_layer(state, f"decoder.{number + 5}"))
    made = torch.stack(list(conv(relu(x), of_layer(state, "decoder.22"))), 1)
    made = made.unflatten(2, (3, 2, 2)).permute(0, 1, 2, 5, 3, 6, 4).flatten(5, 6).flatten(3, 4)
    assert made.std() > 0.1
    torch.testing.assert_close(vae.decode(latents), made[:, 3:].clamp(0, 1), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 3, BLOCK])
def test_the_full_one_streamed_is_diffusers_on_the_whole_clip(block: int) -> None:
    vae = tiny.wan22_autoencoder()
    count = 1 + 4 * (3 * block - 1)
    video = torch.rand(1, count, 3, 32, 32)
    stream = open_autoencoder(vae, block)
    # however frames come, blocks are the same
    parts = [x for piece in video.split(5, 1) for x in stream.encode(piece)]
    assert [x.shape for x in parts] == [(1, CHANNELS, block, 2, 2)] * 3
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    expected = vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(torch.cat(parts, 2), (expected - mean) / std, rtol=0, atol=1e-5)
    frames = torch.cat([stream.decode(part) for part in parts], 1)
    whole = vae.decode(expected).sample.transpose(1, 2)
    torch.testing.assert_close(frames, (whole + 1) / 2, rtol=0, atol=1e-5)
    assert frames.shape == video.shape


# the engine


def test_its_authors_sampler_goes_down_the_same_levels_to_another_sample() -> None:
    """UniPC, which draws no noise but the first; docs/models.md has the difference."""
    model, generator = tiny.transformer(channels=CHANNELS), torch.Generator().manual_seed(0)
    text = torch.randn(1, 5, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(5))
    shape = 1, CHANNELS, BLOCK, 4, 6
    noise = [torch.randn(shape, generator=generator) for _ in PUBLISHED.generate_sigmas]

    def velocity(x: Tensor, level: float) -> Tensor:
        return stock(model, x, torch.full((BLOCK,), level, dtype=torch.float64), text)

    ours = torch.zeros(shape)
    for eps, level in zip(noise, PUBLISHED.generate_sigmas, strict=True):
        x = (1 - level) * ours + level * eps
        ours = x - level * velocity(x, level)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=PUBLISHED.shift
    )
    scheduler.set_timesteps(4)
    levels = torch.tensor(PUBLISHED.generate_sigmas)
    torch.testing.assert_close(scheduler.sigmas[:-1], levels, rtol=0, atol=1e-3)
    theirs = noise[0]
    for time in scheduler.timesteps:
        theirs = scheduler.step(velocity(theirs, float(time) / 1000), time, theirs).prev_sample
    spreads = [x.square().mean().sqrt().item() for x in (ours, theirs, ours - theirs)]
    assert spreads == pytest.approx([0.9, 1.2, 1.4], abs=0.1)


@pytest.mark.parametrize(("vae", "recovery"), [("full", "aligned"), ("tiny", "none")])
def test_fused_passes_equal_plain_ones(vae: str, recovery: str, pipes: Any) -> None:
    method = InterFramePruning(recovery=recovery, motion="off")
    made = []
    for execution in ("reference", "fused"):
        kept: list[Tensor] = []
        stream = pipes[vae].stream(
            "oil painting",
            method=method,
            execution=execution,
            seed=4,
            on_block=lambda stats, kept=kept: kept.append(stats.keep),
        )
        frames = [stream.push(moving(93)), stream.flush()]
        made.append(torch.cat([x for x in frames if x is not None], 1))
        # one token of 32x32 pixels is what changed, and no other
        assert [x.shape for x in kept] == [(1, BLOCK, HEIGHT // TOKEN, WIDTH // TOKEN)] * 3
        assert kept[0].all()
        changed = kept[2].flatten(2)
        assert changed[..., 0].all()
        assert not changed[..., 1:].any()
    assert made[0].shape == (1, 93, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-4)
    # what was not computed is what was shown, but for where new pictures meet it
    still = made[0][:, 61:, :, TOKEN:, TOKEN:]
    assert torch.equal(still, still[:, :1].expand_as(still))


def test_tokens_that_move_are_followed(pipes: Any) -> None:
    """A picture that pans by a pixel a frame is reused from where it was, token by token."""
    coarse = torch.rand(1, 3, 8, 24, generator=torch.Generator().manual_seed(2))
    wide = F.interpolate(coarse, (2 * HEIGHT, 192), mode="bicubic").clamp(0, 1)[0]
    video = torch.stack([wide[..., max(t - 32, 0) :][..., :160] for t in range(64)]).unsqueeze(0)
    blocks: list[BlockStats] = []
    method = InterFramePruning(motion="full")
    stream = pipes["tiny"].stream("oil", method=method, seed=4, on_block=blocks.append)
    frames = stream.push(video)
    assert frames is not None
    assert bool(frames.isfinite().all())
    moved, motion = blocks[1].moved, blocks[1].motion
    assert moved is not None
    assert motion is not None
    assert moved.shape == (1, BLOCK, 4, 5)
    assert moved.float().mean() > 0.2
    assert motion[moved][:, 0].median() > 1


def test_what_the_planner_counts_is_what_a_stream_holds(named: Path, pipes: Any) -> None:
    taew = str(named / "tae.safetensors")
    plan, _ = plan_pipeline("longlive-2", HEIGHT, WIDTH, vae=taew, dtype="float32", device="cpu")
    stream = pipes["tiny"].stream("oil painting", method=InterFramePruning(motion="off"))
    stream.push(moving(93))
    assert stream.memory["cache"] == plan.cache
    assert stream.memory["recovery"] == plan.recovery


def test_kernels_that_follow_patches_of_another_size_are_not_planned_for() -> None:
    """On a GPU, too: patches of 32 pixels are followed in torch, and hold what that holds."""
    settings = StreamSettings((0.9, 0.4), block_frames=2, window_frames=4)
    config = dict(tiny.transformer(channels=CHANNELS).config)
    plans = [
        plan_memory(
            config, dict(tiny.taew22().config), "tiny", None,
            height=HEIGHT, width=WIDTH, dtype=torch.float32, settings=settings,
            recovery="aligned", on_cpu=on_cpu,
        )
        for on_cpu in (True, False)
    ]  # fmt: skip
    assert plans[0].motion == plans[1].motion > 0


# the command line, and live


@pytest.mark.parametrize("vae", ["full", "tiny"])
def test_the_command_line_edits_and_generates(vae: str, named: Path, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mkv", busy_frames(35, 100, 70, move=30))
    coder = "full" if vae == "full" else str(named / "tae.safetensors")
    usual = ["--model", "longlive-2", "--vae", coder, "--device", "cpu", "--quiet"]
    size = ["--prompt", "oil painting", "--height", "64", "--width", "96", *usual]
    out, made = tmp_path / "out.mkv", tmp_path / "made.mkv"
    runs = {out: ["edit", str(clip)], made: ["generate", "--frames", "35"]}
    for path, arguments in runs.items():
        done = CliRunner().invoke(app, [*arguments, "-o", str(path), *size])
        assert done.exit_code == 0, done.output
        with VideoReader(path) as video:
            assert (video.width, video.height, len(list(video))) == (96, 64, 35)


def test_sides_are_whole_tokens(named: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.mkv"
    usual = ["--model", "longlive-2", "--vae", str(named / "tae.safetensors"), "--device", "cpu"]
    size = ["--prompt", "oil", "--height", "48", "--width", "96"]
    refused = CliRunner().invoke(app, ["generate", "-o", str(out), *size, *usual])
    assert refused.exit_code == 2
    assert "height and width must be multiples of 32, got 48" in refused.stderr
    assert not out.exists()


def test_a_session_is_the_file(pipes: Any) -> None:
    """Frames of a size that no token fits, as `serve` has them."""
    frames, worker = levels(64, 70, 101), Worker()
    session = open_session(pipes["tiny"], worker, policy="all")
    made, expected = pixels(play(session, worker, frames)), file_path(pipes["tiny"], frames)
    # its autoencoder leaves out three frames in front, so that the end waits for more
    assert len(made) == 61
    assert np.array_equal(made, expected[:61])
    session.close()
