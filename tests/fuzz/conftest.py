"""How long the fuzzers run: ``--fuzz-scale 10`` is ten times as many cases."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--fuzz-scale", type=int, default=1, help="times as many cases of fuzzing")


@pytest.fixture(scope="session")
def fuzz_scale(pytestconfig: pytest.Config) -> int:
    """Times as many cases."""
    return int(pytestconfig.getoption("--fuzz-scale", 1))
