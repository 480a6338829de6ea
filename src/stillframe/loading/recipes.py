"""Recipes: where published causal models are, and how each is meant to be run.

``recipes.toml`` beside this file is the table; a file of the user's own adds to it. A recipe says
where weights lie and which numbers go with them. It does not load or download anything.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import typer

from stillframe.errors import ModelError
from stillframe.tokens.schedule import check_sigmas, nearest_sigma, shift_sigma
from stillframe.untrusted.numbers import check_number, shortened
from stillframe.untrusted.small_files import decode, parse_toml, read_bounded

__all__ = ["RECIPES_VARIABLE", "Recipe", "load_recipes", "read_recipes", "user_recipes"]

RECIPES_VARIABLE = "STILLFRAME_RECIPES"
"""Environment variable that names a recipe file of the user's own."""

# latent frames that attention may see, and what factors there are, far beyond any model's
_MOST_FRAMES = 10**6
_LARGEST_NUMBER = 10**6
# of a file of recipes
_MOST_BYTES = 2**20

TIMESTEPS = 1000
"""A model's timestep at sigma 1."""

_EDIT_STEPS = (400, 350, 250)

# how the name of a folder starts, unlike a hub id
_FOLDERS = (".", "/", "~")

# what becomes of keys and values when the prompt changes
_PROMPT_CHANGES = ("keep", "recompute")

# fields that pin something: hexadecimal digits, and the field that they are about
_PINS = {
    "revision": (40, "repo"),
    "base_revision": (40, "base"),
    "sha256": (64, "file"),
    "lora_sha256": (64, "lora"),
}


