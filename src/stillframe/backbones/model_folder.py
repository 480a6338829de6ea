"""Folders of models as others made them: that they are only data, before anything is loaded.

By what is in a folder's JSON files, transformers and diffusers run code that lies in it, import any
module, ask questions on standard input, or read files that lie elsewhere; so do symbolic links.
Everything here refuses such a folder. It does not load models, nor know where folders come from.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from stillframe.errors import ModelError

__all__ = [
    "OLD_VAE",
    "check_classes",
    "check_file",
    "check_links",
    "check_numbers",
    "check_part",
    "is_of_earlier_version",
    "load_tokenizer",
]

# transformers' names, old and new, of the two classes that a tokenizer may be of
_T5 = ("T5Tokenizer", "T5TokenizerFast")
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")

# keys with which a configuration asks for code that comes with it or from a hub
_CODE = ("auto_map", "custom_pipelines")
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")

# More than any model has: of layers, of which each is made before a weight is read, and of anything
# else that is counted, such as the words of a vocabulary.
_MOST_LAYERS = 1_000
_MOST = 10_000_000

_OWN_VAE = "stillframe.autoencoders.tiny"

#: The module that `TinyVideoAutoencoder` was in when earlier versions wrote folders.
OLD_VAE = "stillframe.autoencoder"


def _is_scheduler(library: str, name: str) -> bool:
    return library == "diffusers" and name.endswith("Scheduler")


def _is_vae(library: str, name: str) -> bool:
    own = library in (_OWN_VAE, OLD_VAE) and name == "TinyVideoAutoencoder"
    return own or (library, name) == ("diffusers", "AutoencoderKLWan")


#: Which classes a pipeline's parts may be of, by library and name.
_PARTS: dict[str, Callable[[str, str], bool]] = {
    "tokenizer": lambda library, name: library == "transformers" and name in (*_T5, *_PLAIN),
    "text_encoder": lambda *named: named == ("transformers", "UMT5EncoderModel"),
    "transformer": lambda *named: named == ("diffusers", "WanTransformer3DModel"),
    "vae": _is_vae,
    "scheduler": _is_scheduler,
}


def _read(path: Path) -> dict[str, Any]:
    """The fields of a JSON file; none if it is not there.

    Raises:
        ModelError: it cannot be read, or holds no fields.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON that can be read") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no fields")
    return found


def check_classes(folder: Path, given: Container[str] = ()) -> None:
    """Refuse a folder whose ``model_index.json`` names classes other than those of Wan's parts.

    Args:
        folder: in diffusers' format.
        given: parts that are not loaded from it.

    Raises:
        ModelError: it does, or a part asks for code.
    """
    index = _read(folder / "model_index.json")
    if not isinstance(index.get("_class_name", ""), str):
        raise ModelError(f"{folder} was refused: it names a pipeline of its own, which is code")
    for part, fits in _PARTS.items():
        named = index.get(part)
        if part in given or named in (None, [None, None]):
            continue
        texts = isinstance(named, list) and all(isinstance(text, str) for text in named)
        if not texts or len(named) != 2 or not fits(*named):
            raise ModelError(
                f"{folder} was refused: its {part} is of the class {_shown(named)}, which is none "
                "of Wan's"
            )
        check_part(folder / part)
    if "tokenizer" not in given and index.get("tokenizer") not in (None, [None, None]):
        try:
            _tokenizer_class(folder)
        except ModelError as error:
            raise ModelError(f"{folder} was refused: {error}") from error


def is_of_earlier_version(folder: Path) -> bool:
    """Whether ``model_index.json`` has the autoencoder's class where earlier versions had it."""
    return _read(folder / "model_index.json").get("vae") == [OLD_VAE, "TinyVideoAutoencoder"]


def check_part(folder: Path) -> None:
    """Refuse one part of a model that brings code or has weights that lie elsewhere.

    The transformer's configuration may name code: folders of causal models do, and nothing reads
    that.

    Raises:
        ModelError: it does, or a file of its own that says so cannot be read.
    """
    for name in ("config.json", "tokenizer_config.json"):
        config = _read(folder / name)
        place = f"{folder.parent} was refused: {folder.name}/{name}"
        if name == "config.json":  # the other has 10**30 for "no limit"
            check_numbers(config, place)
        if folder.name == "transformer":
            continue
        for key in _CODE:
            if config.get(key):
                raise ModelError(f"{place} asks for code of its own ({key}), which is never run")
        for key in _KERNELS:
            if "/" in str(config.get(key)):
                raise ModelError(f"{place} asks for code of a hub ({key}), which is never run")
    for path in sorted(folder.glob("*.index.json")):
        shards = _read(path).get("weight_map", {})
        for file in shards.values() if isinstance(shards, dict) else ():
            if not isinstance(file, str) or os.path.basename(file) != file or "\\" in file:
                raise ModelError(
                    f"{folder.parent} was refused: {folder.name}/{path.name} has weights in "
                    f"{_shown(file)}, which is no file beside it"
                )


