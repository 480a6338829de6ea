"""A transformer in less memory computes what it computed: packed weights, layers on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_fused import METHODS, RandomMask, edited, run
from torch import Tensor, nn

from stillframe.backbones.footprint import (
    bytes_offloaded,
    offload_transformer,
    pack_transformer,
)
from stillframe.backbones.fused.transformer import unsupported
from stillframe.backbones.meter import weight_bytes
from stillframe.errors import ModelError
from stillframe.kernels.linear import PackedLinear, pack_linear
from stillframe.kernels.offload import Offloaded
from stillframe.methods.full import Full
from stillframe.pipelines.causal_wan import CausalWanPipeline

CPU = torch.device("cpu")
SIGMAS = (0.9, 0.4)
EXECUTIONS = ["reference", "fused"]


def pipeline(layers: int = 5, packed: bool = False, offloaded: int = 0) -> CausalWanPipeline:
    """A pipeline in so little memory."""
    transformer = tiny.transformer(layers=layers)
    if packed:
        pack_transformer(transformer)
    offload_transformer(transformer, CPU, offloaded)
    return CausalWanPipeline(**{**tiny.parts(), "transformer": transformer}, text_length=12)


@cache
def usual(packed: bool, method: Any, execution: str) -> Tensor:
    """Frames of the pipeline with all its layers there, for all that are compared with it."""
    return run(pipeline(packed=packed), method, execution, sigmas=SIGMAS)


def packed_layers(model: nn.Module) -> list[PackedLinear]:
    return [x for x in model.modules() if isinstance(x, PackedLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_rounded_to_three_bits_of_their_row(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 48)
    layer.weight.data *= torch.logspace(-5, 3, 48)[:, None]
    layer = layer.to(dtype)
    packed = pack_linear(layer)
    weight, unpacked = layer.weight.float(), packed.weight.float()
    # half of the smallest step, of numbers a row's largest is 2**15 times
    least, most = packed.scale * 2.0**-10, weight.abs().amax(1, keepdim=True)
    assert bool(((unpacked - weight).abs() <= torch.maximum(weight.abs() / 16, least)).all())
    assert torch.equal(packed.scale.log2(), packed.scale.log2().round())
    tiny_row = most <= 224 * torch.finfo(dtype).tiny
    assert bool((tiny_row | (most > 224 * packed.scale)).all())
    # what has been rounded is not rounded again
    layer.weight.data = packed.weight
    assert torch.equal(pack_linear(layer).weight, packed.weight)
    x = torch.randn(3, 64).to(dtype)
    assert torch.equal(packed(x), layer(x))


def test_nothing_of_a_packed_matrix_is_left_in_the_format_before() -> None:
    model = tiny.transformer().to(torch.bfloat16)
    before = weight_bytes(model)
    matrices = [x for x in model.blocks.modules() if isinstance(x, nn.Linear)]
    numbers, rows = sum(x.weight.numel() for x in matrices), sum(x.out_features for x in matrices)
    pack_transformer(model)
    assert len(packed_layers(model)) == len(matrices) == 20
    assert before - weight_bytes(model) == numbers - 4 * rows
    assert not any(isinstance(x, nn.Linear) for x in model.blocks.modules())


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("method", [Full(), RandomMask(recovery="aligned")])
def test_a_packed_model_is_the_model_of_the_rounded_weights(method: Any, execution: str) -> None:
    packed, rounded = pipeline(packed=True), pipeline()
    for name, layer in packed.transformer.named_modules():
        if isinstance(layer, PackedLinear):
            rounded.transformer.get_submodule(name).weight.data = layer.weight
    assert unsupported(packed.transformer) is None
    found, expected = (run(pipe, method, execution, sigmas=SIGMAS) for pipe in (packed, rounded))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    plain = usual(False, method, execution)
    assert not torch.equal(found, plain)
    assert (found - plain).norm() < 0.03 * plain.norm()


def test_products_in_fp8_take_packed_weights_as_they_lie() -> None:
    pipe = pipeline(packed=True)
    exact = run(pipe, Full(), "fused", sigmas=SIGMAS)
    fp8 = run(pipe, Full(), "fused", sigmas=SIGMAS, products="fp8")
    assert 1e-5 < (fp8 - exact).norm() / exact.norm() < 0.03
    fused = pipe.denoiser.fused_transformer()
    fused.prepare_fp8()
    own = {x.rows.untyped_storage().data_ptr() for x in packed_layers(pipe.transformer)}
    assert all(x.weight.rows.untyped_storage().data_ptr() in own for y in fused._in8 for x in y)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_offloaded_layers_compute_what_they_did(count: int, packed: bool, execution: str) -> None:
    method = RandomMask(recovery="aligned")
    pipe = pipeline(packed=packed, offloaded=count)
    expected = usual(packed, method, execution)
    assert torch.equal(run(pipe, method, execution, sigmas=SIGMAS), expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_another_prompt_reaches_offloaded_layers(execution: str) -> None:
    def shown(pipe: CausalWanPipeline) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        stream = pipe.stream("oil", generator=generator, execution=execution, sigmas=SIGMAS)
        first = edited(stream, 2)
        stream.set_text(pipe.text("a sepia night"))
        return torch.cat([first, edited(stream, 2)], 1)

    assert torch.equal(shown(pipeline(offloaded=4)), shown(pipeline()))


def test_a_pass_does_not_trust_what_one_before_has_left() -> None:
    """A pass that broke off, and the replay of a graph, of which nobody is told."""
    layers = [nn.Linear(4, 4) for _ in range(3)]
    own = [layer.weight.detach().clone() for layer in layers]
    offloaded = Offloaded(layers, [[layer.weight] for layer in layers], CPU)
    offloaded.bring(0)
    known = list(offloaded._there)
    for number in range(3):
        offloaded.bring(number)
    offloaded._there = known
    for number, layer in enumerate(layers):
        offloaded.bring(number)
        assert torch.equal(layer.weight, own[number])


def test_the_stock_model_runs_with_offloaded_layers() -> None:
    x, text = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 5, tiny.TEXT_DIM)
    models = tiny.transformer(layers=5), pipeline(offloaded=3).transformer
    with torch.no_grad():
        found = [model(x, torch.ones(1), text)[0] for model in models]
    assert torch.equal(*found)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_bytes_spared_are_those_that_are_gone(count: int, packed: bool) -> None:
    def held(model: nn.Module) -> int:
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in model.parameters()}
        return sum(x.nbytes() for x in storages.values())

    whole, model = pipeline(packed=packed).transformer, pipeline(packed=packed).transformer
    spared = bytes_offloaded(model, count)
    offload_transformer(model, CPU, count)
    # places begin at multiples of 256 bytes, of which joined matrices need one
    padding = 256 * 20
    assert spared - held(whole) + held(model) + padding >= 0
    assert held(whole) - held(model) - spared in range(padding)
    with torch.device("meta"):
        empty = tiny.transformer(layers=5)
    assert bytes_offloaded(pack_transformer(empty) if packed else empty, count) == spared


def test_offloaded_weights_are_not_read_and_not_taken_for_changed() -> None:
    pipe = pipeline(offloaded=3)
    run(pipe, Full(), "fused", sigmas=SIGMAS)
    revision = pipe.denoiser.revision()
    run(pipe, Full(), "fused", sigmas=SIGMAS)
    assert pipe.denoiser.revision() == revision
    for use in (
        lambda: pipe.transformer.state_dict(),
        lambda: pipe.transformer.load_state_dict({}, strict=False),
    ):
        with pytest.raises(ModelError, match="the weights of 3 layers are offloaded"):
            use()
    with pytest.raises(ValueError, match="5 layers to offload, got 6"):
        offload_transformer(tiny.transformer(layers=5), CPU, 6)


def test_adapters_that_are_merged_into_offloaded_weights_are_refused() -> None:
    """They would be lost with the next copy; added to what layers compute they are not."""
    peft = pytest.importorskip("peft")
    pipe = pipeline(offloaded=2)
    before = run(pipe, Full(), "reference", sigmas=SIGMAS)
    targets = [f"blocks.{number}.ffn.net.2" for number in range(5)]
    given = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    pipe.transformer.add_adapter(given)
    assert not torch.equal(run(pipe, Full(), "reference", sigmas=SIGMAS), before)
    pipe.transformer.fuse_lora()
    with pytest.raises(ModelError, match=r"merged into 2 layers whose weights stay on the CPU"):
        run(pipe, Full(), "reference", sigmas=SIGMAS)


def test_all_methods_run_in_little_memory() -> None:
    usual, little = pipeline(2, packed=True), pipeline(2, packed=True, offloaded=2)
    for method in METHODS:
        for execution in EXECUTIONS:
            given: dict[str, Any] = {"sigmas": SIGMAS, "cache": "fp8"}
            expected = run(usual, method, execution, **given)
            assert torch.equal(run(little, method, execution, **given), expected), method


@pytest.mark.gpu
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("cache", ["exact", "fp8"])
def test_on_a_gpu_graphs_bring_offloaded_layers(count: int, cache: str) -> None:
    """To the bit, of frames: graphs and eager passes with all layers there, and with few."""

    def edit(offloaded: int, execution: str) -> Tensor:
        transformer = pack_transformer(tiny.transformer(layers=5)).to(torch.bfloat16)
        offload_transformer(transformer, torch.device("cuda"), offloaded)
        pipe = CausalWanPipeline(**{**tiny.parts(), "transformer": transformer}, text_length=12)
        pipe.to("cuda")
        generator = torch.Generator("cuda").manual_seed(5)
        given: dict[str, Any] = {"execution": execution, "sigmas": SIGMAS, "cache": cache}
        stream = pipe.stream("oil", method="full", generator=generator, **given)
        pieces = tiny.clip(72, 64, 96).cuda().split(12, 1)
        return torch.cat([x for x in map(stream.push, pieces) if x is not None], 1)

    expected = edit(0, "fused")
    for execution in ("fused", "graphs"):
        assert torch.equal(edit(count, execution), expected)
