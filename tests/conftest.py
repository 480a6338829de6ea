"""Where the fixtures of every test come from, and what is not collected as garbage."""

from __future__ import annotations

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # who only hands tests to workers runs none, and starts them without waiting for torch
    if config.getoption("dist", "no") == "no":
        # imports and collection leave much, and nearly no garbage
        gc.disable()
        config.pluginmanager.import_plugin("tests.common_fixtures")


def pytest_collection_finish() -> None:
    # what was imported and collected stays to the end: `gc.collect` need not walk it in every test
    gc.collect()
    gc.freeze()
    gc.enable()
