"""Kinds of a thing by name: what methods, recoveries, controls and metrics are listed and found in.

`catalogue` reads the files of a package without running them: what there is can be listed in
milliseconds, while importing it imports torch, which takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from stillframe.options import Option

__all__ = ["Declared", "Registry", "catalogue"]

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


class Declared(NamedTuple):
    """What a class says of itself in its source.

    Attributes:
        name: that it is registered under.
        attributes: of the class, as far as they are literals: ``summary``, ``paper``, ``options``.
        options: its ``options``, by name.
    """

    name: str
    attributes: dict[str, Any]
    options: dict[str, Option]


def catalogue(package: str) -> dict[str, Declared]:
    """What the files of a package register, read from their source and sorted by name.

    Only what is written as a literal is found: ``@register("name")`` above a class, and in it
    ``summary = "..."`` or ``options = {"name": Option("int", "...")}``. What other packages
    register is in `Registry.all`.

    Args:
        package: dotted name; neither it nor its modules are imported, its parents are.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no package {package!r}")
    found = {}
    for folder in spec.submodule_search_locations:
        for path in Path(folder).glob("*.py"):
            for declared in _declared(ast.parse(path.read_text(encoding="utf-8"))):
                found[declared.name] = declared
    return dict(sorted(found.items()))


def _declared(module: ast.Module) -> list[Declared]:
    found = []
    for kind in module.body:
        name = _registered_name(kind) if isinstance(kind, ast.ClassDef) else None
        if name is None:
            continue
        attributes: dict[str, Any] = {}
        for line in kind.body:  # type: ignore[attr-defined]
            target = line.targets[0] if isinstance(line, ast.Assign) else None
            target = line.target if isinstance(line, ast.AnnAssign) else target
            if isinstance(target, ast.Name) and line.value is not None:
                try:
                    attributes[target.id] = _literal(line.value)
                except ValueError as error:
                    # made by running something, which is not done here
                    if target.id == "options":
                        raise ValueError(f"options of {name!r} are no literals") from error
        found.append(Declared(name, attributes, attributes.get("options", {})))
    return found


def _registered_name(kind: ast.ClassDef) -> str | None:
    for decorator in kind.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="register"), args=[ast.Constant(value=str(name))]):
                return name
    return None


def _literal(node: ast.expr) -> Any:
    """The value of a literal, in which ``Option(...)`` counts as one."""
    match node:
        case ast.Call(func=ast.Name(id="Option"), args=values, keywords=named):
            given = {each.arg: _literal(each.value) for each in named if each.arg is not None}
            return Option(*(_literal(value) for value in values), **given)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_literal(key): _literal(value) for key, value in pairs if key is not None}
        case _:
            return ast.literal_eval(node)
