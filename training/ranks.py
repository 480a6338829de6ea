"""Data-parallel training: a process a card, each with its own batches, all with the same weights.

``torchrun --nproc-per-node 4 -m training.autoencoder ...`` starts the processes; a process that was
started by itself is the only one, and everything here is nothing then.

This file knows nothing of models, data or losses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Ranks"]

Item = TypeVar("Item")


class Ranks:
    """The processes that train together.

    Args:
        device: ``cuda`` means the card of this process's number on its machine.

    Attributes:
        device: of this process.
        rank, count: this process's number, and how many there are.
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if self.device.index is None:
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            # numbers that the host needs go through gloo, so that no card is waited for
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                timeout=timedelta(minutes=3),
            )

    @property
    def first(self) -> bool:
        """Whether this process writes the files and says how far it is."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of some work."""
        return items[self.rank :: self.count]

    def agree(self, number: float) -> float:
        """The first process's number."""
        if self.count == 1:
            return number
        told = torch.tensor([number], dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.item()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))

    @torch.no_grad()
    def copy_first(self, module: nn.Module) -> None:
        """Give all processes the first one's parameters."""
        if self.count > 1:
            for parameter in module.parameters():
                whole = parameter.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(whole, 0)
                parameter.copy_(whole)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.div_(self.count).split([gradient.numel() for gradient in gradients])
        shaped: list[Tensor] = [
            part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)
        ]
        torch._foreach_copy_(gradients, shaped)
