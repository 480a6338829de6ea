"""Kinds of a thing by name: what methods, recoveries and metrics are listed and found in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Registry"]

_T = TypeVar("_T")
_K = TypeVar("_K", bound=type)


class Registry(Generic[_T]):
    """Classes under a base ``_T`` by name.

    Args:
        what: the thing in a word, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._kinds: dict[str, type[_T]] = {}

    def register(self, name: str) -> Callable[[_K], _K]:
        """Class decorator: make a class known under ``name``, which becomes its ``name``.

        Raises:
            ValueError: if another one has that name.
        """

        def add(kind: _K) -> _K:
            known = self._kinds.get(name, kind)
            # the same class again is a module that was loaded anew
            if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
                raise ValueError(f"{name!r} is already the name of {known.__qualname__}")
            kind.name = name  # type: ignore[attr-defined]
            self._kinds[name] = kind
            return kind

        return add

    def all(self) -> dict[str, type[_T]]:
        """Every class by name, sorted."""
        return dict(sorted(self._kinds.items()))

    def find(self, name: str) -> type[_T]:
        """The class called ``name``.

        Raises:
            ValueError: naming the known ones.
        """
        if name not in self._kinds:
            known = ", ".join(sorted(self._kinds))
            raise ValueError(f"unknown {self.what} {name!r}; known: {known}")
        return self._kinds[name]