def check_numbers(config: Mapping[str, Any], name: str) -> None:
    """Refuse a configuration with numbers of which no model could be built in the end.

    Args:
        config: content of a ``config.json``.
        name: of it, for the message.

    Raises:
        ModelError: one of its whole numbers is larger than any model's.
    """
    for key, value in config.items():
        most = _MOST_LAYERS if "layers" in key or "blocks" in key else _MOST
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > most:
                raise ModelError(f"{name} has {key} = {_shown(number)}, and {most} are the most")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder, of a class that is known beforehand.

    Args:
        folder: has ``tokenizer/``; which class it is of, its configuration says, or else
            ``model_index.json``.

    Raises:
        ModelError: it is of another class, or asks for code.
        Exception: what transformers raises for damaged files, which is anything.
    """
    from transformers import PreTrainedTokenizerFast, T5TokenizerFast

    kind = T5TokenizerFast if _tokenizer_class(folder) in _T5 else PreTrainedTokenizerFast
    return kind.from_pretrained(
        folder, subfolder="tokenizer", local_files_only=True, trust_remote_code=False
    )


def _tokenizer_class(folder: Path) -> str:
    """The name of a model's tokenizer class, one of the known ones."""
    check_part(folder / "tokenizer")
    name = _read(folder / "tokenizer" / "tokenizer_config.json").get("tokenizer_class")
    if name is None:
        indexed = _read(folder / "model_index.json").get("tokenizer")
        name = indexed[-1] if isinstance(indexed, list) and indexed else None
    if name not in (*_T5, *_PLAIN):
        known = ", ".join((*_T5, *_PLAIN))
        raise ModelError(f"its tokenizer is of the class {_shown(name)}, and known are {known}")
    return str(name)


def _shown(value: object, most: int = 80) -> str:
    text = ".".join(map(str, value)) if isinstance(value, list) else value
    said = repr(text)
    return said if len(said) <= most else f"{said[: most - 3]}..."


def check_links(folder: Path) -> None:
    """Refuse a model's folder from which something else would be read than what is in it.

    Links may end at files in the folder itself or in the Hugging Face hub's cache, whose snapshots
    are made of links. A snapshot of a cache elsewhere may link to its repository's blobs.

    Raises:
        ModelError: a link ends elsewhere, nowhere or at a folder, or there is something that is
            neither a file nor a folder.
    """
    for name in ("model_index.json", *_PARTS):
        if not os.path.lexists(folder / name):
            continue
        check_file(folder, name)
        for place, folders, files in os.walk(folder / name):
            for inner in sorted((*folders, *files)):
                check_file(folder, str((Path(place) / inner).relative_to(folder)))


def check_file(folder: Path, name: str) -> Path:
    """Where a file or folder of somebody else's folder really is; see `check_links`.

    Raises:
        ModelError: see there.
    """
    what = f"{name} of {folder}"
    try:
        real = (folder / name).resolve(strict=True)
        kind = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # Python 3.12 and before have the latter for circles
        raise ModelError(f"{what} is a link that leads nowhere") from error
    if not any(real.is_relative_to(root) for root in _roots(folder.resolve())):
        raise ModelError(
            f"{what} is a link to {real}, which is neither in that folder nor in the hub's cache"
        )
    if stat.S_ISDIR(kind) and (folder / name).is_symlink():
        raise ModelError(f"{what} is a link to a folder, and only those to files are followed")
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise ModelError(f"{what} is neither a file nor a folder")
    return real


def _roots(top: Path) -> tuple[Path, ...]:
    """Where links in a resolved folder may end."""
    from huggingface_hub import constants

    roots = [top, Path(constants.HF_HUB_CACHE).expanduser().resolve()]
    if top.parent.name == "snapshots":
        roots.append(top.parent.parent / "blobs")
    return tuple(roots)
