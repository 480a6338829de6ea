"""The decoder's training: what it measures, what its loss asks for, and that it moves only that."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training.decoder import (
    STYLES,
    Pool,
    Trainer,
    decoder_losses,
    make_entry,
    window,
)
from training.evaluate import Model
from training.filters import apply_style
from training.loop import write_checkpoint
from training.patterns import grid_ratio, line_correlation, still_change

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.models import bundled_models

TINY = bundled_models()["tiny"]
ALL = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_grid_is_told_from_a_picture() -> None:
    frames = noise(2, 3, 64, 96)
    assert grid_ratio(frames, 16) == pytest.approx(1, abs=0.05)
    steps = frames.clone()
    steps[..., 16:32, :] += 1  # across two rows where patches meet, of three
    assert grid_ratio(steps, 16) > 1.5
    assert grid_ratio(steps, 16, like=steps) == 1
    assert grid_ratio(steps.mT, 16) == pytest.approx(grid_ratio(steps, 16))


def test_what_moves_four_levels_every_fourth_frame_changes_by_two() -> None:
    frames = noise(1, 3, 8, 8).expand(24, -1, -1, -1).clone()
    assert still_change(frames) == 0
    frames[::4] += 4 / 255  # up, and down again
    # frames 12 to 23: of eleven changes those after 12, before and after 16 and 20
    assert still_change(frames) == pytest.approx(4 * 5 / 11, rel=1e-4)


def test_lines_correlate_with_themselves_and_not_with_noise() -> None:
    frames = noise(2, 3, 32, 32)
    assert line_correlation(frames, frames) == pytest.approx(1)
    assert line_correlation(0.3 * frames + 0.1, frames) == pytest.approx(1, abs=1e-4)
    assert abs(line_correlation(noise(2, 3, 32, 32, seed=1), frames)) < 0.1


def test_the_loss_asks_for_stillness_and_for_no_grid() -> None:
    target = noise(1, 8, 3, 64, 64)
    error = 0.02 * torch.randn(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    same = decoder_losses(target + error, target, ALL)
    assert same.shimmer < 1e-6
    other = error * torch.tensor([1, -1] * 4).view(1, 8, 1, 1, 1)
    shimmering = decoder_losses(target + other, target, ALL)
    assert shimmering.squared == pytest.approx(same.squared.item(), rel=1e-3)
    assert shimmering.total > same.total + 0.01
    # as large an error that is another one in every token
    tokens = 0.02 * torch.randn(1, 1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.interpolate(tokens[0], (64, 64), mode="bicubic")[None]
    stepped = tokens.repeat_interleave(16, -1).repeat_interleave(16, -2)
    stepped = stepped * smooth.square().mean().sqrt() / stepped.square().mean().sqrt()
    with_steps, without = (decoder_losses(target + e, target, ALL) for e in (stepped, smooth))
    assert with_steps.seams > 4 * without.seams
    assert with_steps.total > without.total


def test_a_window_is_whole_tokens_inside() -> None:
    for height, width in ((250, 426), (426, 250), (480, 270), (240, 416)):
        frames = noise(1, 3, height, width)
        seen = window(frames, random.Random(0))
        assert tuple(seen.shape[-2:]) == ((240, 416) if width > height else (416, 240))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of one small clip."""
    folder = tmp_path_factory.mktemp("pool")
    model = Model(TINY, torch.device("cpu"))
    clip = (255 * noise(36, 3, 48, 64)).byte()
    write_checkpoint(make_entry(model, clip, random.Random(0), made=1), folder / "0.pt")
    return folder


def test_an_entry_is_latents_with_the_frames_that_they_stand_for(pool: Path) -> None:
    entry = torch.load(pool / "0.pt", weights_only=True)
    latents, target = entry["latents"], entry["target"]
    assert len(latents) == len(target) == 3
    assert target.shape[1] == 4 * latents.shape[1] == 24
    assert target.shape[-1] == 8 * latents.shape[-1]
    photo = target[-1, 7:8].float() / 255
    styled = [255 * apply_style(name, photo) for name in STYLES]
    # what was made and what was encoded are each a style of the source, to a level or two
    for made in target[:, 7]:
        assert min((made - frame).abs().mean() for frame in styled) < 2


def test_training_moves_the_decoder_alone_and_goes_on_where_it_stopped(
    pool: Path, tmp_path: Path
) -> None:
    options = argparse.Namespace(
        model=TINY, pool=pool, out=tmp_path, device="cpu", seconds=60.0, total=600.0,
        batch=1, side=8, learning_rate=3e-4,
    )  # fmt: skip
    trainer = Trainer(options)
    first = [trainer.train_step()["dB"].item() for _ in range(4)]
    assert all(torch.isfinite(torch.tensor(first)))
    trainer.training.budget.tick()
    trainer.training.save()
    again = Trainer(options)
    assert again.training.step == 4
    assert again.training.budget.before > 0
    for one, other in zip(trainer.parts.parameters(), again.parts.parameters(), strict=True):
        assert torch.equal(one, other)

    trainer.export(tmp_path / "vae")
    shipped, made = (
        TinyVideoAutoencoder.from_pretrained(folder).state_dict()
        for folder in (TINY / "vae", tmp_path / "vae")
    )
    moved = {name.split(".")[0] for name in made if not torch.equal(made[name], shipped[name])}
    assert moved == {"decoder", "refine"}


def test_sides_of_a_crop_that_are_no_sides_of_the_picture_teach_nothing(pool: Path) -> None:
    drawn = Pool(pool, random.Random(0), 1, 8)
    seen = set()
    for _ in range(60):
        inside = drawn.draw().inside[0, 0, 0]
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        for line in (rows, columns):
            assert line.sum() in (8 * 5, 8 * 2)  # of eight latents without three, or three twice
            seen.add((line[0].item(), line[-1].item()))
    assert seen == {(True, False), (False, True), (False, False)}


def test_what_is_made_at_such_sides_does_not_count() -> None:
    target, error = noise(1, 4, 3, 64, 64), noise(1, 4, 3, 64, 64, seed=1) - 0.5
    inside = torch.zeros(1, 1, 1, 64, 64, dtype=torch.bool)
    inside[..., 16:, :48] = True
    found = []
    for beyond in (0.0, 7.0):
        made = (target + torch.where(inside, error, beyond)).requires_grad_()
        losses = decoder_losses(made, target, inside)
        losses.total.backward()
        assert made.grad is not None
        found.append((*losses, made.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    gradient = found[0][-1]
    assert gradient.masked_select(~inside).abs().max() == 0
    assert gradient.masked_select(inside).abs().min() > 0
    share = error.masked_select(inside).square().mean()
    assert found[0][1].item() == pytest.approx(share.item(), rel=1e-4)


def test_an_empty_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 entries"):
        Pool(tmp_path, random.Random(0), 1, 8)
