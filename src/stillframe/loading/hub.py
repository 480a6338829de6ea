"""Files of models on the Hugging Face hub: what is wanted, what is on disk, and fetching the rest.

Knows huggingface_hub, which is imported when it is used, and its cache: HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE and HF_ENDPOINT count as they do there (read once, when it is imported). Wherever a
repository is named, a folder may stand instead, whose files are simply there. Does not know what is
in the files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from stillframe.errors import ModelError
from stillframe.loading.bases import known_base, stored_sizes
from stillframe.loading.hub_calls import Progress, one_sentence_hub_errors, silent_bar
from stillframe.untrusted.small_files import parse_json, read_bounded

if TYPE_CHECKING:
    from stillframe.loading.recipes import Recipe

__all__ = [
    "TINY_VAE_FILE",
    "TINY_VAE_FILES",
    "TINY_VAE_REPO",
    "VAES",
    "RemoteFile",
    "Wanted",
    "check_pins",
    "check_sha256",
    "fetch",
    "find",
    "find_folder",
    "latent_channels",
    "on_disk",
    "require",
    "size_text",
    "survey",
    "tiny_vae",
    "to_download",
    "wanted_by",
    "wanted_folder",
]

TINY_VAE_REPO = "lightx2v/Autoencoders"
TINY_VAE_FILE = "taew2_1.safetensors"
TINY_VAE_FILES = {16: TINY_VAE_FILE, 48: "taew2_2.safetensors"}
"""Tiny autoencoders of Wan 2.1 and 2.2, by latent channels."""

VAES = ("tiny", "full")

_BASE = ("model_index.json", "transformer/config.json")
_WHOLE = ("model_index.json", "transformer/*")
_AROUND = ("text_encoder/*", "tokenizer/*", "scheduler/*")
_FULL_VAE = "vae/*"
# of a configuration
_MOST_CONFIG_BYTES = 2**22


@dataclass(frozen=True)
class Wanted:
    """Files of one repository.

    Attributes:
        repo: a hub id (owner/name, or owner/name@commit), or a folder; a folder that is there wins.
        files: names within it, or patterns in which ``*`` also stands for ``/``.
    """

    repo: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        repo: as in `Wanted`.
        name: within the repository; a pattern, if nothing that matches it is known.
        size: in bytes, None if not known.
        present: it is on disk.
    """

    repo: str
    name: str
    size: int | None
    present: bool


def wanted_by(recipe: Recipe, vae: str = "tiny") -> tuple[Wanted, ...]:
    """What a recipe needs: its weights, and of its base everything but the transformer's weights.

    Args:
        recipe: see `Recipe`.
        vae: "full" for the autoencoder of the base, "tiny" for the small one.

    Raises:
        ValueError: it is neither.
    """
    if vae not in VAES:
        raise ValueError(f"unknown autoencoder {vae!r}; known are {', '.join(VAES)}")
    weights = (recipe.file,) if recipe.lora is None else (recipe.file, recipe.lora)
    base = (*_BASE, *_AROUND, _FULL_VAE) if vae == "full" else (*_BASE, *_AROUND)
    wanted = (Wanted(recipe.repo_place, weights), Wanted(recipe.base_place, base))
    return wanted if vae == "full" else (*wanted, tiny_vae(recipe.base_place))


def latent_channels(base: str) -> int:
    """C of a base's latents: of a known one, or as its configuration on disk says; else Wan 2.1's.

    Args:
        base: as in `Wanted`.
    """
    config = known_base(_split(base)[0]).get("transformer", {})
    path = find(base, "transformer/config.json")
    if path is not None:
        with suppress(OSError, ValueError):  # whoever loads it says what is wrong with it
            found = parse_json(read_bounded(path, _MOST_CONFIG_BYTES))
            config = found if isinstance(found, dict) else config
    channels = config.get("out_channels") or config.get("in_channels")
    return channels if isinstance(channels, int) else min(TINY_VAE_FILES)


def tiny_vae(base: str) -> Wanted:
    """The tiny autoencoder of a base's latents; Wan 2.1's where there is none of so many channels.

    Args:
        base: as in `Wanted`.
    """
    file = TINY_VAE_FILES.get(latent_channels(base), TINY_VAE_FILE)
    return Wanted(TINY_VAE_REPO, (file,))


def wanted_folder(repo: str) -> tuple[Wanted, ...]:
    """What a whole model in diffusers' format consists of."""
    return (Wanted(repo, (*_WHOLE, *_AROUND, _FULL_VAE)),)


def to_download(recipe: Recipe, vae: str = "tiny") -> tuple[int, bool] | None:
    """What of a recipe's files is not on disk, without using the network.

    Args:
        recipe, vae: see `wanted_by`.

    Returns:
        bytes, and whether the hub has said so: else they are worked out from the base's shape,
        small files left out. None where neither is known.
    """
    absent = [file for file in on_disk(wanted_by(recipe, vae)) if not file.present]
    about = stored_sizes(_split(recipe.base_place)[0])
    total, recorded = 0, True
    for file in absent:
        if file.size is not None:
            total += file.size
        elif about:
            total, recorded = total + _about(file, recipe, about), False
        else:
            return None
    return total, recorded


