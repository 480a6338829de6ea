"""The table of published models, a user's own beside it, and everything that can be wrong there."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler

from stillframe.config import EditConfig
from stillframe.errors import ModelError
from stillframe.loading.recipes import (
    RECIPES_VARIABLE,
    Recipe,
    load_recipes,
    read_recipes,
    user_recipes,
)
from stillframe.methods.prune import InterFramePruning

KNOWN = ["self-forcing", "self-forcing-10s", "causvid", "causvid-4step", "streamdiffusionv2"]
KNOWN += ["streamdiffusionv2-14b", "longlive", "rolling-forcing", "causal-forcing"]
KNOWN += ["causal-forcing-frame", "causal-forcing-2step", "causal-forcing-1step", "one-forcing"]
KNOWN += ["reward-forcing", "self-gradient-forcing", "self-gradient-forcing-frame", "krea-14b"]
KNOWN += ["longlive-2"]
#: Everything that a recipe must say.
FIELDS: dict[str, Any] = {
    "title": "Mine",
    "repo": "someone/weights",
    "file": "model.pt",
    "base": "someone/base",
    "steps": [1000, 500],
    "warp": True,
    "shift": 5,
    "block": 3,
    "window": 6,
    "sink": 1,
}


@pytest.fixture(autouse=True)
def _nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # whoever runs this may have recipes of their own
    monkeypatch.delenv(RECIPES_VARIABLE, raising=False)
    for name in ("HOME", "USERPROFILE", "APPDATA", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def toml(name: str = "mine", /, **fields: Any) -> str:
    """A recipe; fields that are None are left out."""
    given = {key: value for key, value in {**FIELDS, **fields}.items() if value is not None}
    # TOML's strings, numbers, lists and truth values are written as JSON's are
    lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def write(path: Path, *recipes: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(recipes), encoding="utf-8")
    return path


def usual_place() -> Path:
    return Path(typer.get_app_dir("stillframe")) / "recipes.toml"


def refusal(call: Callable[..., Any], *given: Any) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(ModelError) as caught:
        call(*given)
    said = str(caught.value)
    assert "\n" not in said
    assert not re.search(r"\.(\s|$)", said), said
    return said


# the table


def test_every_known_model_has_a_recipe_that_holds_together() -> None:
    recipes = load_recipes()
    assert list(recipes) == KNOWN
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert recipe.window >= recipe.block >= 1
        assert recipe.edit_window >= recipe.edited >= 1
        for sigmas in (recipe.generate_sigmas, recipe.edit_sigmas):
            assert all(a > b for a, b in pairwise([*sigmas, 0.0]))
        assert recipe.generate_sigmas[0] == 1 > recipe.edit_sigmas[0]
        assert recipe.file.endswith((".pt", ".safetensors"))
        # a flat file has no entries to look under, a training run's has
        assert bool(recipe.keys) == recipe.file.endswith(".pt")
        for repo in (recipe.repo, recipe.base):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", repo)
            assert recipe.place(repo) == repo


def scheduled(shares: Sequence[float], shift: float) -> torch.Tensor:
    """What diffusers' scheduler makes of shares of 1."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=list(shares))
    return scheduler.sigmas[:-1]


@pytest.mark.parametrize("name", KNOWN)
def test_noise_levels_are_those_of_diffusers_scheduler(name: str) -> None:
    recipe = load_recipes()[name]
    shares = [step / 1000 for step in recipe.steps]
    told = scheduled(shares, recipe.shift if recipe.warp else 1.0)
    torch.testing.assert_close(torch.tensor(recipe.generate_levels), told, rtol=0, atol=1e-6)
    expected = told
    if recipe.nearest:
        grid = scheduled([1 - i / 1000 for i in range(1000)], recipe.shift)
        expected = grid[(grid - told[:, None]).abs().argmin(1)]
    torch.testing.assert_close(torch.tensor(recipe.generate_sigmas), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "way", "told", "sigmas"),
    [
        ("causvid", "generate", (1.0, 0.757, 0.522), (1.0, 0.756757, 0.521739)),
        ("causvid", "edit", (0.757, 0.522), (0.756757, 0.521739)),
        ("streamdiffusionv2", "edit", (0.7, 0.5), (0.700232, 0.499719)),
        (
            "streamdiffusionv2-14b",
            "edit",
            (0.7, 0.5, 0.4, 0.2),
            (0.700232, 0.499719, 0.400260, 0.198347),
        ),
        ("streamdiffusionv2", "generate", (1.0, 0.75, 0.5, 0.25), (1.0, 0.750258, 0.499719, 0.25)),
        (
            "krea-14b",
            "generate",
            (1.0, 0.9375, 0.833333, 0.625, 0.0),
            (1.0, 0.9375, 0.833333, 0.625, 0.004980),
        ),
    ],
)
def test_what_is_told_and_what_it_is_denoised_at(
    name: str, way: str, told: tuple[float, ...], sigmas: tuple[float, ...]
) -> None:
    """As the authors' own schedulers have been seen to do."""
    recipe = load_recipes()[name]
    assert getattr(recipe, f"{way}_levels") == pytest.approx(told, abs=1e-6)
    assert getattr(recipe, f"{way}_sigmas") == pytest.approx(sigmas, abs=6e-7)


