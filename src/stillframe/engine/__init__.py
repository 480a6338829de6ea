"""The block loop, its state and its passes."""

__all__: list[str] = []
