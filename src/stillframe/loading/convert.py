"""Published weights to a folder in diffusers' format, which then needs no recipe.

The folder has what `CausalWanPipeline.from_pretrained` reads: the recipe's numbers are in its
``model_index.json``, low-rank updates are merged. It does not know how models are run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch

from stillframe.backbones.model_folder import check_file, check_links
from stillframe.errors import ModelError, OutputError
from stillframe.loading import hub
from stillframe.loading.assemble import Source, build, open_text
from stillframe.loading.load import find_source, pick_device, pick_dtype
from stillframe.loading.loader_calls import one_sentence, quietly
from stillframe.loading.recipes import load_recipes
from stillframe.whole_file import whole_folder

__all__ = ["convert", "convert_model"]

_TEXT = ("text_encoder", "tokenizer")


def convert(source: Source, out: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a model folder.

    Args:
        source: with all its files on disk.
        out: the folder to make; it must not exist.
        dtype: of the weights written; diffusers' exceptions stay in float32.

    Returns:
        ``out``.

    Raises:
        ModelError: the model cannot be loaded, or links in its folder lead out of it.
        OutputError: the folder exists or cannot be written; nothing half-written is left.
    """
    if os.path.lexists(out):  # said before a model is read
        raise OutputError(f"{out} is there already, and a model needs a new folder")
    check_links(source.folder())
    if source.recipe is not None and source.recipe.lora is not None:
        # nobody has named this one: it is taken along with the weights
        lora = hub.require(source.recipe.repo_place, source.recipe.lora, source.name)
        check_file(lora.parent, lora.name)
    pipe = build(source, dtype, open_text(source, dtype))
    pipe.set_progress_bar_config(disable=True)
    with whole_folder(out) as part:
        pipe.save_pretrained(part)
        _add_text(source.folder(), part)
    return out


def convert_model(
    name: str,
    out: Path,
    *,
    recipe: str | None = None,
    vae: str | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Write a model as a folder in diffusers' format; see `convert`.

    Args:
        name: of the model, or a weight file.
        out: the folder to make.
        recipe: what a weight file is weights of.
        vae, dtype: see `load_pipeline`.

    Raises:
        ModelError, OutputError: see `find_source` and `convert`.
        ValueError: a weight file without a recipe, or a recipe without one.
    """
    file = Path(name).expanduser()
    if os.path.isfile(file) != (recipe is not None):
        raise ValueError(
            f"--recipe says what a weight file is weights of: {name} is "
            f"{'a file' if os.path.isfile(file) else 'none'}, --recipe is {recipe}"
        )
    source = find_source(name if recipe is None else recipe, vae)
    if recipe is not None:
        if source.recipe is None:
            raise ModelError(f"{recipe} is no recipe; recipes are {', '.join(load_recipes())}")
        lora = source.recipe.lora
        if lora is not None and not (file.parent / Path(lora).name).is_file():
            raise ModelError(
                f"{recipe} is not complete without its {Path(lora).name}, which is not in "
                f"{file.parent}"
            )
        own = dataclasses.replace(
            source.recipe,
            repo=str(file.parent.resolve()),
            file=file.name,
            lora=None if lora is None else Path(lora).name,
            # pins are of the recipe's own files, and these are the user's
            revision=None,
            sha256=None,
            lora_sha256=None,
        )
        source = dataclasses.replace(source, recipe=own)
    if not all(found.present for found in hub.on_disk(source.wanted)):
        hub.fetch(source.wanted)
    with quietly(), one_sentence(name):
        return convert(source, out, pick_dtype(dtype, pick_device("cpu")))


def _add_text(base: Path, folder: Path) -> None:
    """Text encoder and tokenizer of the base, byte for byte, and their lines in the index."""
    for name in _TEXT:
        # links into a cache become files, and others were refused
        shutil.copytree(base / name, folder / name)
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    of_base = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    index.update({name: of_base[name] for name in _TEXT})
    index_path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
