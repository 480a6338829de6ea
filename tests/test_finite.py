"""Weights with a NaN or an infinite value in them are refused, wherever they come from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.published import base_folder, publish, taehv_file
from torch import Tensor

from stillframe.backbones.finite import check_finite
from stillframe.errors import ModelError
from stillframe.loading.adapt import add_lora
from stillframe.loading.assemble import Task
from stillframe.loading.checkpoint import load_transformer
from stillframe.loading.load import load_pipeline
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.loading.taehv import load_taehv
from stillframe.models import bundled_models
from stillframe.pipelines.causal_wan import CausalWanPipeline

BAD = (math.nan, math.inf, -math.inf)
FORMATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("length", [1, 7, 64, 100_003])
def test_one_bad_value_anywhere_is_found(dtype: torch.dtype, length: int) -> None:
    """Beside the greatest values that there are, whose sum is infinite."""
    most = torch.finfo(dtype).max
    good = torch.full((length,), most, dtype=dtype)
    good[::2] = -most
    check_finite([("w", good)], "the file")
    check_finite([("w", good.abs())], "the file")
    for place in {0, length // 2, length - 1}:
        for bad in BAD:
            spoilt = good.clone()
            spoilt[place] = bad
            with pytest.raises(
                ModelError, match=rf"^the file has 1 of {length} \w+ values in w that"
            ):
                check_finite([("good", good), ("w", spoilt)], "the file")


def test_values_are_counted_and_what_is_no_such_number_passes() -> None:
    spoilt = torch.zeros(4, 5)
    spoilt[1:3, 2] = math.nan
    spoilt[3, 4] = -math.inf
    with pytest.raises(ModelError, match="has 3 of 20 float32 values in w"):
        check_finite([("w", spoilt.t())], "the file")  # whatever the layout
    byte = torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn)
    with pytest.raises(ModelError, match="has 1 of 2 float8_e4m3fn values in w"):
        check_finite([("w", byte)], "the file")
    others = [torch.zeros(0), torch.tensor([2**62]), torch.empty(3, device="meta")]
    check_finite([("w", other) for other in others], "the file")


def spoil(path: Path, bad: float = math.nan) -> str:
    """Put a bad value into the middle tensor of a safetensors file; returns its name."""
    state = load_file(path)
    name = sorted(name for name in state if state[name].is_floating_point())[len(state) // 2]
    state[name].view(-1)[-1] = bad
    save_file(state, path, {"format": "pt"})
    return name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("bad", BAD)
def test_a_folder_with_a_bad_value_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, bad: float
) -> None:
    monkeypatch.setenv("STILLFRAME_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (weights,) = (folder / part).glob("*.safetensors")
    spoil(weights, bad)
    loads: list[Callable[[], Any]] = [
        lambda: load_pipeline(str(folder), device="cpu", task=Task(64, 96)).encode_prompt("oil"),
        lambda: CausalWanPipeline.from_pretrained(folder),
    ]
    for load in loads:
        with pytest.raises(
            ModelError, match=r"1 of \d+ \w+ values in \S+ that are NaN or infinite"
        ):
            load()


def test_the_bundled_model_is_checked_too(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(bundled_models()["tiny"], folder)
    CausalWanPipeline.from_pretrained(folder)
    name = spoil(folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match=f"values in {name} that are NaN"):
        CausalWanPipeline.from_pretrained(folder)


def _published(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path, Path]:
    """LongLive's configuration, weights and update, tiny."""
    recipe = load_recipes()["longlive"]
    assert recipe.lora is not None
    model, table = publish(folder, recipe, base)
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    return model.config, folder / "weights" / recipe.file, folder / "weights" / recipe.lora


def _spoil_nested(path: Path, key: str, bad: float) -> None:
    content = torch.load(path, weights_only=True)
    tensor: Tensor = next(iter(content[key].values()))
    tensor.view(-1)[0] = bad
    torch.save(content, path)


@pytest.mark.parametrize("bad", BAD)
def test_published_weights_and_updates_are_checked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    config, weights, lora = _published(tmp_path, base, monkeypatch)
    keys = load_recipes()["longlive"].keys
    load_transformer(config, weights, keys, lora=lora)
    _spoil_nested(lora, "generator_lora", bad)
    with pytest.raises(ModelError, match=r"^lora\.pt has 1 of \d+ \w+ values in .*lora_A"):
        load_transformer(config, weights, keys, lora=lora)
    _spoil_nested(weights, keys[0], bad)
    with pytest.raises(ModelError, match=r"^longlive_base\.pt has 1 of \d+ \w+ values"):
        load_transformer(config, weights, keys)


def test_numbers_too_large_for_the_format_asked_for_are_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, weights, _ = _published(tmp_path, base, monkeypatch)
    keys = load_recipes()["longlive"].keys
    content = torch.load(weights, weights_only=True)
    name = next(name for name in content[keys[0]] if name.endswith("ffn.0.weight"))
    content[keys[0]][name][0, 0] = 1e6
    torch.save(content, weights)
    load_transformer(config, weights, keys, torch.bfloat16)
    with pytest.raises(ModelError, match=r"1 of \d+ float16 values in .* infinite$"):
        load_transformer(config, weights, keys, torch.float16)


@pytest.mark.parametrize("bad", BAD)
def test_a_tiny_autoencoders_file_is_checked(tmp_path: Path, bad: float) -> None:
    taehv_file(path := tmp_path / "taew2_1.safetensors")
    load_taehv(path)
    name = spoil(path, bad)
    with pytest.raises(
        ModelError, match=rf"^taew2_1\.safetensors has 1 of \d+ \w+ values in {name}"
    ):
        load_taehv(path)


@pytest.mark.parametrize(("bad", "scale"), [*((bad, 1.0) for bad in BAD), (1e30, 1e30)])
def test_an_update_of_the_users_is_checked(tmp_path: Path, bad: float, scale: float) -> None:
    """By itself, and what becomes of the weights at its scale."""
    pytest.importorskip("peft")
    pipe = tiny.pipeline()
    layer = pipe.transformer.blocks[0].attn1.to_q
    down, up = torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2)
    place = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up},
        fine := tmp_path / "fine.safetensors",
    )
    add_lora(tiny.pipeline(), fine, 0.5)
    up[0, 0] = bad
    save_file(
        {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up},
        path := tmp_path / "update.safetensors",
    )
    with pytest.raises(ModelError, match=r"1 of \d+ \w+ values|\d+ of \d+ \w+ values in .*to_q"):
        add_lora(pipe, path, scale)
