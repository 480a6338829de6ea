"""Low-rank updates merged into weights, against the update applied beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from tests.weight_files import (
    LAYER,
    State,
    model_fixture,  # noqa: F401
    original_fixture,  # noqa: F401
    refusal,
    write,
)
from torch import Tensor

from stillframe.loading.checkpoint import (
    load_transformer,
    merge_lora,
    to_diffusers,
)

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
