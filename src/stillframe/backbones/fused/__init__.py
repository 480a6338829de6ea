"""Wan's passes in fewer kernels, on buffers that never move, as CUDA graphs."""

__all__: list[str] = []
