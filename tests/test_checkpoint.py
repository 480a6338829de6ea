"""Weight files: everything that authors wrap around a model comes off, and nothing else gets in."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from tests import published, tiny
from torch import Tensor, nn

from stillframe.checkpoint import (
    check_tensors,
    load_transformer,
    merge_lora,
    pick_weights,
    read_file,
    strip_prefixes,
    to_diffusers,
)
from stillframe.errors import ModelError
from stillframe.recipes import load_recipes

State = dict[str, Tensor]
FORMATS = ("zip", "legacy", "safetensors")
LAYER = "blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def model() -> Any:
    """The model that files here are of."""
    return published.model_of(1)


@pytest.fixture(scope="module")
def original(model: Any) -> State:
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
def test_calls_made_of_harmless_parts_are_refused(tmp_path: Path, act: bytes) -> None:
    """Calling, making and filling an object whose name alone is allowed."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02ctorch\nFloatStorage\n" + act + b".")
    assert f"{path} was refused: it contains pickled code" in refusal(read_file, path)


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


# low-rank updates


def update_of(state: State, rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """Random (A, B) of every linear layer of the blocks."""
    return {
        name.removesuffix(".weight"): (
            0.3 * torch.randn(rank, x.shape[1]),
            0.3 * torch.randn(x.shape[0], rank),
        )
        for name, x in state.items()
        if name.startswith("blocks.") and x.ndim == 2
    }


def spelled(update: dict[str, tuple[Tensor, Tensor]], down: str, up: str) -> State:
    """The update by the names of some program, ``{}`` standing for the layer."""
    named = {}
    for layer, (a, b) in update.items():
        named[down.format(layer)], named[up.format(layer)] = a, b
    return named


PEFT = ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")
SPELLINGS = [
    PEFT,
    ("{}.lora_A.weight", "{}.lora_B.weight"),
    ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight"),
    ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
    (
        "base_model.model.model._fsdp_wrapped_module.{}.lora_A.default.weight",
        "base_model.model.model._fsdp_wrapped_module.{}.lora_B.default.weight",
    ),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_merging_is_applying_the_update(
    original: State, scale: float, spelling: tuple[str, str]
) -> None:
    """``x W^T + scale (x A^T) B^T``, layer by layer; the rest is what it was."""
    update = update_of(original)
    merged = merge_lora(original, spelled(update, *spelling), scale, "x.pt")
    assert list(merged) == list(original)
    touched = {f"{layer}.weight" for layer in update}
    assert len(touched) == 20
    assert all(merged[name] is original[name] for name in original if name not in touched)
    for layer, (a, b) in update.items():
        weight = original[f"{layer}.weight"]
        x = torch.randn(5, weight.shape[1])
        expected = F.linear(x, weight) + scale * F.linear(F.linear(x, a), b)
        assert not torch.allclose(expected, F.linear(x, weight), atol=1e-2)
        torch.testing.assert_close(F.linear(x, merged[f"{layer}.weight"]), expected)


def test_a_merged_model_is_one_with_the_update_beside_it(
    tmp_path: Path, model: Any, original: State
) -> None:
    """The layers' outputs are corrected on the way, in the stock model."""
    update = update_of(original)
    lora = tmp_path / "lora.pt"
    critic = {name: torch.randn_like(x) for name, x in spelled(update, *PEFT).items()}
    torch.save({"critic_lora": critic, "generator_lora": spelled(update, *PEFT)}, lora)
    path = write(tmp_path, original)
    merged = load_transformer(model.config, path, lora=lora, lora_scale=0.5)
    plain = load_transformer(model.config, path)

    def beside(a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        return lambda _, given, out: out + 0.5 * F.linear(F.linear(given[0], a), b)

    for layer, pair in update.items():
        name = next(iter(to_diffusers({f"{layer}.weight": pair[0]}))).removesuffix(".weight")
        plain.get_submodule(name).register_forward_hook(beside(*pair))
    given = torch.randn(1, tiny.CHANNELS, 2, 4, 6), torch.ones(2), torch.randn(1, 5, tiny.TEXT_DIM)
    out = tiny.stock(merged, *given)
    assert not torch.allclose(out, tiny.stock(model, *given), atol=1e-2)
    torch.testing.assert_close(out, tiny.stock(plain, *given), rtol=0, atol=1e-5)


def test_no_scale_is_no_update(original: State) -> None:
    merged = merge_lora(original, spelled(update_of(original), *PEFT), 0.0, "x.pt")
    assert all(torch.equal(merged[name], original[name]) for name in original)


def test_halves_are_added_in_float32_and_rounded_once() -> None:
    weight, a, b = torch.randn(6, 8).bfloat16(), torch.randn(2, 8).half(), torch.randn(6, 2).half()
    merged = merge_lora({"x.weight": weight}, {"x.lora_A.weight": a, "x.lora_B.weight": b}, 0.3, "")
    exact = weight.double() + 0.3 * (b.double() @ a.double())
    assert merged["x.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(merged["x.weight"].double(), exact, rtol=2**-8, atol=1e-6)


def test_updates_that_do_not_fit_are_one_sentence(original: State) -> None:
    a, b = torch.ones(2, 48), torch.ones(48, 2)
    down, up = (name.format(LAYER) for name in SPELLINGS[1])
    other = "{}.lora_{}.weight"
    for lora, said in (
        ({down: a}, f"has only one half of the update of {LAYER}.weight"),
        ({up: b}, f"has only one half of the update of {LAYER}.weight"),
        (
            {other.format("zzz", "A"): a, other.format("zzz", "B"): b},
            "updates zzz.weight, which the weights do not have",
        ),
        (
            {down: a, up: b[:-1]},
            f"updates {LAYER}.weight by 47x48 (rank 2 and 2), where the weights have 48x48",
        ),
        (
            {down: a[:1], up: b},
            f"updates {LAYER}.weight by 48x48 (rank 2 and 1), where the weights have 48x48",
        ),
        ({down: a[0], up: b}, f"has {down} in 1 dimensions, not in 2"),
        ({f"{LAYER}.alpha": a}, f"has {LAYER}.alpha, which is no part of a low-rank update"),
        (
            {down: a, f"{LAYER}.lora_A.style.weight": a, up: b},
            f"has two updates of {LAYER}.weight, the second one as {LAYER}.lora_A.style.weight",
        ),
        (
            {down: a, up: b, f"model.{down}": a},
            f"has {LAYER}.weight twice, once as model.{LAYER}.weight",
        ),
    ):
        assert refusal(merge_lora, original, lora, 1.0, "x.pt") == f"x.pt {said}"


def test_a_wrong_file_is_blamed_and_not_its_neighbour(
    tmp_path: Path, model: Any, original: State
) -> None:
    lora, weights = tmp_path / "lora.pt", write(tmp_path, original)
    load: dict[str, Any] = {"keys": (), "dtype": torch.float32, "lora": lora}
    given = (model.config, weights, *load.values())
    assert refusal(load_transformer, *given) == f"weight file {lora} is not there"
    torch.save({"generator_lora": {}, "step": 7}, lora)
    assert refusal(load_transformer, *given).startswith(
        f"weight file {lora} holds no named tensors"
    )
    torch.save(tiny.text_encoder().state_dict(), lora)
    said = refusal(load_transformer, *given)
    assert said == "lora.pt has shared.weight, which is no part of a low-rank update"
    torch.save(spelled(update_of(original), *PEFT), lora)
    torch.save({"a": torch.ones(1)}, weights)
    assert refusal(load_transformer, *given).startswith("weights.pt lacks ")
