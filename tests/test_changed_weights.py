"""Weights that change while a model is in use: what is derived from them follows, in every path."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from tests import tiny
from tests.recorded_graphs import record
from tests.test_fused import RandomMask
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from stillframe.backbones.fused.blocks import FusedBlocks
from stillframe.backbones.fused.transformer import unsupported
from stillframe.engine.stream import EditStream
from stillframe.kernels.weights import WeightWatch
from stillframe.methods.full import Full
from stillframe.pipelines.causal_wan import CausalWanPipeline

pytest.importorskip("peft")

Change = Callable[[CausalWanPipeline], Any]
UNMERGED = "has adapters that are active and not merged"


def lora(seed: int) -> dict[str, Tensor]:
    """A low-rank update of all the blocks' linear layers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, layer in tiny.transformer().named_modules():
        if isinstance(layer, nn.Linear) and name.startswith("blocks."):
            rows, columns = layer.weight.shape
            down = torch.randn(2, columns, generator=generator)
            up = torch.randn(rows, 2, generator=generator)
            state[f"transformer.{name}.lora_A.weight"] = 0.2 * down
            state[f"transformer.{name}.lora_B.weight"] = 0.2 * up
    return state


def load(pipe: CausalWanPipeline, *names: str) -> None:
    for seed, name in enumerate(names or ("one",)):
        pipe.load_lora_weights(lora(seed), adapter_name=name)


def load_fused(pipe: CausalWanPipeline) -> None:
    load(pipe)
    pipe.fuse_lora(components=["transformer"])


def other_weights() -> dict[str, Tensor]:
    model, generator = tiny.transformer(), torch.Generator().manual_seed(9)
    state: dict[str, Tensor] = model.state_dict()
    return {k: x + 0.1 * torch.randn(x.shape, generator=generator) for k, x in state.items()}


def adding(name: str) -> Change:
    """The last number of a parameter, changed behind torch's back."""

    def change(pipe: CausalWanPipeline) -> None:
        pipe.transformer.get_parameter(name).data.view(-1)[-1].add_(3.0)

    return change


def replacing(name: str) -> Change:
    def change(pipe: CausalWanPipeline) -> None:
        parameter = pipe.transformer.get_parameter(name)
        parameter.data = 1.5 * parameter.data

    return change


def rescaled(pipe: CausalWanPipeline) -> None:
    """Merged as before, where it was, under the same name: only numbers tell."""
    pipe.unfuse_lora(components=["transformer"])
    pipe.fuse_lora(components=["transformer"], lora_scale=-0.7)


def nothing(pipe: CausalWanPipeline) -> None:
    """The pipeline as it is."""


def load_two(pipe: CausalWanPipeline) -> None:
    load(pipe, "one", "two")


class Case(NamedTuple):
    """What is done before a stream begins, and what between two of its blocks.

    Attributes:
        fused: whether it runs fused after that.
        same: whether the model computes what it did before.
    """

    before: Change
    change: Change
    fused: bool = True
    same: bool = False


