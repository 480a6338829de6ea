"""What a client has chosen: which tokens to compute, and what is to be held while that is done.

It knows methods and controls, and messages as what they hold; no sessions, and no sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from stillframe.controls import Controls, Cuts, Gop, Guard, Rate, Refresh
from stillframe.methods import Method, find_method
from stillframe.server.messages import Update

__all__ = ["Choice", "Chosen", "Holding"]

_TARGETS = ("target_fps", "target_latency", "target_kept")


@dataclass(frozen=True)
class Choice:
    """Which tokens to compute: a method by name, and all that was ever said about its parameters.

    What a method does not use is kept for the next one.
    """

    method: str = "prune"
    recovery: str | None = None
    tolerance: float | None = None

    def changed(self, update: Update) -> Choice:
        """The same with some of it changed."""
        names = (each.name for each in fields(self))
        given = {name: getattr(update, name) for name in names}
        return replace(self, **{name: v for name, v in given.items() if v is not None})

    def build(self) -> Method:
        """The method.

        Raises:
            ValueError: it is unknown, or a parameter is.
        """
        kind = find_method(self.method)
        if not kind.prunes:
            return kind()
        known = {each.name for each in fields(kind)}
        given: dict[str, Any] = {"recovery": self.recovery, "tolerance": self.tolerance}
        return kind(**{n: v for n, v in given.items() if v is not None and n in known})


@dataclass(frozen=True)
class Holding:
    """What is held, by the names of the messages; None for what is not.

    A mode without a target is kept for the next one.
    """

    target_fps: float | None = None
    target_latency: float | None = None
    target_kept: float | None = None
    rate_mode: str | None = None
    refresh: int | None = None
    gop: int | None = None
    cuts: bool | None = None
    guard: float | None = None

    def changed(self, said: Mapping[str, Any]) -> Holding:
        """The same with what was said, None for what goes; a target takes the place of another."""
        target = any(said.get(name) is not None for name in _TARGETS)
        gone: dict[str, Any] = dict.fromkeys(_TARGETS) if target else {}
        return replace(self, **{**gone, **said})

    @property
    def given(self) -> dict[str, Any]:
        """What is held, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def prunes(self) -> bool:
        """Whether some of it needs a method that prunes."""
        return bool({*_TARGETS, "guard"} & set(self.given))

    def build(self) -> Controls | None:
        """The control, None if nothing is held.

        Raises:
            ValueError: something is out of range.
        """
        targets = self.target_fps, self.target_latency, self.target_kept
        held = any(target is not None for target in targets)
        found = [
            None if self.gop is None else Gop(self.gop),
            None if self.refresh is None else Refresh(self.refresh),
            Cuts() if self.cuts else None,
            Rate(*targets, self.rate_mode or "constant") if held else None,
            None if self.guard is None else Guard(self.guard),
        ]
        return Controls(*(each for each in found if each is not None)) or None

    @property
    def without_pruning(self) -> Holding:
        """What of it a method can have that computes everything."""
        return replace(self, **dict.fromkeys((*_TARGETS, "guard")))


@dataclass(frozen=True)
class Chosen:
    """All that a client has chosen.

    A rate and a guard rest while the method computes everything, and are there again with the next
    one that prunes.
    """

    choice: Choice = field(default_factory=Choice)
    holding: Holding = field(default_factory=Holding)

    def changed(self, update: Update) -> Chosen:
        """The same with what a message says.

        Raises:
            ValueError: there is no such method, or it cannot be held to what the message asks for.
        """
        said = update.controls
        after = Chosen(self.choice.changed(update), self.holding.changed(said))
        named = Holding().changed(said)
        if named.prunes and (control := named.build()) is not None:
            control.check(after.choice.build())
        return after

    def options(self, before: Chosen | None = None) -> dict[str, Any]:
        """Method and control for a session; only what is another than before.

        Raises:
            ValueError: the method is unknown, or a parameter is, or something is out of range.
        """
        method, control = self._built()
        if before is None:
            return {"method": method, "control": control}
        _, old_control = before._built()
        changes: dict[str, Any] = {} if self.choice == before.choice else {"method": method}
        return changes if control == old_control else {**changes, "control": control}

    def _built(self) -> tuple[Method, Controls | None]:
        method = self.choice.build()
        held = self.holding if method.prunes else self.holding.without_pruning
        return method, held.build()