def _about(file: RemoteFile, recipe: Recipe, sizes: Mapping[str, int]) -> int:
    """Bytes of a file, or of all that a pattern stands for; 0 of small ones."""
    if file.name == recipe.file:
        return sizes["weights"]
    if file.repo == TINY_VAE_REPO:
        return sizes["tiny"]
    return sizes.get(file.name.partition("/")[0], 0)


def survey(wanted: Iterable[Wanted]) -> list[RemoteFile]:
    """Ask the hub for every wanted file, its size, and whether it still has to be downloaded.

    In offline mode the hub is not asked, and everything must be on disk.

    Raises:
        ModelError: the hub cannot be reached or refuses, or there is no such file.
    """
    return _once(file for entry in wanted for file in _survey(entry))


def on_disk(wanted: Iterable[Wanted]) -> list[RemoteFile]:
    """What is on disk of the wanted files, without using the network.

    A pattern stands for the files that the repository is known to have: those it had when it was
    last fetched, else those on disk; where that is none, the pattern is listed as absent.

    Raises:
        ModelError: a repository's name is malformed, or its folder cannot be read.
    """
    return _once(file for entry in wanted for file in _local(entry))


def fetch(
    wanted: Iterable[Wanted],
    progress: Progress | None = None,
    files: Sequence[RemoteFile] | None = None,
) -> list[Path]:
    """Download what is missing, one file after the other; returns where all wanted files are.

    A connection that breaks is taken up again where it broke, by huggingface_hub itself, until it
    has failed six times in a row. What survives a failed or interrupted call are its complete
    files: huggingface_hub (from 1.31 on, and still in 2.4) deletes the part of a file that it had,
    so that the next call starts that one file anew.

    Args:
        wanted: see `Wanted`.
        progress: see `Progress`; called from the thread that downloads.
        files: the survey of ``wanted``, if there has just been one.

    Raises:
        ModelError: what `survey` raises, the disk has less room than is needed (said before
            anything is downloaded), or the connection broke.
    """
    wanted = tuple(wanted)
    listed = survey(wanted) if files is None else files
    missing = [file for file in listed if not file.present]
    _check_room(missing)
    _keep_listings(wanted, {file.repo for file in missing})
    return [_get(file, progress) for file in listed]


def find(repo: str, file: str) -> Path | None:
    """Where one file is on disk, None if it is not there; without using the network.

    Raises:
        ModelError: the repository's name is malformed.
    """
    if (folder := _folder(repo)) is not None:
        return folder / file if os.path.isfile(folder / file) else None
    with one_sentence_hub_errors(repo):
        from huggingface_hub import try_to_load_from_cache

        hub_id, revision = _split(repo)
        path = try_to_load_from_cache(hub_id, file, revision=revision)
    # neither str nor None: the hub is known not to have it
    return Path(path) if isinstance(path, str) else None


def find_folder(repo: str, patterns: Sequence[str]) -> Path | None:
    """The folder that has all files of ``patterns``, None if one is missing; without network.

    Raises:
        ModelError: the repository's name is malformed, or its folder cannot be read.
    """
    if not all(file.present for file in _local(Wanted(repo, tuple(patterns)))):
        return None
    folder = _folder(repo)
    return _snapshot(repo) if folder is None else folder


def require(repo: str, file: str, name: str) -> Path:
    """Where one file of the model called ``name`` is on disk.

    Raises:
        ModelError: it is not there; the sentence says which command gets it.
    """
    if (path := find(repo, file)) is not None:
        return path
    if (folder := _folder(repo)) is not None:
        raise ModelError(_missing_in(folder, file))
    raise ModelError(f"{file} of {repo} is not on disk: `stillframe models fetch {name}` gets it")


def check_pins(recipe: Recipe) -> None:
    """Refuse files that are not those that a recipe pins.

    Raises:
        ModelError: one is another, or not on disk.
    """
    for file, expected in recipe.pins.items():
        path = require(recipe.repo_place, file, recipe.name)
        check_sha256(path, expected, f"recipe {recipe.name!r}")


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Refuse a file that is not the one that was pinned.

    Args:
        path: it.
        expected: in hexadecimal digits.
        what: who pinned it.

    Raises:
        ModelError: it is another, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected:
        raise ModelError(
            f"{path} is not the file that {what} pins: its SHA-256 is {found}, and {expected} was "
            "expected"
        )


