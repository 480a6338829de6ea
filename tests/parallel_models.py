"""What processes of tests that follow load."""

from __future__ import annotations

from typing import Any

import torch
from tests import tiny

from stillframe.pipelines.causal_wan import CausalWanPipeline


def transformer(device: str) -> Any:
    """A tiny transformer of 4 heads."""
    torch.set_num_threads(1)
    return tiny.transformer(heads=4).to(device)


def damaged(device: str) -> Any:
    """None that can be loaded."""
    raise ValueError(f"there is no transformer for {device}")


def pipeline(**config: Any) -> CausalWanPipeline:
    """A tiny pipeline around the same transformer."""
    pipe = tiny.pipeline(**config)
    pipe.transformer = transformer("cpu")
    return pipe
