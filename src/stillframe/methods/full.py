"""No pruning: every token of every block is computed. What methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from stillframe.methods.base import Method, Selector, keep_everything, register

__all__ = ["Full"]


@register("full")
@dataclass(frozen=True)
class Full(Method):
    """The plain causal model."""

    summary = "compute every token (no pruning)"
    prunes = False

    recovery: str = "none"

    def selector(self) -> Selector:
        return keep_everything
