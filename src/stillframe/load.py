"""Find and load a model: a bundled one, a folder, or a repository of the Hugging Face hub.

Importing this file is cheap; torch and diffusers are imported when a model is loaded. It does not
know what a model is used for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stillframe.errors import ModelError
from stillframe.styles import Style, load_styles

if TYPE_CHECKING:
    import torch

    from stillframe.pipeline import CausalWanPipeline

__all__ = ["bundled_models", "find_model", "load_pipeline", "model_styles", "pick_device"]

_BUNDLED = Path(__file__).parent / "models"
_INDEX = "model_index.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def bundled_models() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(_BUNDLED.glob(f"*/{_INDEX}"))}


def find_model(name: str) -> str:
    """What ``from_pretrained`` takes for a model's name: a folder, or a hub id unchanged.

    Args:
        name: a bundled model, a folder in diffusers' format, or ``owner/name`` on the hub. Folders
            win over hub ids.

    Raises:
        ModelError: it is none of these.
    """
    bundled = bundled_models()
    if name in bundled:
        return str(bundled[name])
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / _INDEX).is_file():
            raise ModelError(f"{name} is not a model: the folder has no {_INDEX}")
        return str(folder)
    if folder.exists():
        raise ModelError(f"{name} is a file, and a model is a folder in diffusers' format")
    if _HUB_ID.fullmatch(name):
        return name
    known = ", ".join(bundled) or "none"
    raise ModelError(
        f"unknown model {name!r}: it is no folder and no hub id (owner/name); bundled models are "
        f"{known}"
    )


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto" is the GPU if there is one.

    Raises:
        ValueError: torch does not know it, or it is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; known are auto, cpu and cuda") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name!r} is not there: torch sees {count} CUDA devices")
    return device


def _pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name; "auto" is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: it is not one of these.
    """
    import torch

    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known are {', '.join(_DTYPES)}")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_pipeline(
    name: str = "tiny", *, device: str = "auto", dtype: str = "auto"
) -> CausalWanPipeline:
    """Load a model, ready to edit; says nothing unless something has to be downloaded.

    Args:
        name: see `find_model`.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        ModelError: there is no such model, or it cannot be loaded or driven.
        ValueError: no such device or dtype.
    """
    place = find_model(name)
    chosen_device = pick_device(device)
    chosen_dtype = _pick_dtype(dtype, chosen_device)
    with _quietly():
        from stillframe.pipeline import CausalWanPipeline

        try:
            pipe: CausalWanPipeline = CausalWanPipeline.from_pretrained(place, dtype=chosen_dtype)
        except ModelError:
            raise
        except Exception as error:  # damaged or foreign folders fail in every way there is
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{name} cannot be loaded: {_first_sentence(reason)}") from error
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(chosen_device)


def _first_sentence(text: str, most: int = 300) -> str:
    sentence = re.split(r"(?<=[.!?])\s| \(", text, maxsplit=1)[0].rstrip(".")
    return sentence if len(sentence) <= most else sentence[: most - 3] + "..."


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars, log lines and warnings of diffusers and transformers within the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers.utils.logging as of_diffusers
        import transformers.utils.logging as of_transformers

        libraries = (of_diffusers, of_transformers)
        before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in libraries]
        for log in libraries:
            log.set_verbosity_error()
            log.disable_progress_bar()
        try:
            yield
        finally:
            for log, (verbosity, had_bar) in zip(libraries, before, strict=True):
                log.set_verbosity(verbosity)
                if had_bar:
                    log.enable_progress_bar()


def model_styles(name: str) -> tuple[Style, ...]:
    """The style table of a model; empty for models without one, and for those on the hub.

    Raises:
        ModelError: there is no such model, or its table is damaged.
    """
    return load_styles(Path(find_model(name)))
