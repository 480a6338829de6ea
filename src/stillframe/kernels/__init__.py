"""Triton kernels, each with its reference in torch, and CUDA graphs."""

__all__: list[str] = []
