"""stillframe as a pipeline of Daydream Scope, found by its entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scope.core.plugins.hookspecs import hookimpl

__all__ = ["register_pipelines"]


@hookimpl
def register_pipelines(register: Callable[[Any], None]) -> None:
    """Hand Scope the pipeline when it asks for those of plugins."""
    from stillframe_scope.pipeline import StillframePipeline

    register(StillframePipeline)
