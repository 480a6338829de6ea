"""The models that come with the package: folders in diffusers' format, by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundled_models"]

_FOLDER = Path(__file__).parent


def bundled_models() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(_FOLDER.glob("*/model_index.json"))}
