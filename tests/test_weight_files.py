"""Reading weight files: what is damaged or does more than hold weights is refused in a sentence."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.weight_files import (
    FORMATS,
    model_fixture,  # noqa: F401
    original_fixture,  # noqa: F401
    refusal,
    write,
)
from torch import Tensor, nn

from stillframe.errors import ModelError
from stillframe.loading.checkpoint import (
    read_file,
)

# what is no file of weights


@pytest.mark.parametrize("name", ["no.pt", "no.safetensors", "no.txt", "."])
def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert refusal(read_file, path) == f"weight file {path} is not there"


def test_kinds_are_known_by_their_suffix(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF")
    said = refusal(read_file, path)
    assert said.startswith(f"weight file {path} is of an unknown kind; known are .safetensors, .pt")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_every_suffix_of_pickles_is_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, {"a": torch.ones(2)}).rename(tmp_path / f"weights{suffix}")
    assert torch.equal(read_file(path)["a"], torch.ones(2))


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_one_sentence_wherever_it_ends(tmp_path: Path, form: str) -> None:
    content = {f"layer{i}.weight": torch.randn(40, 5) for i in range(6)}
    path = write(tmp_path, content, form)
    whole = path.read_bytes()
    assert read_file(path).keys() == content.keys()
    for cut in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert str(path) in refusal(read_file, path)
    path.write_bytes(whole[: len(whole) // 2])
    said = refusal(read_file, path)
    assert "is truncated or" in said
    assert form == "safetensors" or f"({len(whole) // 2:,} bytes)" in said


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_file_is_one_sentence_or_read(tmp_path: Path, form: str) -> None:
    """Whatever bytes change, nothing but `ModelError` and no warning gets out."""
    path = write(tmp_path, {f"layer{i}.weight": torch.randn(9) for i in range(4)}, form)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(min(len(whole), 900))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_file(path)
        except ModelError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize(
    "text", ["", "version https://git-lfs.github.com/spec/v1\nsize 5676070424\n", "PK", "<html>"]
)
def test_a_text_file_of_that_name_is_none(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert str(path) in refusal(read_file, path)


# pickled code


class Bomb:
    """What runs when it is unpickled by someone who trusts it."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


def bombs(marker: Path) -> list[Bomb]:
    """Three ways to make a folder."""
    return [
        Bomb(os.system, f"mkdir '{marker}'"),
        Bomb(os.mkdir, str(marker)),
        Bomb(eval, f"__import__('os').mkdir({str(marker)!r})"),
    ]


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle0", "pickle2", "pickle4"])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, form: str, kind: int) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path, {"step": 1, "generator": bombs(marker)[kind]}, form)
    # it does run where it is let
    pickle.loads(path.read_bytes()) if "pickle" in form else torch.load(path, weights_only=False)
    assert marker.is_dir()
    marker.rmdir()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        said = refusal(read_file, path)
    assert not heard
    assert not marker.exists()
    assert str(path) in said
    if form in ("pickle0", "pickle4"):  # of which torch never writes one
        assert "is truncated or not a weight file" in said
    else:
        function = "eval" if kind == 2 else rf"{os.mkdir.__module__}\.\w+"
        assert re.search(rf"was refused: it contains pickled code \({function}\)", said), said


@pytest.mark.parametrize("act", [b")R", b")\x81", b"}b"])
def test_calls_are_code_whatever_is_called(tmp_path: Path, act: bytes) -> None:
    """Calling, making and filling an object, in a pickle written by hand."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02N" + act + b".")
    said = refusal(read_file, path)
    assert said == f"weight file {path} was refused: it contains pickled code, not only weights"


class Special(Tensor):
    """A tensor with behaviour of its own."""


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.ones(2).as_subclass(Special)}, r"pickled code \([\w.]+\.Special\)"),
        ({"a": np.ones(2)}, r"pickled code \(numpy\.[\w.]+\)"),
        ({"a": Path("x")}, r"pickled code \(pathlib\.\w+\)"),
        (nn.Linear(1, 1), r"pickled code \(torch\.nn\.modules\.linear\.Linear\)"),
        ([torch.ones(2)], "holds a list where named tensors were expected"),
        (torch.ones(2), "holds a Tensor where named tensors were expected"),
        (None, "holds a NoneType where named tensors were expected"),
    ],
)
def test_nothing_but_named_tensors_is_taken(
    tmp_path: Path, content: Any, said: str, form: str
) -> None:
    path = write(tmp_path, content, form)
    assert re.search(rf"^weight file {re.escape(str(path))} .*{said}", refusal(read_file, path))
