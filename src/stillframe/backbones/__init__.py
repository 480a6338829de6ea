"""Adapters to other people's transformers; Wan first, by diffusers' modules and fused."""

__all__: list[str] = []