CASES: dict[str, Case] = {
    "load_lora_weights": Case(nothing, load, fused=False),
    "fuse_lora of what was loaded": Case(load, lambda p: p.fuse_lora(["transformer"]), same=True),
    "load and fuse_lora": Case(nothing, load_fused),
    "load and fuse_lora, safely": Case(
        load, lambda p: p.fuse_lora(["transformer"], safe_fusing=True), same=True
    ),
    "fuse_lora of one of two": Case(
        load_two, lambda p: p.fuse_lora(["transformer"], adapter_names=["two"]), same=True
    ),
    "fuse_lora at another scale": Case(load_fused, rescaled),
    "unfuse_lora": Case(
        load_fused, lambda p: p.unfuse_lora(["transformer"]), fused=False, same=True
    ),
    "unload_lora_weights": Case(load, lambda p: p.unload_lora_weights()),
    "unload_lora_weights once merged": Case(
        load_fused, lambda p: p.unload_lora_weights(), same=True
    ),
    "set_adapters": Case(
        load_two, lambda p: p.set_adapters(["one", "two"], [0.5, -0.3]), fused=False
    ),
    "set_adapters to another": Case(load_two, lambda p: p.set_adapters(["one"]), fused=False),
    "disable_lora": Case(load, lambda p: p.disable_lora()),
    "disable_lora once merged": Case(load_fused, lambda p: p.disable_lora()),
    "delete_adapters": Case(load, lambda p: p.delete_adapters("one")),
    "load_state_dict": Case(nothing, lambda p: p.transformer.load_state_dict(other_weights())),
    "load_state_dict, assigned": Case(
        nothing, lambda p: p.transformer.load_state_dict(other_weights(), assign=True)
    ),
    "patch embedding +=": Case(nothing, adding("patch_embedding.weight")),
    "modulation +=": Case(nothing, adding("blocks.1.scale_shift_table")),
    "queries +=": Case(nothing, adding("blocks.1.attn1.to_q.weight")),
    "text keys +=": Case(nothing, adding("blocks.1.attn2.to_k.weight")),
    "text embedder +=": Case(nothing, adding("condition_embedder.text_embedder.linear_2.bias")),
    "patch embedding =": Case(nothing, replacing("patch_embedding.weight")),
    "values =": Case(nothing, replacing("blocks.0.attn1.to_v.weight")),
    "output =": Case(nothing, replacing("proj_out.weight")),
    "attention kernel": Case(
        nothing, lambda p: p.transformer.set_attention_backend("native"), same=True
    ),
    "fuse_qkv_projections": Case(
        nothing, lambda p: p.transformer.fuse_qkv_projections(), fused=False, same=True
    ),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{UNMERGED}.*")
        warnings.filterwarnings("ignore", "Already (unmerged|found a `peft_config`)")
        yield


def source(blocks: int) -> list[Tensor]:
    """Latents of blocks that drift."""
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(1, tiny.CHANNELS, 3, 8, 12, generator=generator)
    drift = [0.1 * torch.randn(latents.shape, generator=generator) for _ in range(blocks)]
    return list((latents + torch.stack(drift).cumsum(0)).unbind(0))


def stream(pipe: CausalWanPipeline, execution: str, **given: Any) -> EditStream:
    given = {"method": RandomMask(recovery="aligned"), "sigmas": (0.9, 0.5), **given}
    return pipe.stream(
        "oil", execution=execution, generator=torch.Generator().manual_seed(5), **given
    )


@pytest.fixture
def fused_blocks(monkeypatch: pytest.MonkeyPatch) -> list[FusedBlocks]:
    """What ran the blocks that ran fused."""
    ran: list[FusedBlocks] = []
    plain = FusedBlocks.denoise

    def counted(self: FusedBlocks, *given: Any) -> Tensor:
        ran.append(self)
        return plain(self, *given)

    monkeypatch.setattr(FusedBlocks, "denoise", counted)
    return ran


def across(
    case: Case,
    execution: str,
    ran: list[FusedBlocks],
    device: str = "cpu",
    *,
    rarely: bool = False,
    **given: Any,
) -> Tensor:
    """Three blocks, the change, and four more; ``ran`` has what ran fused after the change. Numbers
    of weights are read ``rarely`` on a GPU."""
    pipe = tiny.pipeline().to(device)
    case.before(pipe)
    running = stream(pipe, execution, **given)
    if rarely:
        running._reads_every = 8
    latents = [x.to(device) for x in source(7)]
    frames = [running.edit_block(x) for x in latents[:3]]
    ran.clear()
    case.change(pipe)
    frames += [running.edit_block(x) for x in latents[3:]]
    return torch.stack(frames)


@cache
def without_change(before: Change) -> Tensor:
    """What the reference makes where nothing changes between blocks."""
    return across(Case(before, nothing), "reference", [])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_fused_equals_plain_across_a_change(case: Case, fused_blocks: list[FusedBlocks]) -> None:
    plain = across(case, "reference", fused_blocks)
    fused = across(case, "fused", fused_blocks)
    torch.testing.assert_close(fused, plain, atol=5e-5, rtol=0)
    assert bool(fused_blocks) == case.fused
    unchanged = without_change(case.before)
    assert torch.equal(plain[:3], unchanged[:3])
    if not case.same:
        # also where a block keeps little: what was shown before the change is not shown after it
        assert (plain[3:] - unchanged[3:]).abs().flatten(1).amax(1).min() > 1e-4


CALLS = (
    "load and fuse_lora",
    "fuse_lora at another scale",
    "unfuse_lora",
    "set_adapters",
    "unload_lora_weights once merged",
    "load_state_dict",
)


@pytest.mark.parametrize("name", CALLS)
def test_diffusers_own_calls_are_noticed_at_once(
    name: str, fused_blocks: list[FusedBlocks]
) -> None:
    """Also where numbers are read only now and then."""
    case = CASES[name]
    plain = across(case, "reference", fused_blocks)
    fused = across(case, "fused", fused_blocks, rarely=True)
    torch.testing.assert_close(fused, plain, atol=5e-5, rtol=0)
    assert bool(fused_blocks) == case.fused


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_graphs_on_a_gpu_equal_plain_across_a_change(
    name: str, fused_blocks: list[FusedBlocks]
) -> None:
    masks: dict[str, Any] = {"method": Full(recovery="aligned")}
    case = CASES[name]
    plain = across(case, "reference", fused_blocks, "cuda", **masks)
    graphs = across(case, "auto", fused_blocks, "cuda", **masks)
    torch.testing.assert_close(graphs, plain, atol=1e-3, rtol=0)
    assert bool(fused_blocks) == case.fused
    unchanged = across(case._replace(change=nothing), "reference", fused_blocks, "cuda", **masks)
    if not case.same:
        assert (plain[3:] - unchanged[3:]).abs().flatten(1).amax(1).min() > 3e-3


@pytest.mark.parametrize("execution", ["reference", "fused"])
@pytest.mark.parametrize(
    "name",
    [
        "load and fuse_lora",
        "fuse_lora at another scale",
        "set_adapters",
        "load_state_dict",
        "modulation +=",
        "text keys +=",
        "text embedder +=",
    ],
)
def test_a_change_before_the_first_block_counts(name: str, execution: str) -> None:
    """Against a stream of a pipeline that had the weights from the beginning, prompt included."""
    case = CASES[name]
    pipe, other = tiny.pipeline(), tiny.pipeline()
    case.before(pipe)
    early = stream(pipe, execution)
    stream(pipe, execution).edit_block(source(1)[0])  # copies are made
    case.change(pipe)
    case.before(other)
    case.change(other)
    late = stream(other, execution)
    for latents in source(3):
        found, expected = early.edit_block(latents), late.edit_block(latents)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_another_number_format_begins_anew() -> None:
    for execution in ("reference", "fused"):
        pipe = tiny.pipeline()
        running = stream(pipe, execution)
        latents = source(4)
        for x in latents[:2]:
            running.edit_block(x)
        pipe.transformer.to(torch.bfloat16)
        later = [running.edit_block(x) for x in latents[2:]]
        assert all(x.isfinite().all() for x in later)


@pytest.mark.parametrize("layer", ["attn1.to_k", "attn2.to_q", "ffn.net.0.proj", "ffn.net.2"])
def test_products_in_fp8_follow(layer: str) -> None:
    pipe, other = tiny.pipeline(), tiny.pipeline()

    def first_block(of: CausalWanPipeline) -> Tensor:
        return stream(of, "fused", products="fp8").edit_block(source(1)[0])

    before = first_block(pipe)
    for one in (pipe, other):
        one.transformer.blocks[1].get_parameter(f"{layer}.weight").data.neg_()
    after = first_block(pipe)
    assert torch.equal(after, first_block(other))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", ["load_state_dict, assigned", "load_state_dict", "unfuse_lora"])
def test_graphs_are_made_anew(
    name: str, fused_blocks: list[FusedBlocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recordings on a CPU, which read the tensors that there were when they were made."""
    case = CASES[name]
    plain = across(case, "fused", fused_blocks, method=Full())
    recordings = record(monkeypatch)
    graphed = across(case, "fused", fused_blocks, method=Full())
    torch.testing.assert_close(graphed, plain, atol=1e-6, rtol=0)
    assert recordings.replays


def test_adapters_that_are_not_merged_are_said_once() -> None:
    pipe = tiny.pipeline()
    load(pipe)
    assert UNMERGED in str(unsupported(pipe.transformer))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for execution in ("reference", "fused", "fused"):
            stream(pipe, execution).edit_block(source(1)[0])
    told = [str(one.message) for one in said if UNMERGED in str(one.message)]
    assert told == [
        "passes run unfused, which is slower: the model has adapters that are active and not "
        "merged; fuse_lora() merges them"
    ]


def test_two_pipelines_of_one_transformer_do_not_take_turns_in_copying() -> None:
    model = tiny.transformer()
    pipes = [CausalWanPipeline(**{**tiny.parts(), "transformer": model}) for _ in range(2)]
    made = [pipe.denoiser.fused_transformer() for pipe in pipes]
    revisions = [pipe.denoiser.revision() for pipe in pipes]
    for _ in range(2):
        assert [pipe.denoiser.fused_transformer() for pipe in pipes] == made
        assert [pipe.denoiser.revision() for pipe in pipes] == revisions
    joined = {x._qkv[0].weight.data_ptr() for x in made} | {
        model.blocks[0].attn1.to_q.weight.data_ptr()
    }
    assert len(joined) == 1


# the watch itself


def test_every_row_and_column_of_a_matrix_and_every_number_of_a_vector_is_watched() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((640, 256), (256, 640), (300, 300), (7, 50_000), (97, 16, 1, 5, 5), (9000,)):
        model = nn.Module()
        model.x = nn.Parameter(torch.randn(shape, generator=generator).bfloat16())
        watch = WeightWatch()
        flat = model.x.data.flatten(1) if len(shape) > 1 else model.x.data[:, None]
        before = watch.revision(model)
        for row in range(0, len(flat), max(1, len(flat) // 150)):
            flat[row] = -flat[row] - 1
            assert watch.revision(model) == before + 1, (shape, row)
            before += 1
        if len(shape) > 1:
            for column in range(0, flat.shape[1], max(1, flat.shape[1] // 150)):
                flat[:, column] = -flat[:, column] - 1
                assert watch.revision(model) == before + 1, (shape, column)
                before += 1


def test_what_only_numbers_tell_takes_reading_them() -> None:
    model, watch = tiny.transformer(), WeightWatch()
    assert watch.revision(model, read=False) == 0
    model.proj_out.weight.data.add_(1)
    assert watch.revision(model, read=False) == 0
    assert watch.revision(model) == 1
    model.load_state_dict(other_weights())
    assert watch.revision(model, read=False) == 2
    assert watch.revision(model) == 2
    model.proj_out.weight = nn.Parameter(model.proj_out.weight.data.clone(), requires_grad=False)
    assert watch.revision(model, read=False) == 3


def test_what_does_not_change_is_no_change() -> None:
    model = tiny.transformer()
    model.proj_out.bias.data[0] = torch.nan  # not even equal to itself
    watch = WeightWatch()
    assert {watch.revision(model) for _ in range(3)} == {0}
    with torch.inference_mode():
        assert watch.revision(model) == 0
    assert watch.revision(model, "beside") == 1
    assert watch.revision(model, "beside") == 1


def test_weights_are_not_kept_from_being_freed() -> None:
    model, watch = tiny.transformer(), WeightWatch()
    watch.revision(model)
    before = StorageWeakRef(model.proj_out.weight.untyped_storage())
    model.proj_out.weight.data = model.proj_out.weight.data.clone()
    assert before.expired()


def test_where_hooks_move_weights_their_place_says_nothing() -> None:
    model, watch = tiny.transformer(), WeightWatch()
    model.blocks[0]._hf_hook = object()
    watch.revision(model)
    model.proj_out.weight.data = model.proj_out.weight.data.clone()
    assert watch.revision(model) == 0
    model.load_state_dict(other_weights())
    assert watch.revision(model) == 1
    with torch.device("meta"):
        empty = copy.deepcopy(tiny.transformer().to("meta"))
    assert [watch_empty.revision(empty) for watch_empty in [WeightWatch()] * 2] == [0, 0]
