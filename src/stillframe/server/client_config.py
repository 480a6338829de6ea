"""How a client's session edits: values of options by name, and the configuration that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stillframe.config import METHOD, EditConfig
from stillframe.methods import Method, find_method
from stillframe.server.messages import Update

__all__ = ["ClientConfig"]

_TARGETS = ("target_fps", "target_latency", "target_kept")
# what only a method that prunes can have
_PRUNING = (*_TARGETS, "guard")
# what says how a target is met
_OF_TARGETS = ("rate_mode", "rate_limit")


@dataclass(frozen=True)
class ClientConfig:
    """How a client's session edits.

    What a method does not use is kept for the next one: a rate and a guard rest while everything is
    computed, and a mode waits for a target.

    Attributes:
        values: of options, by name; what is missing is as usual.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, update: Update) -> ClientConfig:
        """The same with what a message says.

        Raises:
            ValueError: there is no such method, or it cannot have what the message asks for.
        """
        given = update.options
        after = self.with_values(given)
        method = after.config.method
        asked = {name: given.get(name) for name in _PRUNING}
        control = EditConfig.from_options(asked).control
        if control is not None and isinstance(method, Method):
            control.check(method)
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
        text = self.values.get("method", EditConfig.method)
        kind = find_method(text.partition(":")[0].strip())
        known = {each.name for each in fields(kind)} if kind.prunes else set()
        resting = {name for name in METHOD if name != "method" and name not in known}
        if not kind.prunes:
            resting |= {*_PRUNING, *_OF_TARGETS}
        if not any(name in self.values for name in _TARGETS):
            resting |= {*_OF_TARGETS}
        values = {name: value for name, value in self.values.items() if name not in resting}
        return EditConfig.from_options(values)

    def changes(self, before: ClientConfig) -> dict[str, Any]:
        """What of a session changes when this follows another one."""
        old, new = before.config, self.config
        values = {each.name: getattr(new, each.name) for each in fields(EditConfig)}
        return {name: value for name, value in values.items() if value != getattr(old, name)}