def test_sinks_can_be_counted_in_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", toml(sink="1 block", edit_sink="2 blocks", edit_block=2))
    recipe = read_recipes(path)["mine"]
    assert (recipe.sink, recipe.edit_sink) == (3, 4)
    write(path, toml(sink="1 block", edit_sink="2 blocks"))
    assert read_recipes(path)["mine"].edit_sink == 6


def test_latent_thresholds_are_nobodys_default() -> None:
    """They are the papers', of the latents of one model: pixels are alike for all."""
    for options in ({}, {"steps": 2}, {"conditioning": "sdedit"}):
        method = EditConfig.from_options(options).method
        assert isinstance(method, InterFramePruning)
        assert (method.detector, method.tau1, method.visible) == ("pixels", None, True)
    assert not any("detector" in name or "tau" in name for name in vars(load_recipes()["causvid"]))


def test_editing_has_steps_of_its_own_or_the_papers(tmp_path: Path) -> None:
    """The papers' are always warped, a recipe's own as it says."""
    own = {"edit_steps": [700, 200], "warp": False}
    path = write(tmp_path / "r.toml", toml(), toml("a", **own), toml("b", warp=False))
    plain, given, unwarped = read_recipes(path).values()
    assert given.edit_sigmas == (0.7, 0.2)
    assert plain.edit_sigmas == unwarped.edit_sigmas
    assert plain.edit_sigmas == pytest.approx([5 * u / (1 + 4 * u) for u in (0.4, 0.35, 0.25)])


def test_nothing_is_read_from_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        asked.append(address)
        raise OSError("no network here")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("127.0.0.1", 9))
    asked.clear()
    for recipe in load_recipes().values():
        assert recipe.place(recipe.repo) == recipe.repo
        assert recipe.edit_sigmas
    assert asked == []


# a file of the user's own


def test_without_a_file_there_are_the_built_in_ones() -> None:
    assert user_recipes() is None
    assert load_recipes() == read_recipes(load_recipes()["causvid"].folder / "recipes.toml")


def test_a_users_entries_add_and_replace(tmp_path: Path) -> None:
    built_in = load_recipes()
    assert tmp_path in usual_place().parents
    write(usual_place(), toml("mine"), toml("causvid", title="My CausVid", lora="lora.pt"))
    assert user_recipes() == usual_place()
    recipes = load_recipes()
    assert list(recipes) == [*KNOWN, "mine"]
    assert (recipes["causvid"].title, recipes["causvid"].lora) == ("My CausVid", "lora.pt")
    # replaced as a whole: nothing of the built-in one is left
    assert recipes["causvid"].keys == ()
    assert built_in["causvid"].keys == ("generator",)
    others = {name: recipe for name, recipe in built_in.items() if name != "causvid"}
    assert others == {name: recipes[name] for name in others}


@pytest.mark.parametrize("place", ["absolute", "home"])
def test_the_variable_names_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write(usual_place(), toml("usual"))
    path = write(tmp_path / "home" / "named.toml", toml("named"))
    named = str(path) if place == "absolute" else "~/named.toml"
    monkeypatch.setenv(RECIPES_VARIABLE, named)
    assert user_recipes() == path
    assert list(load_recipes()) == [*KNOWN, "named"]
    monkeypatch.setenv(RECIPES_VARIABLE, "")
    assert list(load_recipes()) == [*KNOWN, "usual"]


@pytest.mark.parametrize("named", ["{}/no.toml", "{}", "~nobody-of-that-name/no.toml"])
def test_a_variable_that_names_no_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    named = named.format(tmp_path)
    monkeypatch.setenv(RECIPES_VARIABLE, named)
    assert refusal(load_recipes) == f"{RECIPES_VARIABLE} names {named}, which is not a file"


@pytest.mark.parametrize("given", ["relative", "absolute"])
def test_folders_start_from_the_recipe_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    path = write(tmp_path / "some" / "where" / "r.toml", toml(repo="./weights", base="../base"))
    monkeypatch.chdir(tmp_path)
    recipe = read_recipes(path if given == "absolute" else path.relative_to(tmp_path))["mine"]
    monkeypatch.chdir(tmp_path.parent)
    assert recipe.place(recipe.repo) == str((tmp_path / "some/where/weights").resolve())
    assert recipe.place(recipe.base) == str((tmp_path / "some/base").resolve())
    elsewhere = (tmp_path / "else").resolve()
    assert recipe.place(str(elsewhere)) == str(elsewhere)
    assert recipe.place("~/models") == str((tmp_path / "home" / "models").resolve())
    assert recipe.place("owner/name") == "owner/name"


