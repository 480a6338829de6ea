"""Many files edited, one after another or on the workers of a cluster."""

__all__: list[str] = []
