"""Autoencoders of video, and streams through them."""

__all__: list[str] = []