def test_fields_are_what_the_file_says(tmp_path: Path) -> None:
    more = {
        "keys": ["generator"],
        "edit_steps": [400, 200.5],
        "edit_window": 9,
        "edit_sink": 0,
        "lora": "lora.pt",
        "lora_scale": 2,
        "licence": "MIT",
        "paper": "arXiv",
    }
    recipe = read_recipes(write(tmp_path / "r.toml", toml(**more)))["mine"]
    expected: dict[str, Any] = {**FIELDS, **more, "steps": (1000.0, 500.0)}
    expected |= {"keys": ("generator",), "edit_steps": (400.0, 200.5)}
    assert recipe == Recipe(name="mine", folder=tmp_path.resolve(), **expected)
    assert all(type(x) is float for x in (recipe.shift, recipe.lora_scale, *recipe.steps))
    least = read_recipes(write(tmp_path / "r.toml", toml()))["mine"]
    assert (least.keys, least.edit_steps, least.edit_window, least.edit_sink) == ((), None, 6, 1)
    assert (least.lora, least.lora_scale, least.licence) == (None, 1.0, "not stated")


def test_pins_go_along(tmp_path: Path) -> None:
    commits, sums = ("0a" * 20, "1b" * 20), ("2c" * 32, "3d" * 32)
    pins = {"revision": commits[0], "base_revision": commits[1]}
    pins |= {"sha256": sums[0], "lora_sha256": sums[1]}
    text = toml(lora="lora.pt", **pins)
    recipe = read_recipes(write(tmp_path / "r.toml", text))["mine"]
    assert recipe.repo_place == f"someone/weights@{commits[0]}"
    assert recipe.base_place == f"someone/base@{commits[1]}"
    assert recipe.pins == {"model.pt": sums[0], "lora.pt": sums[1]}
    plain = read_recipes(write(tmp_path / "r.toml", toml()))["mine"]
    assert (plain.repo_place, plain.base_place, plain.pins) == (plain.repo, plain.base, {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"revision": "main"}, "revision = 'main', which is not 40 digits"),
        ({"revision": "0a" * 19}, "which is not 40 digits"),
        ({"base_revision": "0A" * 20}, "which is not 40 digits"),
        ({"sha256": "0a" * 20}, "which is not 64 digits"),
        ({"sha256": "../" * 21 + "a"}, "which is not 64 digits"),
        ({"lora_sha256": "0a" * 32}, "has lora_sha256 and no lora"),
        ({"revision": "0a" * 20, "repo": "./weights"}, "its repo ./weights is a folder"),
        ({"base_revision": "0a" * 20, "base": "/base"}, "its base /base is a folder"),
    ],
)
def test_what_pins_nothing_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "r.toml", toml(**fields))
    assert said in refusal(read_recipes, path)


def test_an_empty_file_adds_nothing(tmp_path: Path) -> None:
    assert read_recipes(write(tmp_path / "r.toml", "# nothing yet\n")) == {}


# wrong files


@pytest.mark.parametrize("name", list(FIELDS))
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "r.toml", toml("fine"), toml(**{name: None}))
    assert refusal(read_recipes, path) == f"recipe 'mine' in {path} has no {name}"


