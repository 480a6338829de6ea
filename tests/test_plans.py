"""Plans of published models before anything of them is there: no network, nothing on disk."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKLWan
from huggingface_hub import constants
from transformers import UMT5Config, UMT5EncoderModel
from typer.testing import CliRunner

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.wan import empty_transformer
from stillframe.cli.app import app
from stillframe.errors import ModelError
from stillframe.loading.bases import known_base, stored_sizes
from stillframe.loading.load import plan_pipeline
from stillframe.loading.memory import MemoryPlan
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.loading.taehv import TAEW_CONFIGS

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and no recipes of one's own; gives the folder of an empty cache."""

    def refuse(*address: object) -> Any:
        raise AssertionError(f"asked the network for {address}")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.delenv(RECIPES_VARIABLE, raising=False)
    for name in ("HOME", "USERPROFILE", "APPDATA", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def planned(name: str, vae: str | None = None) -> MemoryPlan:
    return plan_pipeline(name, 480, 832, vae=vae, device="cpu")[0]


@pytest.mark.parametrize("name", load_recipes())
def test_every_recipe_is_planned_from_nothing(name: str) -> None:
    recipe = load_recipes()[name]
    # of parameters, as the models' pages count
    billions = {"14B": 14.3, "5B": 5.0}.get(recipe.base.split("-")[-2], 1.42)
    plan = planned(name)
    assert plan.transformer == pytest.approx(2e9 * billions, rel=0.01)
    assert plan.text_encoder == pytest.approx(2 * 5.68e9, rel=0.01)


def test_wan_s_own_autoencoder_is_planned_from_nothing() -> None:
    plan = planned("krea-14b", "full")
    assert plan.vae_kind == "full"
    assert plan.autoencoder == pytest.approx(2 * 127e6, rel=0.01)


def test_wan_2_2_s_autoencoders_are_planned_from_nothing() -> None:
    """Sizes in bytes as their weight files have them: 1.41 GB of 16 bits, and 22.8 MB."""
    for vae, size in (("full", 1.41e9), ("tiny", 22.8e6)):
        plan, _ = plan_pipeline("longlive-2", 64, 64, vae=vae, device="cpu")
        assert plan.autoencoder == pytest.approx(size, rel=0.01)


def test_the_command_needs_nothing_either() -> None:
    done = CliRunner().invoke(app, ["models", "plan", "krea-14b", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "26.67 GiB" in done.stdout


def cached(hub: Path, part: str, config: dict[str, Any]) -> None:
    """Put a part's configuration where huggingface_hub keeps that of the 1.3B base."""
    repo, commit = hub / f"models--{WAN.replace('/', '--')}", 40 * "a"
    folder = repo / "snapshots" / commit / part
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(commit)


def test_what_is_on_disk_counts_and_the_table_says_what_it_says(nothing_there: Path) -> None:
    parts, before = known_base(WAN), planned("self-forcing")
    cached(nothing_there, "transformer", parts["transformer"])
    cached(nothing_there, "text_encoder", parts["text_encoder"])
    assert planned("self-forcing") == before
    with torch.device("meta"):
        own = dict(AutoencoderKLWan().config)
    name = parts["vae"].pop("_class_name")
    assert name == AutoencoderKLWan.__name__
    assert parts["vae"] == {key: own[key] for key in parts["vae"]}
    path = next(nothing_there.rglob("transformer/config.json"))
    path.write_text(json.dumps({**parts["transformer"], "num_layers": 15}))
    half = planned("self-forcing")
    assert half.transformer == pytest.approx(before.transformer / 2, rel=0.05)
    assert half.text_encoder == before.text_encoder
    path.write_text("{")
    with pytest.raises(ModelError, match=r"broken transformer/config\.json"):
        planned("self-forcing")


@pytest.mark.parametrize("base", sorted({recipe.base for recipe in load_recipes().values()}))
def test_sizes_to_download_are_those_of_the_shapes(base: str) -> None:
    parts = known_base(base)
    shape = parts["transformer"]
    text = UMT5Config(**parts["text_encoder"])
    with init_empty_weights():
        encoder = UMT5EncoderModel(text)
        encoder.encoder.embed_tokens = None
        coder = AutoencoderKLWan(**{k: v for k, v in parts["vae"].items() if k[0] != "_"})
        tiny = TinyVideoAutoencoder(**TAEW_CONFIGS[shape["out_channels"]])
    models = {
        "weights": empty_transformer(shape), "text_encoder": encoder, "vae": coder, "tiny": tiny
    }  # fmt: skip
    sizes = stored_sizes(base)
    assert sizes.keys() == models.keys()
    for name, model in models.items():
        bytes_each = sizes[name] / sum(p.numel() for p in model.parameters())
        assert bytes_each in (2, 4)


@pytest.mark.usefixtures("nothing_there")
def test_the_list_says_about_how_much_there_is_to_download() -> None:
    """The sum of weights, text encoder and tiny autoencoder, in GB."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["models"])
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if "about " in line}
    assert rows.keys() == load_recipes().keys()
    for name, size in (("self-forcing", 28.4), ("krea-14b", 51.3), ("longlive-2", 21.4)):
        assert f"nothing  about {size} GB" in rows[name]


def test_a_base_at_a_commit_or_of_somebody_else_is_not_known() -> None:
    assert set(known_base(WAN)) == {"transformer", "text_encoder", "vae"}
    known_base(WAN)["transformer"].clear()
    assert known_base(WAN)["transformer"]  # what it gives is a copy
    assert known_base(f"{WAN}@{40 * 'a'}") == known_base("somebody/else") == {}
