"""What every test starts from: one thread, the same seed, diffusers' own kernel of attention."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tests import tiny
from typer.main import get_command


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # these models are too small to share, and the machine may be busy
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_command_line() -> Iterator[None]:
    # commands do not change, and typer's runner builds all of them for every call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _attention(monkeypatch: pytest.MonkeyPatch) -> None:
    # diffusers makes the kernel of one model that of every model: put back after the test. Some
    # kernels switch others off for the whole process while they run, so that streams beside them
    # round otherwise
    everybody, _ = _AttentionBackendRegistry.get_active_backend()
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", everybody)


@pytest.fixture
def transformer() -> Any:
    """A tiny random Wan transformer, C channels in."""
    return tiny.transformer()


@pytest.fixture
def source_transformer() -> Any:
    """One that takes the source latents beside its input, 2C channels in."""
    return tiny.transformer(source=True)


@pytest.fixture
def autoencoder() -> Any:
    """A tiny random `TinyVideoAutoencoder`, nothing trimmed."""
    return tiny.autoencoder()


@pytest.fixture
def wan_autoencoder() -> Any:
    """A tiny random ``AutoencoderKLWan``."""
    return tiny.wan_autoencoder()