def size_text(size: int | None) -> str:
    """Bytes for people: "5.7 GB"."""
    if size is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _once(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    return list({(file.repo, file.name): file for file in files}.values())


def _split(repo: str) -> tuple[str, str | None]:
    """Hub id and commit of what is no folder; None for the latest one."""
    hub_id, _, revision = repo.partition("@")
    return hub_id, revision or None


def _folder(repo: str) -> Path | None:
    """The folder that ``repo`` names, there or not; None for what can only be a hub id."""
    path = Path(repo).expanduser()
    named = path.is_absolute() or repo.startswith(".") or os.path.isdir(path)
    return path if named else None


def _matching(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names in the order of the patterns; a pattern that matches nothing stands for itself."""
    matches: dict[str, None] = {}
    ordered = sorted(names)
    for pattern in patterns:
        matches.update(dict.fromkeys([n for n in ordered if fnmatchcase(n, pattern)] or [pattern]))
    return list(matches)


def _missing_in(folder: Path, name: str) -> str:
    if not os.path.isdir(folder):
        return f"there is no folder {folder}"
    return f"folder {folder} has no file {name}"


def _snapshot(repo: str) -> Path | None:
    """The folder of the cache that holds what was last fetched of a repository."""
    with one_sentence_hub_errors(repo):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            # no pattern: whether it is complete is a question of what is wanted
            hub_id, revision = _split(repo)
            found = snapshot_download(
                hub_id, revision=revision, allow_patterns=[], local_files_only=True
            )
            return Path(found)
        except LocalEntryNotFoundError:
            return None


def _listing(repo: str) -> dict[str, int | None]:
    """Sizes of all files of a repository as of its last fetch, by name; may be empty."""
    with one_sentence_hub_errors(repo):
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            hub_id, revision = _split(repo)
            tree = get_cached_repo_tree(hub_id, revision=revision)
            return {file.path: file.size for file in tree}
        except CachedRepoTreeNotFoundError:
            return {}


def _local(wanted: Wanted) -> list[RemoteFile]:
    folder = _folder(wanted.repo)
    known: dict[str, int | None] = {}
    if folder is None:
        folder, known = _snapshot(wanted.repo), _listing(wanted.repo)
    here: dict[str, int] = {}
    if folder is not None:
        with one_sentence_hub_errors(wanted.repo):
            paths = [path for path in folder.rglob("*") if path.is_file()]
            here = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    known.update(here)
    return [
        RemoteFile(wanted.repo, name, known.get(name), name in here)
        for name in _matching(wanted.files, known)
    ]


def _survey(wanted: Wanted) -> list[RemoteFile]:
    from huggingface_hub import is_offline_mode

    folder = _folder(wanted.repo)
    if folder is None and not is_offline_mode():
        return _ask(wanted)
    files = _local(wanted)
    absent = [file.name for file in files if not file.present]
    if absent and folder is not None:
        raise ModelError(_missing_in(folder, absent[0]))
    if absent:
        place = f"{absent[0]} of {wanted.repo} is not on disk"
        raise ModelError(f"offline mode is on (HF_HUB_OFFLINE), and {place}")
    return files


def _ask(wanted: Wanted) -> list[RemoteFile]:
    from huggingface_hub import snapshot_download

    repo, patterns = wanted.repo, list(wanted.files)
    hub_id, revision = _split(repo)
    with one_sentence_hub_errors(repo):
        infos = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=patterns,
            dry_run=True,
            tqdm_class=silent_bar(),
        )
    known = {info.filename: info for info in infos}
    for name in (names := _matching(patterns, known)):
        if name not in known:
            raise ModelError(f"{repo} has no file {name}")
    there = [known[name] for name in names]
    return [RemoteFile(repo, i.filename, i.file_size, not i.will_download) for i in there]


def _check_room(missing: Sequence[RemoteFile]) -> None:
    """Refuse a download that the disk of the cache has no room for."""
    needed = sum(file.size or 0 for file in missing)
    if not needed:
        return
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ModelError(
            f"{size_text(needed)} are to be downloaded, and {cache} has room for {size_text(free)};"
            " HF_HOME may name a folder on another disk"
        )


def _keep_listings(wanted: Iterable[Wanted], repos: set[str]) -> None:
    """Let the cache know what the repositories have, so that a part is not taken for all."""
    from huggingface_hub import snapshot_download

    patterned = {entry.repo for entry in wanted if any("*" in name for name in entry.files)}
    for repo in sorted(patterned & repos):
        with one_sentence_hub_errors(repo):
            hub_id, revision = _split(repo)
            snapshot_download(hub_id, revision=revision, allow_patterns=[], tqdm_class=silent_bar())


def _get(file: RemoteFile, progress: Progress | None) -> Path:
    if (path := find(file.repo, file.name)) is not None:
        return path
    with one_sentence_hub_errors(file.repo, file.name):
        from huggingface_hub import hf_hub_download

        bar = silent_bar(file.name, progress)
        hub_id, revision = _split(file.repo)
        return Path(hf_hub_download(hub_id, file.name, revision=revision, tqdm_class=bar))
