"""Weight files of every kind, for the tests that read them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import published
from torch import Tensor

from stillframe.errors import ModelError

State = dict[str, Tensor]
FORMATS = ("zip", "legacy", "safetensors")
LAYER = "blocks.0.self_attn.q"


@pytest.fixture(scope="module", name="model")
def model_fixture() -> Any:
    """The model that files here are of."""
    return published.model_of(1)


@pytest.fixture(scope="module", name="original")
def original_fixture(model: Any) -> State:
    """Its weights by the original code's names."""
    return published.original_names(model.state_dict())


def write(folder: Path, content: Any, form: str = "zip") -> Path:
    """A weight file of one of ``FORMATS``, or a plain pickle of some protocol."""
    path = folder / f"weights.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(content, path)
    elif form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def refusal(call: Callable[..., Any], *given: Any) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(ModelError) as caught:
        call(*given)
    said = str(caught.value)
    assert "\n" not in said
    assert not re.search(r"\.(\s|$)", said), said
    return said


def same_weights(loaded: Any, model: Any) -> bool:
    state, expected = loaded.state_dict(), model.state_dict()
    return list(state) == list(expected) and all(torch.equal(state[n], expected[n]) for n in state)
