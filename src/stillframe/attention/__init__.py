"""Self-attention over the cache: rotary positions, keys and values, attention of one block."""

__all__: list[str] = []