@dataclass(frozen=True)
class Recipe:
    """One published model; ``recipes.toml`` explains the fields.

    ``folder`` is the one that relative paths in ``repo`` and ``base`` start from.
    """

    name: str
    folder: Path
    title: str
    repo: str
    file: str
    base: str
    steps: tuple[float, ...]
    warp: bool
    shift: float
    block: int
    window: int
    sink: int
    keys: tuple[str, ...] = ()
    first_steps: tuple[float, ...] | None = None
    nearest: bool = False
    edit_steps: tuple[float, ...] | None = None
    edit_noise: float | None = None
    edit_normalised: bool = True
    edit_block: int | None = None
    edit_window: int = 6
    edit_sink: int = 1
    positions: int = 21
    context_sink: bool = True
    sink_average: float | None = None
    prompt_change: str = "keep"
    lora: str | None = None
    lora_scale: float = 1.0
    licence: str = "not stated"
    paper: str = ""
    revision: str | None = None
    base_revision: str | None = None
    sha256: str | None = None
    lora_sha256: str | None = None

    @property
    def generate_levels(self) -> tuple[float, ...]:
        """Noise levels that the model is told in text-to-video, falling from 1."""
        return self._levels(self.steps, self.warp)

    @property
    def first_levels(self) -> tuple[float, ...] | None:
        """The same in its first block, None where they are those of any other."""
        return None if self.first_steps is None else self._levels(self.first_steps, self.warp)

    @property
    def edit_levels(self) -> tuple[float, ...]:
        """The same in video-to-video (the pruning papers' steps are warped by the shift)."""
        if self.edit_steps is None:
            return self._levels(_EDIT_STEPS, True)
        return self._levels(self.edit_steps, self.warp)

    @property
    def generate_sigmas(self) -> tuple[float, ...]:
        """Noise levels that text-to-video is denoised at, see ``nearest``."""
        return self._sigmas(self.generate_levels)

    @property
    def edit_sigmas(self) -> tuple[float, ...]:
        """The same of video-to-video."""
        return self._sigmas(self.edit_levels)

    def _levels(self, steps: tuple[float, ...], warp: bool) -> tuple[float, ...]:
        shares = (step / TIMESTEPS for step in steps)
        return tuple(shift_sigma(u, self.shift) if warp else u for u in shares)

    def _sigmas(self, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not self.nearest:
            return levels
        return tuple(nearest_sigma(told, self.shift, TIMESTEPS) for told in levels)

    @property
    def edited(self) -> int:
        """Latent frames denoised together in video-to-video."""
        return self.block if self.edit_block is None else self.edit_block

    @property
    def repo_place(self) -> str:
        """Where the weights are, as `hub.Wanted` has it: a folder, or a hub id and its commit."""
        return self.place(self.repo) + (f"@{self.revision}" if self.revision else "")

    @property
    def base_place(self) -> str:
        """Where the base is, likewise."""
        return self.place(self.base) + (f"@{self.base_revision}" if self.base_revision else "")

    @property
    def pins(self) -> dict[str, str]:
        """The SHA-256 that files of the weights' repository must have, by their names."""
        pinned = {self.file: self.sha256, self.lora: self.lora_sha256}
        return {file: value for file, value in pinned.items() if file and value}

    def place(self, repo: str) -> str:
        """A hub id as it is; a folder (``./x``, ``../x``, ``/x``, ``~/x``) as an absolute path."""
        if not repo.startswith(_FOLDERS):
            return repo
        return str((self.folder / os.path.expanduser(repo)).resolve())


# what a field that may be left out holds where it is not
_PLAIN: dict[Any, type] = {str | None: str, int | None: int, float | None: float}


def _convert(value: Any, wanted: Any) -> Any:
    """``value`` from TOML as a field of type ``wanted``; Type- or OverflowError if it is none."""
    if wanted in (tuple[float, ...], tuple[float, ...] | None) and isinstance(value, list):
        return tuple(_convert(entry, float) for entry in value)
    if wanted == tuple[str, ...] and isinstance(value, list):
        return tuple(_convert(entry, str) for entry in value)
    if (
        _PLAIN.get(wanted, wanted) is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ):
        if not math.isfinite(value):  # TOML has nan and inf
            raise TypeError
        return float(value)
    plain = _PLAIN.get(wanted, wanted)
    if not isinstance(plain, type) or type(value) is not plain:
        raise TypeError
    return value


def _recipe(name: str, table: Mapping[str, Any], path: Path) -> Recipe:
    """Check one table of ``path``.

    Raises:
        ModelError: a field is unknown, missing, of the wrong type or out of range.
    """
    place = f"recipe {name!r} in {path}"
    known = {f.name: f for f in fields(Recipe) if f.name not in ("name", "folder")}
    hints, given = get_type_hints(Recipe), {}
    for key, value in _in_frames(table).items():
        if key not in known:
            raise ModelError(f"{place} has an unknown field {key!r}; known are {', '.join(known)}")
        try:
            given[key] = _convert(value, hints[key])
        except (TypeError, OverflowError):
            told = f"{key} = {shortened(value)}"
            raise ModelError(f"{place} has {told}, which is of the wrong type") from None
    for key, entry in known.items():
        if entry.default is MISSING and key not in given:
            raise ModelError(f"{place} has no {key}")
    recipe = Recipe(name=name, folder=path.parent.resolve(), **given)
    _check_pins(recipe, place)
    _check_numbers(recipe, place)
    _check_steps(recipe, place)
    return recipe


def _in_frames(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table whose sinks are counted in frames: "2 blocks" are as many as those have."""
    found = dict(table)
    for key, block in (("sink", "block"), ("edit_sink", "edit_block")):
        count = re.fullmatch(r"(\d{1,4}) blocks?", str(table.get(key)))
        size = table.get(block, table.get("block"))
        if count is not None and type(size) is int:
            found[key] = int(count[1]) * size
    return found


def _check_numbers(recipe: Recipe, place: str) -> None:
    """Refuse frames and numbers that no model can have."""
    if min(recipe.block, recipe.shift) < 1 or min(recipe.sink, recipe.edit_sink) < 0:
        raise ModelError(f"{place} needs block and shift of at least 1 and sinks of at least 0")
    for window, block in ((recipe.window, recipe.block), (recipe.edit_window, recipe.edited)):
        if window < block:
            raise ModelError(f"{place} has a window smaller than its block of {block}")
    _check_average(recipe, place)
    if recipe.prompt_change not in _PROMPT_CHANGES:
        known = " and ".join(_PROMPT_CHANGES)
        raise ModelError(
            f"{place} has prompt_change = {recipe.prompt_change!r}, and known are {known}"
        )
    try:
        for name in ("block", "window", "sink", "edit_window", "edit_sink", "positions"):
            check_number(name, getattr(recipe, name), 0, _MOST_FRAMES, whole=True)
        check_number("edit_block", recipe.edited, 1, _MOST_FRAMES, whole=True)
        if recipe.edit_noise is not None:
            check_number("edit_noise", recipe.edit_noise, 1, TIMESTEPS)
        check_number("shift", recipe.shift, 1, _LARGEST_NUMBER)
        check_number("lora_scale", recipe.lora_scale, -_LARGEST_NUMBER, _LARGEST_NUMBER)
    except ValueError as error:
        raise ModelError(f"{place} has a number out of bounds: {error}") from error


def _check_average(recipe: Recipe, place: str) -> None:
    """Refuse a sink that cannot be an average of blocks: it and the window hold one each."""
    if recipe.sink_average is None:
        return
    if not 0 <= recipe.sink_average <= 1:
        raise ModelError(f"{place} has sink_average = {recipe.sink_average:g}, not within 0 and 1")
    ways = (
        ("", recipe.sink, recipe.window, recipe.block),
        ("edit_", recipe.edit_sink, recipe.edit_window, recipe.edited),
    )
    for way, sink, window, block in ways:
        if sink not in (0, block) or (sink and window < 2 * block):
            raise ModelError(
                f"{place} has sink_average and {way}sink {sink}, {way}window {window}: it needs a "
                f"sink of {block} and a window of at least {2 * block}"
            )


def _check_steps(recipe: Recipe, place: str) -> None:
    """Refuse steps that are no schedule."""
    steps = [recipe.steps] if recipe.first_steps is None else [recipe.steps, recipe.first_steps]
    try:
        for told in (recipe.generate_levels, recipe.first_levels, recipe.edit_levels):
            if told is not None:
                # a level of 0 can be told where another one is denoised at
                check_sigmas([level or 1e-12 for level in told] if recipe.nearest else told)
                check_sigmas(recipe._sigmas(told))
    except ValueError as error:
        raise ModelError(f"{place} has steps out of order: {error}") from error
    for own in steps:
        if own[0] != TIMESTEPS:
            first = f"{own[0]:g}, and text-to-video starts from noise, at {TIMESTEPS}"
            raise ModelError(f"{place} has steps that start at {first}")
    if len(steps[-1]) < len(recipe.steps):
        raise ModelError(
            f"{place} has {len(steps[-1])} first_steps, and later blocks have {len(recipe.steps)}"
        )


def _check_pins(recipe: Recipe, place: str) -> None:
    """Refuse pins that pin nothing: a branch's or a tag's name may mean another file tomorrow."""
    for key, (digits, about) in _PINS.items():
        value, pinned = getattr(recipe, key), getattr(recipe, about)
        if value is None:
            continue
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ModelError(f"{place} has {key} = {value!r}, which is not {digits} digits 0-9a-f")
        if pinned is None:
            raise ModelError(f"{place} has {key} and no {about}")
        if about in ("repo", "base") and pinned.startswith(_FOLDERS):
            raise ModelError(f"{place} has {key}, and its {about} {pinned} is a folder")


def read_recipes(path: Path) -> dict[str, Recipe]:
    """The recipes of one file, by name.

    Raises:
        ModelError: it cannot be read, or an entry is wrong.
    """
    try:
        tables = parse_toml(decode(read_bounded(path, _MOST_BYTES)))
    except OSError as error:
        raise ModelError(f"recipe file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"recipe file {path} is not valid TOML: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ModelError(f"recipe file {path} has {name} outside a [table] of its own")
    return {name: _recipe(name, table, path) for name, table in tables.items()}


def user_recipes() -> Path | None:
    """The user's recipe file, None if there is none.

    Raises:
        ModelError: the environment variable names a file that is not there.
    """
    if named := os.environ.get(RECIPES_VARIABLE):
        path = Path(os.path.expanduser(named))
        if not os.path.isfile(path):
            raise ModelError(f"{RECIPES_VARIABLE} names {path}, which is not a file")
        return path
    usual = Path(typer.get_app_dir("stillframe")) / "recipes.toml"
    return usual if usual.is_file() else None


def load_recipes() -> dict[str, Recipe]:
    """All recipes by name: the built-in ones, then the user's, which win.

    Raises:
        ModelError: the user's file is wrong.
    """
    recipes = read_recipes(Path(__file__).with_suffix(".toml"))
    own = user_recipes()
    return recipes if own is None else {**recipes, **read_recipes(own)}
