"""How a client's session edits: values of options by name, and the configuration that they make."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from stillframe.config import METHOD, OPTIONS, EditConfig
from stillframe.controls import Control, Controls
from stillframe.methods import Method, as_method, find_method
from stillframe.server.messages import Update

__all__ = ["ClientConfig"]

_TARGETS = ("target_fps", "target_latency", "target_kept")
# what says how a target is met
_OF_TARGETS = ("rate_mode", "rate_limit")
# what may be a field of a method
_OF_METHODS = (*METHOD, "detector")


@dataclass(frozen=True)
class ClientConfig:
    """How a client's session edits.

    What a method does not use is kept for the next one: controls that need pruning rest while
    everything is computed, and a mode waits for a target.

    Attributes:
        values: of options, by name; what is missing is as usual.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, update: Update) -> ClientConfig:
        """The same with what a message says.

        Raises:
            ValueError: there is no such method, or it cannot have what the message asks for.
        """
        after = self.with_values(update.options)
        controls = ClientConfig().with_values(update.options)._controls()
        if controls is not None:
            controls.check(as_method(after.config.method))
        return after

    def with_values(self, given: Mapping[str, Any]) -> ClientConfig:
        """The same with some values, None for what goes; a target takes the place of another."""
        values = dict(self.values)
        if any(given.get(name) is not None for name in _TARGETS):
            values = {name: value for name, value in values.items() if name not in _TARGETS}
        values.update(given)
        return ClientConfig({name: value for name, value in values.items() if value is not None})

    @property
    def config(self) -> EditConfig:
        """The configuration.

        Raises:
            ValueError: there is no such method, or a value is out of range.
        """
        kind = find_method(self.values.get("method", EditConfig.method).partition(":")[0].strip())
        known = {each.name for each in fields(kind)} if kind.prunes else set()
        resting = set(_OF_METHODS) - known - {"method"}
        values = {name: value for name, value in self._active.items() if name not in resting}
        if kind.prunes:
            return EditConfig.from_options(values)
        config = EditConfig.from_options({name: x for name, x in values.items() if name in OPTIONS})
        return replace(config, control=_possible(self._controls(resting), as_method(config.method)))

    @property
    def _active(self) -> dict[str, Any]:
        """Values but for a mode without a target."""
        target = any(name in self.values for name in _TARGETS)
        return {name: x for name, x in self.values.items() if target or name not in _OF_TARGETS}

    def _controls(self, without: Set[str] = frozenset()) -> Controls | None:
        """The controls, with a method that may have any of them."""
        values = {n: x for n, x in self._active.items() if n not in OPTIONS and n not in without}
        return EditConfig.from_options(values).control

    def changes(self, before: ClientConfig) -> dict[str, Any]:
        """What of a session changes when this follows another one."""
        old, new = before.config, self.config
        values = {each.name: getattr(new, each.name) for each in fields(EditConfig)}
        return {name: value for name, value in values.items() if value != getattr(old, name)}


def _possible(controls: Controls | None, method: Method) -> Controls | None:
    """Those controls that a method can have."""
    if controls is None:
        return None
    found: list[Control] = []
    for control in controls:
        with suppress(ValueError):
            control.check(method, controls)
            found.append(control)
    return Controls(*found) or None
