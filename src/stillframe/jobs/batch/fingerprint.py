"""What a result was made from, as a short text: equal for the same files, model and options.

A file is told by its size, its time of change and a hash of its ends, not by all of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillframe.loading.identity import ends_of

__all__ = ["fingerprint", "model_identity"]

# of how a model is loaded, what changes its results; a device is where they are made
_OF_A_MODEL = ("dtype", "vae", "attention", "fit")


def fingerprint(*parts: Any) -> str:
    """Of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:32]


def model_identity(given: Mapping[str, Any]) -> str:
    """Of a model and how it is loaded: its name, and the ends of its files on this machine.

    Args:
        given: values of the options that load it.

    Raises:
        ModelError, ValueError: there is no such model or part.
    """
    name, vae = given["model"], given.get("vae")
    files = {part: ends_of(str(path)) for part, path in _files(name, vae).items()}
    updates = [_update(text) for text in given.get("lora") or ()]
    loading = {option: given.get(option) for option in _OF_A_MODEL}
    return fingerprint(name, files, updates, loading)


def _files(name: str, vae: str | None) -> dict[str, Path]:
    """A model's files on disk, by their names in it."""
    from stillframe.loading.hub import find, on_disk
    from stillframe.loading.load import find_source
    from stillframe.models import bundled_models

    found: dict[str, Path] = {}
    if name in bundled_models():
        folder = bundled_models()[name]
        found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    if name not in bundled_models() or vae is not None:
        for file in on_disk(find_source(name, vae).wanted):
            path = find(file.repo, file.name) if file.present else None
            if path is not None:
                found[f"{file.repo} {file.name}"] = path
    if vae is not None and os.path.isfile(os.path.expanduser(vae)):
        found["vae"] = Path(vae).expanduser()
    return dict(sorted(found.items()))


def _update(text: str) -> tuple[str, float]:
    from stillframe.loading.adapt import parse_lora

    path, scale = parse_lora(text)
    return ends_of(str(path)), scale
