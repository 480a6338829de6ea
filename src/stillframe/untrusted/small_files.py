"""Files of settings that somebody else wrote - JSON, TOML, lines - read within bounds.

Size, depth and numbers are bounded before they can cost memory or the stack, and whatever is wrong
becomes a ``ValueError`` of one sentence about the content. Knows no format of ours.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tomllib
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["decode", "parse_json", "parse_toml", "read_bounded"]

_DEEPEST_KEY = 32
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_FLOAT = re.compile(r"\d\.\d")


def read_bounded(path: str | PathLike[str], most: int) -> bytes:
    """A file's content.

    Args:
        path: of a file.
        most: bytes it may have.

    Raises:
        OSError: it cannot be read, is larger, or no regular file.
    """
    place = Path(path)
    if not (os.path.isfile(place) or os.path.isdir(place)) and os.path.exists(place):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    with place.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content


def decode(content: bytes) -> str:
    """Text in UTF-8.

    Raises:
        ValueError: it is none.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8, from byte {error.start} on") from None


def parse_json(text: str | bytes) -> Any:
    """JSON, without its extensions NaN and Infinity.

    Raises:
        ValueError: it is none, or nests too deep.
    """
    try:
        return json.loads(decode(text) if isinstance(text, bytes) else text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("its values nest too deep") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not a number")


def parse_toml(text: str) -> dict[str, Any]:
    """TOML with keys of at most 32 parts: tomllib takes memory by the square of these.

    Raises:
        ValueError: it is none, or nests too deep.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > _DEEPEST_KEY:
            bare = _QUOTED.sub("", line).partition("#")[0]
            if _FLOAT.sub("", bare).count(".") > _DEEPEST_KEY:
                raise ValueError(f"its line {number} has a key of more than {_DEEPEST_KEY} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values nest too deep") from None
