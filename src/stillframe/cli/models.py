"""``stillframe models``: which models there are, what of them is on disk, and getting the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.check import check
from stillframe.cli.command import Given, takes
from stillframe.cli.downloads import fetch_shown
from stillframe.cli.options import FIT, HARDWARE, OFFLOAD, SIDE, VAE, part
from stillframe.cli.screen import names_table, numbers_table, one_sentence_errors, say
from stillframe.config import OPTIONS
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.loading.fit import Fit
    from stillframe.loading.hub import RemoteFile, Wanted
    from stillframe.loading.recipes import Recipe

__all__ = ["models_app"]

models_app = typer.Typer(help="List models, and fetch those that are on the Hugging Face hub.")
models_app.command()(check)


@models_app.callback(invoke_without_command=True)
def _list_unless_told_otherwise(context: typer.Context) -> None:
    """List models, and fetch those that are on the Hugging Face hub."""
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list")
def list_models() -> None:
    """List the models that are known by name, what of them is on disk, and what else there is."""
    with one_sentence_errors():
        _list_bundled()
        say("")
        _list_recipes()
        say("")
        say("`stillframe models fetch NAME` downloads one. --model also takes a folder in the")
        say("format of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or a hub id such as")
        say("Wan-AI/Wan2.1-T2V-1.3B-Diffusers, which is downloaded once.")


def _list_bundled() -> None:
    from stillframe.loading.hub import size_text
    from stillframe.loading.load import bundled_models, model_styles

    rows = []
    for name, folder in bundled_models().items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rows.append((name, size_text(size), f"{len(model_styles(name))} styles"))
    names_table(("model", "size", "knows"), rows)


def _list_recipes() -> None:
    from stillframe.loading.hub import on_disk, size_text, wanted_by
    from stillframe.loading.recipes import load_recipes

    rows = []
    for name, recipe in load_recipes().items():
        files = on_disk(wanted_by(recipe))
        size = sum(file.size or 0 for file in files if file.present)
        there = f"{_share(files)}, {size_text(size)}" if size else _share(files)
        rows.append((name, recipe.title, there, _missing(recipe), recipe.licence))
    names_table(("recipe", "title", "on disk", "to download", "licence"), rows)


def _missing(recipe: Recipe) -> str:
    """How much of a model is to be downloaded, in words."""
    from stillframe.loading.hub import size_text, to_download

    found = to_download(recipe)
    if found is None:
        return "unknown"
    size, recorded = found
    return f"{'' if recorded else 'about '}{size_text(size)}" if size else "nothing"


def _share(files: Sequence[RemoteFile]) -> str:
    """How much of a model is on disk, in words."""
    absent = [file for file in files if not file.present]
    if not absent:
        return "all"
    if len(absent) == len(files):
        return "nothing"
    if len(absent) == 1:
        return f"all but {absent[0].name}"
    return f"{len(files) - len(absent)} of {len(files)} files"


@models_app.command()
@takes(
    {
        "vae": Option(
            "str",
            "Fetch this autoencoder; by default the tiny one with a recipe, its own with a hub id.",
            choices=("tiny", "full"),
        )
    }
)
def fetch(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a hub id (owner/name).")],
    given: Given,
) -> None:
    """Download what a model needs and is not on disk; says first how much that is."""
    wanted = _wanted(name, given["vae"])
    if not wanted:
        say(f"{name} comes with the package: there is nothing to download")
        return
    from stillframe.loading.hub import check_pins, size_text
    from stillframe.loading.recipes import load_recipes

    missing, paths = fetch_shown(wanted)
    # said at once, and not when the model is used
    if (recipe := load_recipes().get(name)) is not None:
        check_pins(recipe)
    total = size_text(sum(path.stat().st_size for path in paths))
    done = f"{missing} fetched" if missing else "nothing to download"
    say(f"{name}: {done}, {len(paths)} files of {total} on disk")


def _wanted(name: str, vae: str | None) -> tuple[Wanted, ...]:
    """What a model's name stands for; nothing for a bundled one.

    Raises:
        ModelError: it is no model's name.
    """
    from stillframe.errors import ModelError
    from stillframe.loading.hub import tiny_vae, wanted_by, wanted_folder
    from stillframe.loading.load import bundled_models
    from stillframe.loading.recipes import load_recipes

    recipes = load_recipes()
    if name in recipes:
        return wanted_by(recipes[name], vae or "tiny")
    if name in bundled_models():
        return ()
    if name.count("/") != 1 and not os.path.isdir(Path(name).expanduser()):
        raise ModelError(
            f"unknown model {name!r}: it is no hub id (owner/name); recipes are "
            f"{', '.join(recipes)}"
        )
    tiny = (tiny_vae(name),) if vae == "tiny" else ()
    return (*wanted_folder(name), *tiny)


_WEIGHTS = {**VAE, "dtype": replace(HARDWARE["dtype"], default="bfloat16")}
_PLAN = {
    "height": Option("int", "Edit frames so many pixels high.", default=480, least=16, most=SIDE),
    "width": Option("int", "Edit frames so many pixels wide.", default=832, least=16, most=SIDE),
    "recovery": replace(OPTIONS["recovery"], default="aligned"),
    "store": OPTIONS["store"],
    "cache": OPTIONS["cache"],
    **_WEIGHTS,
    **OFFLOAD,
    **FIT,
    "device": HARDWARE["device"],
}


@models_app.command()
@takes({name: replace(option, group="") for name, option in _PLAN.items()})
def plan(
    name: Annotated[str, typer.Argument(help="A recipe's name, a folder, or a hub id.")],
    given: Given,
) -> None:
    """Say how much memory editing will take; of a recipe nothing need be on disk."""
    from stillframe.loading.load import plan_pipeline

    height, width = given["height"], given["width"]
    title = f"{name} at {width}x{height}", given["dtype"]
    if given["fit"] is not None:
        fit = _fitted(name, given)
        numbers_table(title, fit.plan.lines())
        for line in fit.lines():
            say(line)
        return
    rest = part(given, ("vae", "recovery", "store", "cache", "offload", "dtype", "device"))
    needs, free = plan_pipeline(name, height, width, **rest)
    numbers_table(title, needs.lines())
    if free is not None:
        say(f"free on this device: {free / 2**30:.2f} GiB")


def _fitted(name: str, given: Mapping[str, Any]) -> Fit:
    """How a model is to be run below a size, on a GPU that need not be there if none is named."""
    import torch

    from stillframe.loading.assemble import Task
    from stillframe.loading.load import fit_pipeline

    device = torch.device("cuda") if given["device"] == "auto" else given["device"]
    size = given["height"], given["width"]
    task = Task(*size, given["recovery"], store=given["store"], cache=given["cache"])
    rest = part(given, ("vae", "dtype", "offload"))
    return fit_pipeline(name, given["fit"], device=device, task=task, **rest)


_CONVERT = {
    "recipe": Option("str", "Say what a weight file is weights of.", metavar="NAME"),
    **{name: replace(option, group="") for name, option in _WEIGHTS.items()},
}


@models_app.command()
@takes(_CONVERT)
def convert(
    name: Annotated[
        str, typer.Argument(metavar="IN", help="A model's name, or a weight file with --recipe.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    given: Given,
) -> None:
    """Write a model as a folder in diffusers' format, its low-rank update merged."""
    from stillframe.loading.convert import convert_model

    convert_model(name, out, **given)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"{out}: {size / 1e9:.2f} GB")
