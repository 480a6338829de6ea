"""Teacher forcing against second derivations: a masked stock forward, a block-by-block rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn
from training.autoencoder import autoencoder_losses, copy_of, export, seam_error
from training.bidirectional import sibling
from training.evaluate import latent_change, whole_blocks
from training.latents import channel_sensitivity
from training.linear_start import build_linear
from training.rollout import Rollout
from training.teacher_forcing import TeacherForcing
from training.velocity import channel_weights
from training.warm_start import start_from_source

from stillframe.autoencoders.tiny import TinyVideoAutoencoder

SIZE, HEIGHT, WIDTH, CHANNELS, BATCH = 3, 4, 6, 4, 2
TOKENS = HEIGHT // 2 * WIDTH // 2


def fresh(channels: int) -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2 * channels,
        out_channels=channels,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    ).eval()


def tiny() -> Any:
    model = fresh(CHANNELS)
    # the published scale leaves gates near zero, where attention would hardly count
    for block in model.blocks:
        nn.init.normal_(block.scale_shift_table, std=0.5)
    return model


def inputs(blocks: int) -> dict[str, Any]:
    torch.manual_seed(blocks)
    shape = (3, BATCH, CHANNELS, blocks * SIZE, HEIGHT, WIDTH)
    noisy, clean, source = torch.randn(shape)
    text = torch.randn(BATCH, 5, 8)
    return {
        "noisy": noisy,
        "clean": clean,
        "source": source,
        "sigma": torch.rand(BATCH, blocks),
        "text": text,
    }


class Masked(WanAttnProcessor):
    """diffusers' own processor, under a mask."""

    mask: Tensor

    def __call__(self, attn: Any, hidden_states: Any, *rest: Any) -> Any:
        return super().__call__(attn, hidden_states, None, self.mask, rest[-1])


