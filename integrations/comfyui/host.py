"""What the nodes ask of the program that they run in; without it they go on without."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["nothing_yet", "progress"]


def progress(total: int) -> Callable[[int], None]:
    """What shows how many of ``total`` frames are done, and raises where the run was stopped."""
    try:
        utils = import_module("comfy.utils")
        management = import_module("comfy.model_management")
    except ImportError:
        return lambda done: None
    bar = utils.ProgressBar(total)

    def show(done: int) -> None:
        bar.update_absolute(done, total)
        management.throw_exception_if_processing_interrupted()

    return show


def nothing_yet() -> Any:
    """What a node returns that has no result this time: those behind it do not run."""
    for module in ("comfy_execution.graph_utils", "comfy_execution.graph"):
        try:
            return import_module(module).ExecutionBlocker(None)
        except (ImportError, AttributeError):
            continue
    return None
