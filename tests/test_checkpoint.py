"""Weight files: everything that authors wrap around a model comes off, and nothing else gets in."""

from __future__ import annotations

import re
from collections import OrderedDict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from tests import published, tiny
from tests.weight_files import (
    FORMATS,
    LAYER,
    State,
    model_fixture,  # noqa: F401
    original_fixture,  # noqa: F401
    refusal,
    same_weights,
    write,
)
from torch import nn

from stillframe.loading.checkpoint import (
    check_tensors,
    load_transformer,
    pick_weights,
    strip_prefixes,
    to_diffusers,
)
from stillframe.loading.recipes import load_recipes

# one network among what a file holds


def test_the_first_key_that_is_there_counts() -> None:
    ema, plain, path = {"a": torch.ones(1)}, {"a": torch.zeros(1)}, Path("x.pt")
    content = {"generator": plain, "generator_ema": ema, "critic": {"b": torch.ones(2)}}
    assert pick_weights(content, ["generator_ema", "generator"], path) == ema
    assert pick_weights(content, ["generator", "generator_ema"], path) == plain
    assert pick_weights(content, ["ema", "generator"], path) == plain
    assert pick_weights(ema, [], path) == ema


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        (
            {"critic": {}, "step": 7, 3: 1, "more": 1},
            ["generator_ema", "generator"],
            "has no generator_ema or generator; its first entries are critic, step, 3",
        ),
        ({}, ["generator"], "has no generator; it is empty"),
        ({}, [], "holds no named tensors where the model should be"),
        ({"generator": {}}, ["generator"], "holds no named tensors where the model should be"),
        ({"generator": 7}, ["generator"], "holds no named tensors where the model should be"),
        ({"a": torch.ones(1), "step": 7}, [], "holds a int at 'step', not a named tensor"),
        ({"generator": {"a": {}}}, [], "holds a dict at 'generator', not a named tensor"),
        ({1: torch.ones(1)}, [], "holds a Tensor at 1, not a named tensor"),
    ],
)
def test_what_is_not_there_is_said(content: Any, keys: list[str], said: str) -> None:
    path = Path("folder/x.pt")
    assert refusal(pick_weights, content, keys, path) == f"weight file {path} {said}"


# names