class Twice(nn.Module):
    """Rotary tables of a clip, once for its clean and once for its noisy frames."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rope(hidden_states[:, :, : hidden_states.shape[2] // 2])
        return torch.cat([cos, cos], 1), torch.cat([sin, sin], 1)


def sees(query: tuple[bool, int], key: tuple[bool, int]) -> bool:
    """Whether a frame attends to another; a frame is (noisy, number)."""
    (noisy, frame), (key_noisy, key_frame) = query, key
    block, key_block = frame // SIZE, key_frame // SIZE
    if key_block == block:
        return key_noisy == noisy
    return not key_noisy and (key_block == block - 1 or (key_frame == 0 and block > 0))


def masked_forward(model: Any, clip: dict[str, Any]) -> Tensor:
    """The whole sequence, clean frames and then noisy ones, through diffusers' own code."""
    frames = clip["noisy"].shape[2]
    names = [(noisy, i) for noisy in (False, True) for i in range(frames)]
    mask = torch.tensor([[sees(a, b) for b in names] for a in names])
    processor = Masked()
    processor.mask = mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    for block in model.blocks:
        block.attn1.processor = processor
    hidden = torch.cat(
        [
            torch.cat([clip["clean"], clip["noisy"]], 2),
            torch.cat([clip["source"], clip["source"]], 2),
        ],
        1,
    )
    levels = 1000 * clip["sigma"].repeat_interleave(SIZE * TOKENS, 1)
    rope, model.rope = model.rope, Twice(model.rope)
    try:
        velocity = model(
            hidden_states=hidden,
            timestep=torch.cat([torch.zeros_like(levels), levels], 1),
            encoder_hidden_states=clip["text"],
            return_dict=False,
        )[0]
    finally:
        model.rope = rope
    return velocity[:, :, frames:]


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
@torch.no_grad()
def test_items_equal_a_masked_sequence(blocks: int) -> None:
    model, clip = tiny(), inputs(blocks)
    expected = masked_forward(model, clip)
    actual = TeacherForcing(model, SIZE)(**clip)
    assert (actual - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1


@pytest.mark.parametrize("later", [1, 2, 3])
@torch.no_grad()
def test_no_block_sees_a_later_one(later: int) -> None:
    model, clip = tiny(), inputs(4)
    predict = TeacherForcing(model, SIZE)
    before = predict(**clip)
    changed = {name: value.clone() for name, value in clip.items()}
    first = later * SIZE
    for name in ("noisy", "clean", "source"):
        changed[name][:, :, first:] += 1
    changed["sigma"][:, later:] *= 0.5
    after = predict(**changed)
    assert torch.equal(before[:, :, :first], after[:, :, :first])
    assert not torch.allclose(before[:, :, first:], after[:, :, first:], atol=1e-3)


@torch.no_grad()
def test_every_block_sees_its_context() -> None:
    model, clip = tiny(), inputs(4)
    predict = TeacherForcing(model, SIZE)
    before = predict(**clip)
    sink = {**clip, "clean": clip["clean"].clone()}
    sink["clean"][:, :, 0] += 1
    moved = (predict(**sink) - before).abs().amax((0, 1, 3, 4)).unflatten(0, (4, SIZE)).amax(1)
    assert moved[0] == 0
    assert (moved[1:] > 1e-4).all()
    noisy = {**clip, "noisy": clip["noisy"].clone()}
    noisy["noisy"][:, :, :SIZE] += 1
    other = predict(**noisy) - before
    assert other[:, :, :SIZE].abs().max() > 1e-3
    assert other[:, :, SIZE:].abs().max() == 0


@torch.no_grad()
def test_gap_moves_only_the_sink() -> None:
    model, clip = tiny(), inputs(4)
    predict = TeacherForcing(model, SIZE)
    near, far = predict(**clip), predict(**clip, gap=40)
    assert (near - far)[:, :, : 2 * SIZE].abs().max() <= 1e-5
    assert (near - far)[:, :, 2 * SIZE :].abs().max() > 1e-4


@torch.no_grad()
def test_a_rollout_is_teacher_forcing_on_its_own_output() -> None:
    model, clip = tiny(), inputs(4)
    sigma = 0.7
    noise = clip["noisy"]
    made = Rollout(model, SIZE)(clip["source"], clip["text"], [sigma], noise[None])
    predict = TeacherForcing(model, SIZE)
    velocity = predict(
        sigma * noise, made, clip["source"], torch.full((BATCH, 4), sigma), clip["text"]
    )
    assert (sigma * noise - sigma * velocity - made).abs().max() <= 1e-5


@pytest.mark.parametrize("channels", [1, 2, 3])
@torch.no_grad()
def test_training_starts_from_the_source(channels: int) -> None:
    """Also where noisy and source patch fill the width, as of the bundled model's 32 channels."""
    model, shape = fresh(channels), (2, channels, SIZE, HEIGHT, WIDTH)
    noise, source, text = torch.randn(shape), torch.randn(shape), torch.randn(2, 5, 8)

    def apart() -> float:
        both = torch.cat([noise, source], 1)
        found = model(both, torch.full((2,), 1000.0), text, return_dict=False)[0]
        wanted = noise - source
        return float((found - wanted).norm() / wanted.norm())

    assert apart() > 0.9
    start_from_source(model)
    assert apart() < 0.35


def test_patches_that_do_not_fit_into_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="16 numbers each do not fit into a width of 24"):
        start_from_source(fresh(4))


def test_what_starts_as_nothing_is_trained_from_the_first_step_on() -> None:
    model = fresh(2)
    start_from_source(model)
    both, text = torch.randn(1, 4, SIZE, HEIGHT, WIDTH), torch.randn(1, 5, 8)
    model(both, torch.full((1,), 500.0), text, return_dict=False)[0].square().sum().backward()
    nothing = [n for n, x in model.named_parameters() if n.endswith("weight") and not x.any()]
    assert len(nothing) == 3  # of the time embedding and of two blocks
    for name in nothing:
        assert model.get_parameter(name).grad.any(), name


def test_latents_of_an_exported_autoencoder_are_normalised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = build_linear(6, refine=0)
    last = vae.encoder[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight.mul_(0.3)
        last.bias.copy_(torch.linspace(-0.5, 0.5, 6))
    clips = [torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8) for _ in range(3)]
    export(vae, clips, tmp_path)
    shipped = TinyVideoAutoencoder.from_pretrained(tmp_path).float()
    source = torch.cat([clip[None].float() / 255 for clip in clips])
    with torch.no_grad():
        raw, latents = vae.encode_raw(source).transpose(1, 2), shipped.encode(source)
        back = shipped.decode(latents)
        plain = vae.decode_raw(raw.transpose(1, 2)).clamp(0, 1)
    assert raw.std((0, 2, 3, 4)).max() < 0.5
    spread = latents.std((0, 2, 3, 4))
    assert spread.min() > 0.5  # about 1: statistics are also of styles
    assert spread.max() < 2
    torch.testing.assert_close(back, plain, atol=5e-3, rtol=0)  # half precision
    assert copy_of(shipped).config["latents_std"] == shipped.config["latents_std"]


