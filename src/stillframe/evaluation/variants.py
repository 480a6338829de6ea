"""A method with its parameters, as plain values that fit into a file name, a row and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from stillframe.methods import Method, find_method, methods, parse_method
from stillframe.recovery import find_recovery

__all__ = ["FULL", "Variant", "at_rate", "expand", "missing_methods"]

Value = str | float | int

#: Recovery of methods that leave it open, as `methods.base.Method` has it.
_OPEN_RECOVERY = next(f.default for f in fields(Method) if f.name == "recovery")


@dataclass(frozen=True)
class Variant:
    """A method and those of its parameters that are not at their defaults, sorted by name."""

    method: str
    params: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, method: str, **params: Value) -> Variant:
        """The method of a name with parameters.

        Raises:
            ValueError: it has no such parameter, or not with such a value.
        """
        variant = cls(method, tuple(sorted(params.items())))
        variant.build()
        return variant

    def build(self) -> Method:
        """The method itself.

        Raises:
            ValueError: there is no such method or parameter, or a value is out of range.
        """
        kind = find_method(self.method)
        known = _parameters(kind)
        for name, _ in self.params:
            if name not in known:
                raise ValueError(f"method {self.method!r} has no {name}; it has {', '.join(known)}")
        given: dict[str, Any] = dict(self.params)
        return kind(**given)

    @property
    def recovery(self) -> str:
        """What it was asked to recover with; "default" if that was left open."""
        return str(dict(self.params).get("recovery", "default"))

    @property
    def label(self) -> str:
        """For legends and tables: ``prune clean 20%``; the method ``full`` is called dense."""
        params = dict(self.params)
        rate, recovery = params.pop("rate", None), params.pop("recovery", None)
        detector = params.pop("detector", None)
        parts = ["dense" if self.method == "full" else self.method]
        if recovery is not None:
            parts.append(f"{recovery}")
        if detector is not None:
            parts.append(f"{detector}")
        parts += [f"{name}={value}" for name, value in params.items()]
        if rate is not None:
            parts.append(f"{float(rate):.0%}")
        return " ".join(parts)

    @property
    def family(self) -> str:
        """The label without the rate: what one line of a plot shows."""
        rest = tuple((name, value) for name, value in self.params if name != "rate")
        return Variant(self.method, rest).label


#: Every token computed: what all others are compared with.
FULL = Variant("full")


def _parameters(kind: type[Method]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def at_rate(method: str, rate: float, **params: Value) -> Variant:
    """A method that prunes (or merges) a share of tokens.

    Raises:
        ValueError: there is no such method, it takes no rate, or not this one.
    """
    return Variant.of(method, rate=rate, **params)


def missing_methods(names: Sequence[str], *, rate: bool = False) -> dict[str, str]:
    """Those of some methods that cannot be run, each with one sentence.

    Args:
        names: of methods.
        rate: whether they must take a rate.
    """
    known, missing = methods(), {}
    for name in names:
        if name not in known:
            missing[name] = f"{name}: there is no such method in this version"
        elif rate and "rate" not in _parameters(known[name]):
            missing[name] = f"{name}: it takes no rate in this version"
    return missing


def expand(
    names: Sequence[str], rates: Sequence[float] = (), recoveries: Sequence[str] = ()
) -> tuple[Variant, ...]:
    """Every method at every rate with every recovery, as far as it has them.

    Methods are given as `as_method` takes them, fields that they name stay as they are.

    A method that takes no rate comes once; one that prunes nothing, or that is defined by its
    recovery (a subclass with another default), comes without the recoveries.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    for recovery in recoveries:
        find_recovery(recovery)
    found: list[Variant] = []
    for text in names:
        name, own = parse_method(text)
        kind = find_method(name)
        default = next(f.default for f in fields(kind) if f.name == "recovery")
        is_open = kind.prunes and default == _OPEN_RECOVERY and "recovery" not in own
        shares: list[float | None] = [None]
        if rates and "rate" in _parameters(kind) and "rate" not in own:
            shares = [*rates]
        stand_ins: list[str | None] = [*recoveries] if recoveries and is_open else [None]
        for stand_in in stand_ins:
            for rate in shares:
                given = {**own, "recovery": own.get("recovery", stand_in)}
                given["rate"] = own.get("rate", rate)
                found.append(Variant.of(name, **{k: v for k, v in given.items() if v is not None}))
    return tuple(dict.fromkeys(found))