OUTER = ["", "model.", "net.", "module.", "diffusion_model.", "model.diffusion_model."]
OUTER += ["module.model.", "model.net."]
WRAPPERS = ["", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."]
WRAPPERS += ["_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod."]


def wrapped(name: str, outer: str, around: str, inside: str) -> str:
    """``name`` as training leaves it: wrappers of the model, and of each block."""
    inner = re.sub(r"^(blocks\.\d+\.)", rf"\1{inside}", name)
    return f"{around}{outer}{around}{inner}"


def test_the_example_of_a_wrapped_name() -> None:
    name = "model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.self_attn.q.weight"
    assert wrapped(
        f"{LAYER}.weight", "model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."
    ).endswith(name)
    value = torch.ones(1)
    assert strip_prefixes({name: value}) == {f"{LAYER}.weight": value}


def test_every_wrapping_of_names_comes_off(original: State) -> None:
    for outer, around, inside in product(OUTER, WRAPPERS, WRAPPERS):
        state = {wrapped(name, outer, around, inside): x for name, x in original.items()}
        assert len(state) == len(original)
        plain = strip_prefixes(state)
        assert list(plain) == list(original), (outer, around, inside)
        assert all(plain[name] is original[name] for name in original)


def test_two_names_of_one_tensor_are_refused() -> None:
    a = torch.ones(1)
    assert (
        refusal(strip_prefixes, {"a.b": a, "model.a.b": a}, "x.pt")
        == "x.pt has a.b twice, once as model.a.b"
    )
    # names that differ, and mean one tensor
    both = {f"{LAYER}.weight": a, "blocks.0.attn1.to_q.weight": a, "head.head.bias": a}
    assert (
        refusal(to_diffusers, both, "x.pt")
        == "x.pt has 1 of its 3 tensors twice, by different names"
    )


def test_original_names_become_those_of_diffusers(model: Any, original: State) -> None:
    """`published` writes the original names by a table of its own."""
    converted, expected = to_diffusers(original), model.state_dict()
    assert converted.keys() == expected.keys() != original.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    assert LAYER + ".weight" in original  # and is left alone


def test_names_of_diffusers_stay(model: Any) -> None:
    state = dict(model.state_dict())
    same = to_diffusers(state)
    assert list(same) == list(state)
    assert all(same[name] is state[name] for name in state)


# exactly the tensors of the model


def test_missing_and_unexpected_tensors_are_counted_and_named(model: Any) -> None:
    expected = model.state_dict()
    names, count = list(expected), len(expected)
    check_tensors(expected, expected, "x.pt")
    lacking = {name: x for name, x in expected.items() if name not in names[3:5]}
    extra = {**expected, "zzz": torch.ones(1), "aaa": torch.ones(1)}
    lacks = f"lacks 2 of {count} tensors, first {names[3]}"
    has = "has 2 that the model has not, first zzz"
    assert refusal(check_tensors, lacking, expected, "x.pt") == f"x.pt {lacks}"
    assert refusal(check_tensors, extra, expected, "x.pt") == f"x.pt {has}"
    both = {name: x for name, x in extra.items() if name in lacking or name not in expected}
    assert refusal(check_tensors, both, expected, "x.pt") == f"x.pt {lacks} and {has}"


def test_shapes_and_kinds_of_numbers_are_checked() -> None:
    expected = {"a": torch.empty(2, 3, device="meta"), "b": torch.empty(2, device="meta")}
    good = {"b": torch.ones(2), "a": torch.ones(2, 3).bfloat16()}
    check_tensors(good, expected, "x.pt")
    for value, said in (
        (torch.ones(3, 2), "in shape 3x2 where the model has 2x3"),
        (torch.ones(2, 3).to(torch.int8), "as (int8, strided) where plain numbers were expected"),
        (
            torch.ones(2, 3).to(torch.complex64),
            "as (complex64, strided) where plain numbers were expected",
        ),
        (
            torch.ones(2, 3).to_sparse(),
            "as (float32, sparse_coo) where plain numbers were expected",
        ),
    ):
        assert (
            refusal(check_tensors, {**good, "a": value}, expected, "x.pt") == f"x.pt has a {said}"
        )


@pytest.mark.parametrize("form", FORMATS)
def test_another_models_file_is_refused(tmp_path: Path, model: Any, form: str) -> None:
    others = {
        "shared.weight": tiny.text_encoder().state_dict(),
        "encoder.conv_in.weight": tiny.wan_autoencoder().state_dict(),
        "encoder.0.weight": tiny.autoencoder().state_dict(),
    }
    for first, state in others.items():
        state = {name: x.clone() for name, x in state.items()}
        path = write(tmp_path, state, form)
        said = refusal(load_transformer, model.config, path)
        count = len(model.state_dict())
        assert said.startswith(f"{path.name} lacks {count} of {count} tensors, first "), said
        assert f"has {len(state)} that the model has not, first " in said
        assert form == "safetensors" or said.endswith(first)  # which is sorted


def test_a_sibling_of_another_size_is_refused(tmp_path: Path, model: Any) -> None:
    deeper = published.original_names(tiny.transformer(layers=3).state_dict())
    per_block = sum(name.startswith("blocks.0.") for name in deeper)
    said = refusal(load_transformer, model.config, write(tmp_path, deeper))
    assert said.startswith(f"weights.pt has {per_block} that the model has not, first blocks.2.")
    source = published.original_names(tiny.transformer(source=True).state_dict())
    said = refusal(load_transformer, model.config, write(tmp_path, source))
    assert said == (
        "weights.pt has patch_embedding.weight in shape 48x8x1x2x2 where the model has 48x4x1x2x2"
    )


# whole files


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_gives_the_model_back(
    tmp_path: Path, model: Any, original: State, form: str
) -> None:
    named = {wrapped(name, "model.", WRAPPERS[1], WRAPPERS[2]): x for name, x in original.items()}
    keys: list[str] = []
    content: Any = named
    if form != "safetensors":
        keys = ["generator_ema", "generator"]
        other = {name: torch.zeros_like(x) for name, x in named.items()}
        content = {"step": 7, "critic": other, "generator": other, "generator_ema": named}
    loaded = load_transformer(model.config, write(tmp_path, content, form), keys)
    assert same_weights(loaded, model)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_parameters_and_diffusers_names_load_too(tmp_path: Path, model: Any) -> None:
    content = OrderedDict((f"net.{n}", nn.Parameter(x)) for n, x in model.state_dict().items())
    loaded = load_transformer(model.config, write(tmp_path, content))
    assert same_weights(loaded, model)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("name", load_recipes())
def test_every_recipes_layout_loads(tmp_path: Path, name: str) -> None:
    """The keys before the recipe's first choice hold other networks; updates are merged."""
    recipe = load_recipes()[name]
    expected, _ = published.publish(tmp_path, recipe, tmp_path)
    files = tmp_path / "weights"
    lora = None if recipe.lora is None else files / recipe.lora
    loaded = load_transformer(
        expected.config, files / recipe.file, recipe.keys, lora=lora, lora_scale=recipe.lora_scale
    )
    if lora is None:
        assert same_weights(loaded, expected)
    torch.testing.assert_close(loaded.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)


def test_rotary_tables_are_real_after_loading(tmp_path: Path, model: Any, original: State) -> None:
    loaded = load_transformer(model.config, write(tmp_path, original))
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys() != set()
    assert not any(tensor.is_meta for tensor in [*buffers.values(), *loaded.parameters()])
    latents = torch.randn(1, tiny.CHANNELS, 2, 4, 6)
    text = torch.randn(1, 5, tiny.TEXT_DIM)
    sigma = torch.tensor([0.3, 0.8])
    out = tiny.stock(loaded, latents, sigma, text)
    assert torch.equal(out, tiny.stock(model, latents, sigma, text))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_diffusers(
    tmp_path: Path, model: Any, original: State, dtype: torch.dtype
) -> None:
    model.save_pretrained(tmp_path / "folder")
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "folder", torch_dtype=dtype)
    loaded = load_transformer(model.config, write(tmp_path, original), dtype=dtype)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(loaded, kind)()), dict(getattr(stock, kind)())
        assert {n: x.dtype for n, x in ours.items()} == {n: x.dtype for n, x in theirs.items()}
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kinds = {x.dtype for x in loaded.parameters()}
    assert kinds == {dtype, torch.float32}


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_after_a_conversion_the_file_is_not_needed(
    tmp_path: Path, model: Any, original: State, form: str
) -> None:
    """Files are mapped; another one may be written in its place while the model runs."""
    path = write(tmp_path, original, form)
    loaded = load_transformer(model.config, path, dtype=torch.bfloat16)
    before = {name: x.clone() for name, x in loaded.state_dict().items()}
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(x, before[name]) for name, x in loaded.state_dict().items())
