"""How diffusers and transformers are called to load a model: silently, their errors as sentences.

Importing this file is cheap. It does not know which models there are.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from stillframe.errors import ModelError, StillframeError

__all__ = ["one_sentence", "quietly"]


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Whatever goes wrong while a model is loaded as a `ModelError` in one sentence."""
    try:
        yield
    except StillframeError:
        raise
    except Exception as error:  # damaged or foreign folders fail in every way there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{name} cannot be loaded: {_first_sentence(reason)}") from error


def _first_sentence(text: str, most: int = 300) -> str:
    sentence = re.split(r"(?<=[.!?])\s| \(", text, maxsplit=1)[0].rstrip(".")
    return sentence if len(sentence) <= most else sentence[: most - 3] + "..."


@contextmanager
def quietly() -> Iterator[None]:
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
