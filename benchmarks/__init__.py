"""Benchmarks: each prints a table, then one JSON line."""

__all__ = ["say"]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201
