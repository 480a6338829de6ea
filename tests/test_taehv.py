"""Published weights of the tiny autoencoder: loaded, they compute what their description says."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests import published, tiny
from tests.test_autoencoder import published as published_shapes
from torch import Tensor

from stillframe.errors import ModelError
from stillframe.streaming import open_autoencoder
from stillframe.taehv import TAEW_CONFIG, load_taehv

State = dict[str, Tensor]
Frames = Iterator[Tensor]
HEIGHT, WIDTH = 16, 24
# parts that make frames of frames: how many of them
GROWTH = {"decoder.7.conv.weight": 1, "decoder.13.conv.weight": 2, "decoder.19.conv.weight": 2}

suffixes = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


# the published layers, each a generator that takes one frame (B, C, H, W) at a time


class Layers:
    """Layers of one part, numbered as they are added."""

    def __init__(self, state: State, part: str, frames: Iterable[Tensor]) -> None:
        self.state, self.part, self.number = state, part, -1
        self.frames: Frames = iter(frames)

    def weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        full = f"{self.part}.{self.number}{name}"
        return self.state[f"{full}.weight"], self.state.get(f"{full}.bias")

    def add(self, layer: Callable[..., Frames], *given: Any) -> None:
        self.number += 1
        self.frames = layer(self.frames, *given)

    def each(self, function: Callable[[Tensor], Tensor]) -> None:
        self.add(lambda frames: (function(x) for x in frames))

    def conv(self, stride: int = 1) -> None:
        self.number += 1
        weight, bias = self.weights("")
        self.number -= 1
        self.each(lambda x: F.conv2d(x, weight, bias, stride, padding=1))

    def relu(self) -> None:
        self.each(lambda x: x.clamp(min=0))

    def memory_blocks(self) -> None:
        for _ in range(3):
            self.add(self._remember, [self._kernels(i) for i in (0, 2, 4)])

    def _kernels(self, i: int) -> tuple[Tensor, Tensor | None]:
        self.number += 1
        found = self.weights(f".conv.{i}")
        self.number -= 1
        return found

    @staticmethod
    def _remember(frames: Frames, kernels: list[tuple[Tensor, Tensor]]) -> Frames:
        before = None
        for x in frames:
            y = torch.cat([x, torch.zeros_like(x) if before is None else before], 1)
            y = F.conv2d(y, *kernels[0], padding=1).clamp(min=0)
            y = F.conv2d(y, *kernels[1], padding=1).clamp(min=0)
            y = F.conv2d(y, *kernels[2], padding=1)
            before = x
            yield (x + y).clamp(min=0)
