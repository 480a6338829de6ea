"""One stream on several processes: sequence parallelism over the computed tokens of a block."""

__all__: list[str] = []
