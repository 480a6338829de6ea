"""``stillframe models check``: what it says of models that are sane, and of those that are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests import published, tiny
from typer.testing import CliRunner

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.cli.app import app
from stillframe.jobs.check import picture
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.models import bundled_models

RECIPE = load_recipes()["self-forcing"]


@pytest.fixture(name="table")
def table_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in a recipe's layout, known by its name; gives their folder."""
    monkeypatch.chdir(tmp_path)
    base = published.base_folder(tmp_path / "base")
    _, table = published.publish(tmp_path, RECIPE, base)
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    return tmp_path


def ask(*arguments: str) -> Any:
    size = ("--height", "64", "--width", "96", "--device", "cpu")
    return CliRunner().invoke(app, ["models", "check", *arguments, *size])


def facts(shown: str) -> dict[str, str]:
    """What it says, by what that is of."""
    return dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)


def test_the_bundled_model_is_sane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = ask("tiny", "--out", "made.png")
    assert done.exit_code == 0, done.output
    told = facts(done.stdout)
    assert "float16" in told["file diffusion_pytorch_model-00001-of-00002.safetensors"]
    psnr = re.fullmatch(r"PSNR ([\d.]+) dB", told["round trip"])
    assert psnr is not None
    assert float(psnr[1]) > 18
    channels = TinyVideoAutoencoder.load_config(bundled_models()["tiny"] / "vae")["latent_channels"]
    assert told["block"] == f"edited: 3 latent frames of {channels} channels, 12 frames"
    spread = re.search(r"std ([\d.]+)", told["its latents, x0"])
    assert spread is not None
    assert 0.1 < float(spread[1]) < 3
    assert "tiny is sane" in done.stdout
    with Image.open(tmp_path / "made.png") as image:
        assert (image.format, image.size) == ("PNG", (3 * 96, 64))
        # the first of the three is what went in
        shown = torch.tensor(list(image.convert("RGB").crop((0, 0, 96, 64)).tobytes()))
    given = (picture(64, 96)[0, 0].permute(1, 2, 0) * 255).round().int().flatten()
    assert torch.equal(shown.int(), given)


def test_random_weights_run_and_are_not_sane(table: Path) -> None:
    """Everything is said that there is to say, and then in one sentence why it is not sane."""
    done = ask("self-forcing", "--vae", "full")
    assert done.exit_code == 2
    told = facts(done.stdout)
    count = len(tiny.transformer().state_dict())
    file = told["file self_forcing_dmd.pt"]
    assert file.endswith(f"{count} tensors in generator_ema, float32")
    assert told["block"] == "from a prompt: 3 latent frames of 4 channels, 9 frames"
    assert done.stderr.startswith("Error: a picture that goes through the autoencoder comes back")
    assert done.stderr.count("\n") == 1
    assert (table / "self-forcing-check.png").is_file()


def damaged(table: Path, how: str) -> str:
    """Damage the model; what is to be said of it."""
    weights = table / "weights" / RECIPE.file
    if how == "absent":
        weights.unlink()
        return "files on disk, first checkpoints/self_forcing_dmd.pt: `stillframe models fetch"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9000])
        return "is truncated or not a weight file"
    content = torch.load(weights, weights_only=True)
    state = content["generator_ema"]
    name = "model.head.head.bias"
    if how == "keys":
        content = {"critic": content["critic"], "step": 3}
        said = "has no generator_ema or generator; its first entries are critic, step"
    elif how == "tensor":
        del state[name]
        said = "lacks 1 of "
    elif how == "shape":
        state[name] = torch.ones(5)
        said = "in shape 5 where the model has 16"
    elif how == "dtype":
        state[name] = state[name].to(torch.int8)
        said = "as (int8, strided) where plain numbers were expected"
    else:
        state[name][3] = float("nan")
        said = "that are NaN or infinite"
    torch.save(content, weights)
    return said


@pytest.mark.parametrize("how", ["absent", "truncated", "keys", "tensor", "shape", "dtype", "nan"])
def test_what_is_wrong_with_files_is_one_sentence(table: Path, how: str) -> None:
    said = damaged(table, how)
    done = ask("self-forcing", "--vae", "full")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(table.glob("*.png"))


def test_results_that_are_too_wild_are_named(table: Path) -> None:
    """Weights that are all finite and make numbers of which no picture is made."""
    weights = table / "weights" / RECIPE.file
    content = torch.load(weights, weights_only=True)
    content["generator_ema"]["model.head.head.weight"] *= 1e4
    torch.save(content, weights)
    done = ask("self-forcing", "--vae", "full")
    assert done.exit_code == 2
    assert "the latents of the block have a standard deviation of " in done.stderr
    assert "and sane ones have 0.1 to 3" in done.stderr


def test_the_page_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the example, by its name, and no other."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "tried-it.md").read_text(encoding="utf-8")
    example = re.search(r"^```text\n(.*?)^```", page, re.M | re.S)
    assert example is not None
    done = ask("tiny")
    assert done.exit_code == 0, done.output
    assert list(facts(example[1])) == list(facts(done.stdout))