def test_an_unknown_field_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    for name in ("windows", "name", "folder"):
        path = write(tmp_path / "r.toml", toml(**{name: 6}))
        said = refusal(read_recipes, path)
        assert said.startswith(f"recipe 'mine' in {path} has an unknown field {name!r}; known are ")
        assert all(field in said.partition("known are ")[2].split(", ") for field in FIELDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("title", 7),
        ("repo", ["a/b"]),
        ("steps", 1000),
        ("steps", [1000, "500"]),
        ("steps", [1000, True]),
        ("steps", [[1000]]),
        ("edit_steps", "400"),
        ("warp", 1),
        ("warp", "true"),
        ("shift", True),
        ("shift", "5"),
        ("shift", 10**400),
        ("lora_scale", False),
        ("block", True),
        ("block", 3.0),
        ("window", "6"),
        ("sink", [1]),
        ("keys", "generator"),
        ("keys", [1]),
        ("lora", False),
        ("lora", 1),
        ("first_steps", 1000),
        ("nearest", 1),
        ("edit_noise", "800"),
        ("edit_normalised", "no"),
        ("edit_block", 1.0),
        ("sink", "1 frame"),
        ("sink", "one block"),
        ("edit_sink", "-1 blocks"),
        ("context_sink", 0),
        ("sink_average", "0.999"),
        ("prompt_change", True),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = write(tmp_path / "r.toml", toml(**{name: value}))
    assert refusal(read_recipes, path) == (
        f"recipe 'mine' in {path} has {name} = {value!r}, which is of the wrong type"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["shift", "lora_scale"])
def test_numbers_are_finite(tmp_path: Path, name: str, value: str) -> None:
    path = write(tmp_path / "r.toml", toml(**{name: None}), f"{name} = {value}")
    assert f"has {name} = {value}, which is of the wrong type" in refusal(read_recipes, path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"window": 2}, "has a window smaller than its block of 3"),
        ({"edit_window": 2}, "has a window smaller than its block of 3"),
        ({"block": 7, "window": 9}, "has a window smaller than its block of 7"),
        ({"block": 0}, "needs block and shift of at least 1 and sinks of at least 0"),
        ({"shift": 0.5}, "needs block and shift of at least 1 and sinks of at least 0"),
        ({"sink": -1}, "needs block and shift of at least 1 and sinks of at least 0"),
        ({"edit_sink": -1}, "needs block and shift of at least 1 and sinks of at least 0"),
        ({"steps": [500, 1000]}, "has steps out of order: sigmas must fall"),
        ({"steps": [1000, 500, 500]}, "has steps out of order: sigmas must fall"),
        ({"steps": [1000, 0]}, "has steps out of order: sigmas must fall"),
        ({"steps": [1001, 500]}, "has steps out of order: sigmas must fall"),
        ({"steps": []}, "has steps out of order: sigmas must fall"),
        ({"edit_steps": [200, 400]}, "has steps out of order: sigmas must fall"),
        ({"edit_block": 0}, "has a number out of bounds: edit_block"),
        ({"edit_block": 7}, "has a window smaller than its block of 7"),
        ({"edit_noise": 0}, "has a number out of bounds: edit_noise"),
        ({"edit_noise": 1001}, "has a number out of bounds: edit_noise"),
        ({"first_steps": [1000, 250, 500]}, "has steps out of order: sigmas must fall"),
        ({"first_steps": [1000]}, "has 1 first_steps, and later blocks have 2"),
        ({"first_steps": [900, 500]}, "has steps that start at 900, and text-to-video starts"),
        ({"nearest": True, "steps": [1000, 0, 0]}, "has steps out of order: sigmas must fall"),
        ({"nearest": True, "steps": [1000, -1]}, "has steps out of order: sigmas must fall"),
        ({"nearest": True, "steps": [1001, 500]}, "has steps out of order: sigmas must fall"),
        ({"sink_average": 1.5}, "has sink_average = 1.5, not within 0 and 1"),
        ({"sink_average": 0.9}, "has sink_average and sink 1, window 6: it needs a sink of 3"),
        (
            {"sink_average": 0.9, "sink": 3, "edit_sink": 3, "edit_window": 5},
            "has sink_average and edit_sink 3, edit_window 5: it needs a sink of 3 and a window",
        ),
        ({"prompt_change": "reset"}, "has prompt_change = 'reset', and known are keep and recomp"),
        (
            {"steps": [750, 500]},
            "has steps that start at 750, and text-to-video starts from noise, at 1000",
        ),
        (
            {"steps": [999.5], "warp": False},
            "has steps that start at 999.5, and text-to-video starts from noise, at 1000",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "r.toml", toml(**fields))
    refused = refusal(read_recipes, path)
    assert refused.startswith(f"recipe 'mine' in {path} {said}")
    # an edit may start anywhere
    write(path, toml(edit_steps=[750, 500]))
    assert read_recipes(path)["mine"].edit_steps == (750, 500)


def test_a_file_that_is_no_table_of_recipes_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    assert refusal(read_recipes, path).startswith(f"recipe file {path} cannot be read: ")
    assert refusal(read_recipes, tmp_path).startswith(f"recipe file {tmp_path} cannot be read: ")
    for wrong in ("[mine", "mine", toml() + toml(), "[mine]\nsteps = [1000"):
        write(path, wrong)
        assert refusal(read_recipes, path).startswith(f"recipe file {path} is not valid TOML: ")
    path.write_bytes(b"[mine]\ntitle = '\xff'\n")
    assert refusal(read_recipes, path).startswith(f"recipe file {path} is not valid TOML: ")
    write(path, "title = 'Mine'")
    assert (
        refusal(read_recipes, path) == f"recipe file {path} has title outside a [table] of its own"
    )


def test_a_wrong_file_of_the_users_stops_everything(tmp_path: Path) -> None:
    """Silence would run the built-in recipe where a replaced one was meant."""
    write(usual_place(), toml("causvid", window="6"))
    assert refusal(load_recipes).startswith(f"recipe 'causvid' in {usual_place()} has window = '6'")
