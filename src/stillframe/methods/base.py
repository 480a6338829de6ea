"""A method: which tokens of a block are computed, and what stands in for the others.

A method is a frozen dataclass - parameters, repr and equality in one object - that makes one
*selector* a stream. A selector is called once a block and returns the keep mask; it may remember
what it has seen, and must not look ahead. The engine sees to the rest: a stream's first block is
whole, pruned tokens are recovered and restored. A method that merges tokens instead keeps them all
and gives a *merger* as well (``merging.TokenMerging``).

Adding one: a file in this package (or anywhere, if it is imported) with a subclass under
`register`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, get_args, get_type_hints

import torch
from torch import Tensor

from stillframe.recovery import find_recovery
from stillframe.registry import Registry
from stillframe.tokens.merge import Merger, MergeSetup
from stillframe.tokens.source import SourceBlock

__all__ = [
    "Method",
    "Score",
    "Selector",
    "as_method",
    "check_rate",
    "find_method",
    "keep_everything",
    "methods",
    "parse_method",
    "register",
    "split_methods",
]

#: One a stream, called once a block: (B, S, h, w) bool, true = compute this token.
Selector = Callable[[SourceBlock], Tensor]

#: One a stream, called once a block: (B, S, h, w), at least 0; above 1 a token counts as changed.
Score = Callable[[SourceBlock], Tensor]


def keep_everything(source: SourceBlock) -> Tensor:
    """A selector that prunes nothing."""
    grid = source.grid
    shape = (source.tokens.shape[0], grid.frames, grid.height, grid.width)
    return torch.ones(shape, dtype=torch.bool, device=source.tokens.device)


def check_rate(rate: float, most: float | None = None) -> None:
    """Raise a ValueError unless ``rate`` is a share of tokens: 0 to below 1, or to ``most``."""
    if not 0 <= rate < 1 or (most is not None and rate > most):
        limit = "1)" if most is None else f"{most:g}]"
        raise ValueError(f"rate must be in [0, {limit}, got {rate}")


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods.

    Attributes:
        recovery: what stands in for pruned keys and values: none, noisy, clean or aligned.
        tau2: the largest distance, in latent standard deviations, between source patches of which
            one may stand in for the other.
        trim: share of a patch's differences dropped at either end, see `change.patch_distance`.

    Class attributes:
        name: what ``--method`` takes.
        summary: one line for listings.
        paper: arXiv number of its source, if any.
        prunes: false if every token is always kept, so that nothing needs to be stored for
            recovery.

    Raises:
        ValueError: for an unknown recovery or numbers out of range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    prunes: ClassVar[bool] = True

    recovery: str = "aligned"
    tau2: float = 0.30
    trim: float = 0.0

    def __post_init__(self) -> None:
        find_recovery(self.recovery)
        if not self.tau2 >= 0:
            raise ValueError(f"tau2 must not be negative, got {self.tau2}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim must be in [0, 0.5), got {self.trim}")

    @property
    def needs_pixels(self) -> bool:
        """Whether its selector cannot do without the source's frames (``SourceBlock.pixels``)."""
        return False

    @property
    def visible(self) -> bool:
        """Whether it goes by what is seen, in grey levels: by pixels, or latents weighted."""
        return False

    @property
    def holds(self) -> bool:
        """Whether what is not computed shows the picture that was shown, pixel for pixel."""
        return False

    @property
    def motion(self) -> str:
        """What may be reused from another place: "off", "global" (by one motion of the whole
        picture, the camera's) or "full" (wherever it went)."""
        return "off"

    @property
    def match(self) -> tuple[float, float]:
        """How far apart source patches may be that stand in for each other in attention, and the
        trim of that distance: latent standard deviations, or grey levels of what is ``visible``."""
        return self.tau2, self.trim

    def changed(self, **given: Any) -> Self:
        """The same with some fields changed. Those that nobody has given follow the others.

        Raises:
            ValueError: a value is out of range.
        """
        return replace(self, **given)

    @abstractmethod
    def selector(self) -> Selector:
        """A fresh selector for one stream."""

    def score(self) -> Score | None:
        """What ranks tokens by their change for a stream, in units of its limits; None if it has
        none."""
        return None

    def merger(self, setup: MergeSetup) -> Merger | None:
        """A fresh merger for one stream, None for methods that merge nothing."""
        return None


_REGISTRY: Registry[Method] = Registry("method")

#: Class decorator: makes a method known under a name.
register = _REGISTRY.register

#: All registered methods by name.
methods = _REGISTRY.all

#: The method of a name; ValueError if there is none.
find_method = _REGISTRY.find


def as_method(method: str | Method, **given: Any) -> Method:
    """A method as an object.

    Args:
        method: an object; a name; or a name and some of its fields, ``NAME:key=value,key=value``,
            such as ``runlength:threshold=0.05``.
        given: fields that take the place of these; None leaves one as it is.

    Raises:
        ValueError: there is no such method or field, or a value is of another kind or out of range.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if isinstance(method, str):
        name, own = parse_method(method)
        kind, asked = find_method(name), {**own, **asked}
        _check_fields(kind, asked)
        return kind(**asked)
    _check_fields(type(method), asked)
    return method.changed(**asked) if asked else method


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and fields of a method that is given as text, see `as_method`.

    Raises:
        ValueError: there is no such method or field, or a value is of another kind.
    """
    name, _, listed = text.partition(":")
    kind = find_method(name.strip())
    pairs = [part.partition("=") for part in listed.split(",") if part.strip()]
    given = {name.strip(): value.strip() for name, _, value in pairs}
    _check_fields(kind, given)
    hints = get_type_hints(kind)
    return kind.name, {
        name: _read(f"{kind.name}:{name}", hints[name], value) for name, value in given.items()
    }


def split_methods(text: str) -> list[str]:
    """Methods between commas, each as `as_method` takes it: ``full,prune:tolerance=5,rate=0.2``."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        # "rate=0.2" is one more field of the method before it
        if found and ":" in found[-1] and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _check_fields(kind: type[Method], given: dict[str, Any]) -> None:
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise ValueError(f"method {kind.name!r} has no {name}; it has {', '.join(known)}")


#: Kinds of fields that are not texts: how they are called, and how they are read.
_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    float: ("a number", float),
    int: ("a whole number", int),
}


def _read(name: str, hint: Any, text: str) -> Any:
    kinds = get_args(hint) or (hint,)
    for kind, (described, read) in _READERS.items():
        if kind in kinds:
            try:
                value = read(text)
                if math.isfinite(value):
                    return value
            except (KeyError, ValueError):
                pass
            raise ValueError(f"{name} is {described}, got {text!r}")
    return text