@torch.no_grad()
def test_a_refinement_starts_as_nothing() -> None:
    torch.manual_seed(0)
    grown = build_linear(6, refine=5).eval()
    plain = build_linear(6, refine=0).eval()
    own = {k: v for k, v in grown.state_dict().items() if not k.startswith("refine.")}
    plain.load_state_dict(own)
    latents = torch.randn(1, 2, 6, 3, 4)
    assert torch.equal(grown.decode_raw(latents), plain.decode_raw(latents))
    assert grown.refine is not None
    for parameter in grown.refine.parameters():
        parameter.normal_(std=0.2)
    assert not torch.equal(grown.decode_raw(latents), plain.decode_raw(latents))


@torch.no_grad()
def test_a_channel_counts_by_what_it_changes_in_the_picture() -> None:
    torch.manual_seed(0)
    vae = build_linear(4, refine=0).eval()
    first = vae.decoder[1]
    assert isinstance(first, nn.Conv2d)
    first.weight[:, 2] = 0  # a channel that nothing is made of
    found = channel_sensitivity(vae, 0.3 * torch.randn(2, 3, 4, 5, 6))
    assert found[2] == 0
    assert found.mean().item() == pytest.approx(1)
    weights = channel_weights(found)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.min() > 0  # the next block sees all of them


@torch.no_grad()
def test_an_autoencoder_is_asked_for_stillness_and_for_no_seams() -> None:
    torch.manual_seed(0)
    target = torch.rand(1, 4, 3, 32, 32)
    error = 0.05 * torch.ones(1, 4, 1, 1, 1)
    seamed = (error * (torch.arange(32) // 8 % 2)).expand_as(target)
    # the same with its steps in the middle of patches
    shifted = (error * ((torch.arange(32) + 4) // 8 % 2)).expand_as(target)
    assert seam_error(seamed, 8) > seam_error(shifted, 8) == 0

    class Made(nn.Module):
        """Encodes to nothing, and decodes to the target and an error."""

        def __init__(self, error: Tensor) -> None:
            super().__init__()
            self.error = error

        def encode_raw(self, frames: Tensor) -> Tensor:
            return frames.new_zeros(len(frames), 1, 1, 1, 1)

        def decode_raw(self, latents: Tensor) -> Tensor:
            return target + self.error

    def cost(error: Tensor) -> float:
        made: Any = Made(error)
        return autoencoder_losses(made, target, target[:0]).total.item()

    still = error.expand_as(target)
    flicker = still * torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1, 1, 1)
    assert cost(flicker) > cost(still)
    assert cost(seamed) > cost(shifted)


def test_an_evaluation_takes_two_whole_blocks() -> None:
    assert [whole_blocks(frames) for frames in (24, 35, 36, 50)] == [24, 24, 36, 48]
    with pytest.raises(ValueError, match="takes 24 or more frames, got 16"):
        whole_blocks(16)


def test_changes_are_those_after_the_first_two() -> None:
    latents = torch.zeros(1, 3, 5, 2, 4)
    latents[:, :, 1:] = 7.0
    latents[:, :, 3:, :, 2:] += 0.5
    latents[:, :, 4:, 0, 0] -= 1.0
    assert latent_change(latents).tolist() == [0.0, 0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match="takes 4 latent frames, got 3"):
        latent_change(latents[:, :, :3])


def test_a_sibling_is_the_model_that_is_shown_no_source() -> None:
    model = tiny()
    given = inputs(2)
    rest = {
        "timestep": torch.tensor([500.0, 20.0]),
        "encoder_hidden_states": given["text"],
        "return_dict": False,
    }
    unseen = torch.cat([given["noisy"], torch.zeros_like(given["source"])], 1)
    with torch.no_grad():
        expected = model(hidden_states=unseen, **rest)[0]
        found = sibling(model).eval()(hidden_states=given["noisy"], **rest)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
