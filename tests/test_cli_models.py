"""``stillframe models`` as a user meets it: what there is, what of it is on disk, and downloads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.hub_fixtures import (
    Asker,
    Hub,
    Repo,
    asker,
    hub_fixture,  # noqa: F401
    online_fixture,  # noqa: F401
)
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.loading.hub import TINY_VAE_FILE, TINY_VAE_REPO
from stillframe.loading.load import bundled_models
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes

BASE = {
    "model_index.json": b"{}",
    "transformer/config.json": b'{"in": 16}',
    "transformer/diffusion_pytorch_model.safetensors": b"t" * 70_000,
    "text_encoder/model.safetensors": b"e" * 50_000,
    "tokenizer/tokenizer.json": b"[1]",
    "scheduler/scheduler_config.json": b"[2]",
    "vae/config.json": b"[3]",
}
#: What no recipe wants of a base, with the tiny autoencoder.
UNUSED = ("pytorch_model.safetensors", "vae/config.json")
WEIGHTS = b"w" * 120_000
TINY_VAE = b"v" * 3_000
RECIPE = """
[{name}]
title = "A test of {name}"
repo = "{repo}"
file = "weights/model.pt"
base = "{base}"
licence = "CC0 for {name}"
steps = [1000, 500]
warp = true
shift = 5.0
block = 3
window = 21
sink = 0
"""


@pytest.fixture(name="ask")
def ask_fixture(hub: Hub, online: Asker, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Runs the command in a process with a recipe named after the test; its base and all there."""
    name = re.sub(r"\W", "-", request.node.name)
    hub.repos |= {
        f"{name}/weights": Repo({"weights/model.pt": WEIGHTS, "README.md": b"no"}),
        f"{name}/base": Repo(BASE),
        TINY_VAE_REPO: Repo({TINY_VAE_FILE: TINY_VAE}),
    }
    own = tmp_path / "recipes.toml"
    own.write_text(RECIPE.format(name=name, repo=f"{name}/weights", base=f"{name}/base"))

    def ask(*arguments: str, process: Asker = online) -> Any:
        words = [argument.replace("NAME", name) for argument in arguments]
        environment = {RECIPES_VARIABLE: str(own), "COLUMNS": "300"}
        return process("cli", arguments=["models", *words], environment=environment)

    ask.name = name  # type: ignore[attr-defined]
    return ask


def _row(shown: str, name: str) -> list[str]:
    """The cells of the table row that starts with a name."""
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == [name]]
    return re.split(r"\s{2,}", line.replace("│", "  ").strip())


def _run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["models", *arguments])


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_the_list_has_everything_that_has_a_name(arguments: list[str]) -> None:
    listed = _run(*arguments)
    assert listed.exit_code == 0, listed.output
    assert not listed.stderr
    for name in bundled_models():
        assert _row(listed.stdout, name)[2].endswith(" styles")
    for name, recipe in load_recipes().items():
        row = _row(listed.stdout, name)
        assert (row[1], row[-1]) == (recipe.title, recipe.licence)
    assert "hub id" in listed.stdout
    assert "models fetch NAME" in listed.stdout


def test_fetching_says_how_much_and_the_list_follows(hub: Hub, ask: Any) -> None:
    name = ask.name
    assert _row(ask("list")["stdout"], name)[1:4] == [f"A test of {name}", "nothing", "unknown"]
    done = ask("fetch", "NAME")
    assert (done["code"], done["stderr"]) == (0, "")
    for file, size in [("weights/model.pt", "120.0 kB"), (TINY_VAE_FILE, "3.0 kB")]:
        assert _row(done["stdout"], file) == [file, size, "to download"]
    assert "README" not in done["stdout"]
    assert "transformer/diffusion" not in done["stdout"]
    assert "vae/config.json" not in done["stdout"]
    wanted = ["model_index.json", "transformer/config.json", "text_encoder/model.safetensors"]
    wanted += ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"]
    total = len(WEIGHTS) + len(TINY_VAE) + sum(len(BASE[file]) for file in wanted)
    assert f"7 of 7 files to download: {total / 1e3:.1f} kB of" in done["stdout"]
    assert f"{name}: {total / 1e3:.1f} kB fetched, 7 files of " in done["stdout"]
    assert sorted(file for file, _ in hub.downloads(f"{name}/base")) == sorted(wanted)
    row = _row(ask("list")["stdout"], name)
    assert row[2:] == [f"all, {total / 1e3:.1f} kB", "nothing", f"CC0 for {name}"]
    before = len(hub.log)
    ask("list"), ask()
    assert len(hub.log) == before


