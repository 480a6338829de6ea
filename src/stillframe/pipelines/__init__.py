"""Pipelines in diffusers' conventions."""

__all__: list[str] = []
