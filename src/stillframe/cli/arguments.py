"""What the arguments of ``edit`` mean: places, prompts, methods; refused before a model is loaded.

torch is imported by what needs it, see ``cli``. It does not know what an edit is.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillframe.methods import Method
    from stillframe.video import Sink, Source

__all__ = [
    "build_method",
    "check_files",
    "kept_clean",
    "known_store",
    "named_places",
    "placed_prompt",
]


def named_places(
    source: str,
    input_format: str | None,
    timeout: float,
    out: str,
    output_format: str | None,
    background: str = "black",
    max_pixels: int | None = None,
) -> tuple[Source, Sink]:
    """What is meant by the names that were typed."""
    from stillframe.video import Sink, Source
    from stillframe.video.formats import MAX_PIXELS

    most = MAX_PIXELS if max_pixels is None else max_pixels
    return Source.of(source, input_format, timeout, background, most), Sink.of(out, output_format)


def check_files(
    source: Source, out: Sink, map_path: Path | None, report: Path | None, masks: Path | None
) -> None:
    """Refuse what cannot be read or written before anything heavy is imported.

    What can be read only once is left alone.
    """
    from stillframe.jobs.outputs import check_outputs
    from stillframe.video import VideoReader

    if not source.is_live:
        VideoReader(source).close()
    check_outputs(source, out, map_path, report, masks)


def kept_clean(sink: Sink) -> AbstractContextManager[Sink]:
    """Keeps what is printed out of the video, if that goes to standard output."""
    from stillframe.video import video_on_stdout

    return video_on_stdout(sink)


def placed_prompt(
    model: str, prompt: str | None, style: str | None
) -> tuple[str, str | None, tuple[str, ...]]:
    """The prompt for the text encoder, the style it stands for if known, and doubts about that."""
    from stillframe.loading.load import model_styles
    from stillframe.loading.prompts import clean_prompt
    from stillframe.loading.styles import find, place

    if (prompt is None) == (style is None):
        raise ValueError("give either --prompt TEXT or --style NAME")
    known = model_styles(model)
    if prompt is None:
        chosen = find(str(style), known)
        return chosen.prompt, chosen.name, ()
    prompt = clean_prompt(prompt)
    placed = place(prompt, known)
    if placed is not None or not known:
        return prompt, None if placed is None else placed.name, ()
    names = ", ".join(entry.name for entry in known)
    return (
        prompt,
        None,
        (f"{prompt!r} names no style that this model has learnt; it knows {names}",),
    )


def known_store(name: str) -> str:
    """The name of a store back, refused before a model is loaded."""
    from stillframe.settings import check_store

    return check_store(name)


def build_method(name: str, **given: Any) -> Method:
    """The method with what the user asked for; everything else as the method has it."""
    from stillframe.methods import find_method

    kind = find_method(name)
    known = [field.name for field in dataclasses.fields(kind)]
    asked = {key: value for key, value in given.items() if value is not None}
    for key in asked:
        if key not in known:
            raise ValueError(f"method {name!r} has no {key}; it has {', '.join(known)}")
    return kind(**asked)
