"""What hangs on a denoiser: hooks on its blocks, attention processors, and who runs it now.

Torch's own module hooks stay where they are when offloading rewires ``forward``. A module without
weights carries a hook of diffusers that is told the cache context, so the branch of guidance. All
of it does something only while a session that the denoiser is in is running in this thread.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any, Protocol

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from stillframe.hooks.families import Family
from stillframe.hooks.passes import Pass

__all__ = ["RUNNING", "Attachment", "Running", "attachment_of"]

_NAME = "stillframe"


class Running(Protocol):
    """A pipeline that is being called.

    Attributes:
        current: the pass that is running; None: none of ours, and all is diffusers' own.
    """

    current: Pass | None

    def begin(self, attachment: Attachment, given: dict[str, Any]) -> dict[str, Any] | None:
        """Begin a denoiser's call with these arguments by name.

        Returns:
            arguments that it is called with instead; None: it is called as it was.
        """

    def end(self, output: Any) -> Any:
        """End it: what it gives instead of its output."""


#: The session of the pipeline that is being called, in this thread.
RUNNING: ContextVar[Running | None] = ContextVar("running", default=None)


class _Context(ModelHook):
    """Is told the cache context that a denoiser is called in."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.states = StateManager(BaseState)

    @property
    def branch(self) -> str | None:
        """Its name; None: there is none."""
        try:
            return self.states.context.name
        except ValueError:
            return None

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


class Attachment:
    """What hangs on one denoiser, for all sessions that it is in."""

    def __init__(self, family: Family, denoiser: nn.Module) -> None:
        self.family, self.denoiser = family, denoiser
        self.sessions: list[Running] = []
        self.context = _Context()
        carrier: Any = nn.Module()
        carrier.attachment = self
        HookRegistry.check_if_exists_or_initialize(carrier).register_hook(self.context, _NAME)
        denoiser.add_module(_NAME, carrier)
        self._contexts_changed()
        self._handles = [
            denoiser.register_forward_pre_hook(self._begin, with_kwargs=True),
            denoiser.register_forward_hook(self._end, with_kwargs=True, always_call=True),
            *family.hang(denoiser, self._current),
        ]
        self._processors: list[tuple[Any, Any]] = []
        for number, found in enumerate(family.attentions(denoiser)):
            attn: Any = found
            ours = family.processor(family, number, attn.processor, self._current)
            self._processors.append((attn, ours))
            attn.processor = ours

    def detach(self) -> None:
        """Leave the denoiser as it was; what others have put in place of ours stays."""
        for handle in self._handles:
            handle.remove()
        for attn, ours in self._processors:
            if attn.processor is ours:
                attn.processor = ours.stock
        del self.denoiser._modules[_NAME]
        self._contexts_changed()

    def _contexts_changed(self) -> None:
        if hasattr(self.denoiser, "_diffusers_hook"):
            registry: Any = self.denoiser._diffusers_hook
            registry.invalidate_child_registries_cache()

    def _running(self) -> Running | None:
        session = RUNNING.get()
        return session if session in self.sessions else None

    def _current(self) -> Pass | None:
        session = self._running()
        return None if session is None else session.current

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        session = self._running()
        if session is None:
            return None
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = session.begin(self, {**dict(zip(names, args, strict=False)), **kwargs})
        return None if given is None else ((), given)

    def _end(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        session = self._running()
        if session is None:
            return None
        session.current = None
        return session.end(output)


def attachment_of(denoiser: nn.Module) -> Attachment | None:
    """What hangs on a denoiser; None: nothing."""
    carrier: Any = denoiser._modules.get(_NAME)
    return None if carrier is None else carrier.attachment