def test_what_is_there_is_not_fetched_again(hub: Hub, ask: Any) -> None:
    ask("fetch", "NAME")
    before = len(hub.downloads(f"{ask.name}/base"))
    again = ask("fetch", "NAME")
    assert f"{ask.name}: nothing to download, 7 files of " in again["stdout"]
    assert _row(again["stdout"], "weights/model.pt")[2] == "on disk"
    full = ask("fetch", "NAME", "--vae", "full")
    assert "1 of 7 files to download: 3 B of " in full["stdout"]
    assert hub.downloads(f"{ask.name}/base")[before:] == [("vae/config.json", None)]


def test_a_part_is_listed_as_a_part(hub: Hub, ask: Any) -> None:
    hub.repos[f"{ask.name}/weights"].gated = True
    refused = ask("fetch", "NAME")
    assert (refused["code"], refused["stderr"].count("\n")) == (2, 1)
    assert f"ask for access at {hub.url}/{ask.name}/weights" in refused["stderr"]
    assert ask("fetch", "NAME/base", "--vae", "tiny")["code"] == 0
    there = sum(len(content) for file, content in BASE.items() if not file.endswith(UNUSED))
    row = _row(ask("list")["stdout"], ask.name)
    assert row[2:4] == [f"all but weights/model.pt, {(there + 3000) / 1e3:.1f} kB", "unknown"]
    hub.repos[f"{ask.name}/weights"].gated = False
    done = ask("fetch", "NAME")
    assert "1 of 7 files to download: 120.0 kB of " in done["stdout"]
    assert _row(ask("list")["stdout"], ask.name)[2].startswith("all, ")


def test_a_hub_id_is_a_whole_model(hub: Hub, ask: Any) -> None:
    done = ask("fetch", "NAME/base")
    assert done["code"] == 0
    assert sorted(file for file, _ in hub.downloads(f"{ask.name}/base")) == sorted(BASE)
    assert f"{len(BASE)} of {len(BASE)} files to download" in done["stdout"]
    assert TINY_VAE_FILE not in done["stdout"]


def test_offline_mode_fetches_what_is_there(hub: Hub, online: Asker, ask: Any) -> None:
    home = online.cache.parents[1]
    with asker(home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") as offline:
        refused = ask("fetch", "NAME", process=offline)
        assert (refused["code"], refused["stderr"].count("\n")) == (2, 1)
        assert "offline mode is on (HF_HUB_OFFLINE)" in refused["stderr"]
        ask("fetch", "NAME")
        before = len(hub.log)
        assert "nothing to download" in ask("fetch", "NAME", process=offline)["stdout"]
        assert len(hub.log) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["huge"], "unknown model 'huge': it is no hub id (owner/name); recipes are "),
        (["self-forcing", "--vae", "big"], "--vae is tiny or full, got 'big'"),
        (["tiny", "--vae", "big"], "--vae is tiny or full, got 'big'"),
    ],
)
def test_refusals_are_one_sentence(arguments: list[str], said: str) -> None:
    refused = _run("fetch", *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert said in refused.stderr


def test_bundled_models_and_folders_need_nothing() -> None:
    for name, folder in bundled_models().items():
        assert "nothing to download" in _run("fetch", name).stdout
        assert "nothing to download" in _run("fetch", str(folder)).stdout


def test_a_broken_recipe_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "recipes.toml"
    own.write_text("[mine]\ntitle = 3\n")
    monkeypatch.setenv(RECIPES_VARIABLE, str(own))
    for arguments in (["list"], ["fetch", "mine"]):
        refused = _run(*arguments)
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1
        assert str(own) in refused.stderr
