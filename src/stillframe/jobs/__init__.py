"""Whole jobs: a file edited, a video generated, a machine measured."""

__all__: list[str] = []
