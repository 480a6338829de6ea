"""Stock diffusers pipelines with `hooks` applied: what changes, what does not, and what is left."""

from __future__ import annotations

import copy
import gc
import json
import runpy
import sys
import weakref
from functools import partial
from itertools import combinations
from pathlib import Path
from threading import Thread
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from tests import stock_pipelines as stock
from tests import tiny
from torch import nn

from stillframe import hooks
from stillframe.errors import InputError
from stillframe.hooks.families import base
from stillframe.hooks.families.base import find_family

pytestmark = stock.LIBRARIES
NAMES = sorted(stock.MAKERS)


@pytest.fixture(scope="module", params=NAMES)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A pipeline of every kind, by its name."""
    return request.param, stock.MAKERS[request.param]()


def hanging(pipe: Any) -> list[Any]:
    """Everything that could be left on a pipeline's denoisers."""
    found: list[Any] = [type(pipe), sorted(k for k in vars(pipe) if k[0] != "_")]
    for denoiser in find_family(pipe).denoisers(pipe):
        for name, module in denoiser.named_modules():
            attributes = {k for k in vars(module) if k != "_diffusers_hook"}
            found.append((name, attributes, list(module._modules), module.forward))
            found += [list(module._forward_pre_hooks), list(module._forward_hooks)]
            found += [list(module._forward_hooks_always_called)]
            found.append(getattr(module, "processor", None))
    return found


def shape_of(pipe: Any, video: torch.Tensor) -> torch.Size:
    """Of a mask for a clip."""
    with hooks.apply(pipe, video=video) as session:
        assert session.plan is not None
        return session.plan.keep.shape


def test_nothing_pruned_is_bit_equal(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip()
    plain = stock.run(name, pipe, video, output_type="latent")
    with hooks.apply(pipe, video=video, method="full") as session:
        assert session.kept_share == 1
        assert torch.equal(stock.run(name, pipe, video, output_type="latent"), plain)
    with hooks.apply(pipe):
        assert torch.equal(stock.run(name, pipe, video, output_type="latent"), plain)
    whole = torch.ones(shape_of(pipe, video))
    with hooks.apply(pipe, video=video, mask=whole):
        assert torch.equal(stock.run(name, pipe, video, output_type="latent"), plain)


def test_removing_leaves_the_pipeline_as_it_was(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip()
    plain, before = stock.run(name, pipe, video, output_type="latent"), hanging(pipe)
    results = []
    for standin in hooks.standins:
        session = hooks.apply(pipe, video=video, standin=standin)
        assert 0 < session.kept_share < 0.7
        results.append(stock.run(name, pipe, video, output_type="latent"))
        hooks.remove(pipe)
        assert hanging(pipe) == before
    hooks.remove(pipe)
    assert torch.equal(stock.run(name, pipe, video, output_type="latent"), plain)
    results.append(plain)
    assert all(result.isfinite().all() for result in results)
    assert not any(torch.equal(a, b) for a, b in combinations(results, 2))


def test_applying_twice_is_applying_once(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip()
    before = hanging(pipe)
    hooks.apply(pipe, video=video)
    once, hung = stock.run(name, pipe, video, output_type="latent"), len(hanging(pipe))
    with hooks.apply(pipe, video=video, tolerance=0.5, standin="copy"):
        pass  # replaces what was applied, and is removed
    assert hanging(pipe) == before
    with hooks.apply(pipe, video=video), hooks.apply(pipe, video=video):
        assert len(hanging(pipe)) == hung
        assert torch.equal(stock.run(name, pipe, video, output_type="latent"), once)
    assert hanging(pipe) == before


def test_a_run_leaves_nothing_for_the_next(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip()
    with hooks.apply(pipe, video=video, standin="refresh"):
        assert torch.equal(
            stock.run(name, pipe, video, output_type="latent"),
            stock.run(name, pipe, video, output_type="latent"),
        )


def test_a_still_clip_computes_one_frame_and_stays_still(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip(still=True)
    with hooks.apply(pipe, video=video) as session:
        latents = stock.run(name, pipe, video, output_type="latent")
    fixed = int(name in ("wan-i2v-timed", "ltx-condition"))
    assert session.plan is not None
    assert session.kept_share == (1 + fixed) / len(session.plan.keep)
    moving = stock.frames_first(name, latents)
    later = moving[fixed:]
    torch.testing.assert_close(later, later[:1].expand_as(later), rtol=0, atol=2e-5)


def test_a_mask_of_the_user(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip()
    mask = torch.zeros(shape_of(pipe, video), dtype=torch.bool)
    mask[::2] = True
    mask[:, 0] = True
    with hooks.apply(pipe, mask=mask) as session:
        assert stock.run(name, pipe, video).isfinite().all()
        assert session.plan is not None
        assert torch.equal(session.plan.keep, mask)


@pytest.mark.parametrize(("kind", "part"), [("wan", "transformer"), ("animatediff", "unet")])
def test_pipelines_that_share_a_denoiser(kind: str, part: str) -> None:
    first, second = f"{kind}-v2v", f"{kind}-t2v"
    one, other = stock.MAKERS[first](), stock.MAKERS[second]()
    setattr(other, part, getattr(one, part))
    video = stock.clip()
    mask = torch.ones(shape_of(one, video), dtype=torch.bool)
    mask[2:, :2] = False
    before = hanging(one)
    plain = stock.run(second, other, video)
    hooks.apply(one, video=video)
    alone = stock.run(first, one, video)
    assert torch.equal(stock.run(second, other, video), plain)
    hooks.apply(other, mask=mask)
    masked = stock.run(second, other, video)
    assert not torch.equal(masked, plain)
    assert torch.equal(stock.run(first, one, video), alone)
    hooks.remove(one)
    assert torch.equal(stock.run(second, other, video), masked)
    hooks.remove(other)
    assert hanging(one) == before
    assert torch.equal(stock.run(second, other, video), plain)


def test_pipelines_of_two_threads_share_a_transformer() -> None:
    """One that nothing was applied to is called in the middle of a pass of the other."""
    one, other = stock.MAKERS["wan-v2v"](), stock.MAKERS["wan-t2v"]()
    other.transformer = one.transformer
    video = stock.clip()
    plain = stock.run("wan-t2v", other, video)
    within: list[torch.Tensor] = []

    def interrupt(module: nn.Module, given: Any, out: Any) -> None:
        handle.remove()
        call = partial(stock.run, "wan-t2v", other, video)
        thread = Thread(target=lambda: within.append(call()))
        thread.start()
        thread.join()

    with hooks.apply(one, video=video):
        pruned = stock.run("wan-v2v", one, video)
        handle = one.transformer.blocks[1].register_forward_hook(interrupt)
        assert torch.equal(stock.run("wan-v2v", one, video), pruned)
    assert torch.equal(within[0], plain)


def test_a_copy_of_a_pipeline_is_a_stock_one() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    plain = stock.run(name, pipe, video)
    with hooks.apply(pipe, video=video):
        assert torch.equal(stock.run(name, copy.copy(pipe), video), plain)


def test_nothing_keeps_a_pipeline_alive() -> None:
    pipe = stock.MAKERS["wan-v2v"]()
    hooks.apply(pipe, video=stock.clip())
    gone = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert gone() is None


def test_another_transformer_may_take_the_place() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    before, first = hanging(pipe), pipe.transformer
    hooks.apply(pipe, video=video)
    pipe.transformer = stock.wan_transformer(2)
    hooks.remove(pipe)
    pipe.transformer = first
    assert hanging(pipe) == before


def test_an_error_within_a_call_ends_the_pass() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    plain = stock.run(name, pipe, video)
    hooks.apply(pipe, video=video)
    pruned = stock.run(name, pipe, video)
    handle = pipe.transformer.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stock.run(name, pipe, video)
    handle.remove()
    assert torch.equal(stock.run(name, pipe, video), pruned)
    hooks.remove(pipe)
    assert torch.equal(stock.run(name, pipe, video), plain)


@pytest.mark.parametrize("first", ["offload", "apply"])
def test_offloading_rewires_forward_and_disturbs_nothing(first: str) -> None:
    """As ``enable_model_cpu_offload`` does before, and again after, every call."""
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    before = hanging(pipe)
    with hooks.apply(pipe, video=video):
        pruned = stock.run(name, pipe, video)
    if first == "apply":
        hooks.apply(pipe, video=video)
    accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
    if first == "offload":
        hooks.apply(pipe, video=video)
    assert torch.equal(stock.run(name, pipe, video), pruned)
    accelerate.hooks.remove_hook_from_module(pipe.transformer)
    accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
    assert torch.equal(stock.run(name, pipe, video), pruned)
    accelerate.hooks.remove_hook_from_module(pipe.transformer)
    hooks.remove(pipe)
    vars(pipe.transformer).pop("forward", None)  # which accelerate sets
    assert hanging(pipe) == before


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_groups_that_are_offloaded(kind: str) -> None:
    name, video = "wan-vace", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video):
        pruned = stock.run(name, pipe, video)
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type=kind, num_blocks_per_group=1
    )
    with hooks.apply(pipe, video=video):
        assert torch.equal(stock.run(name, pipe, video), pruned)


def test_adapters_and_attention_kernels_are_used() -> None:
    from peft import LoraConfig

    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    hooks.apply(pipe, video=video)
    plain = stock.run(name, pipe, video)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    )
    adapted = stock.run(name, pipe, video)
    assert not torch.equal(adapted, plain)
    with hooks.apply(pipe, video=video):
        assert torch.equal(stock.run(name, pipe, video), adapted)
        pipe.transformer.set_attention_backend("_native_math")
        other = stock.run(name, pipe, video)
        torch.testing.assert_close(other, adapted)
    # the choice stays with the stock processors
    assert {b.attn1.processor._attention_backend for b in pipe.transformer.blocks} == {
        "_native_math"
    }


CACHES = {
    "first-block": lambda pipe: FirstBlockCacheConfig(threshold=0.2),
    "broadcast": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        spatial_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
}


@pytest.mark.parametrize("kind", sorted(CACHES))
def test_caches_of_diffusers_go_beside(kind: str) -> None:
    name, video = "wan-t2v", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video):
        pruned = stock.run(name, pipe, video, num_inference_steps=8)
        pipe.transformer.enable_cache(CACHES[kind](pipe))
        both = stock.run(name, pipe, video, num_inference_steps=8)
    cached = stock.run(name, pipe, video, num_inference_steps=8)
    assert not torch.equal(both, pruned)
    assert (both - pruned).abs().mean() < (cached - pruned).abs().mean()
    with hooks.apply(pipe, video=video):  # in the other order
        assert torch.equal(stock.run(name, pipe, video, num_inference_steps=8), both)
    with (
        hooks.apply(pipe, video=video, standin="refresh"),
        pytest.raises(InputError, match=r"'refresh' keeps .* enable_cache skips layers"),
    ):
        stock.run(name, pipe, video)
    pipe.transformer.disable_cache()
    with hooks.apply(pipe, video=video):
        assert torch.equal(stock.run(name, pipe, video, num_inference_steps=8), pruned)


@pytest.mark.slow
def test_blocks_that_are_compiled() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    plain = stock.run(name, pipe, video)
    with hooks.apply(pipe, video=video):
        pruned = stock.run(name, pipe, video)
    pipe.transformer.compile_repeated_blocks(backend="eager")
    with hooks.apply(pipe, video=video):
        torch.testing.assert_close(stock.run(name, pipe, video), pruned)
    torch.testing.assert_close(stock.run(name, pipe, video), plain)


def test_a_family_of_the_user_is_found_by_its_class() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video):
        pruned = stock.run(name, pipe, video)
    seen = []

    class Mine(type(find_family(pipe))):  # type: ignore[misc]
        transformers = ("MyTransformer",)

        def state(self, block: Any) -> torch.Tensor:
            seen.append(block.number)
            return super().state(block)

    class MyTransformer(type(pipe.transformer)):  # type: ignore[misc]
        pass

    pipe.transformer.__class__ = MyTransformer
    with hooks.apply(pipe, video=video):  # a kind of Wan
        assert torch.equal(stock.run(name, pipe, video), pruned)
    assert not seen
    hooks.register(Mine)
    try:
        with hooks.apply(pipe, video=video):
            assert torch.equal(stock.run(name, pipe, video), pruned)
    finally:
        base._FAMILIES.pop("MyTransformer")
    assert set(seen) == {0, 1, 2}


def test_projections_that_are_fused() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video):
        pruned = stock.run(name, pipe, video)
        for block in pipe.transformer.blocks:
            block.attn1.fuse_projections()
        torch.testing.assert_close(stock.run(name, pipe, video), pruned)


def test_reference_images_are_frames_in_front() -> None:
    name, video = "wan-vace", stock.clip()
    pipe = stock.MAKERS[name]()
    picture = stock.picture(video[0])
    plain = stock.run(name, pipe, video, reference_images=[picture])
    with hooks.apply(pipe, video=video, method="full"):
        assert torch.equal(stock.run(name, pipe, video, reference_images=[picture]), plain)
    with hooks.apply(pipe, video=video, standin="source"):
        pruned = stock.run(name, pipe, video, reference_images=[picture])
    assert pruned.shape == plain.shape
    assert not torch.equal(pruned, plain)


class Mine(nn.Module):
    """A denoiser of nobody's."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 9}, "5 x 4 x 6 latent frames.* 3 x 4 x 6"),
        ({"size": (64, 64)}, "5 x 4 x 6 latent frames.* 5 x 4 x 4"),
    ],
)
def test_a_call_for_another_video_is_refused(change: dict[str, Any], message: str) -> None:
    pipe = stock.MAKERS["wan-t2v"]()
    video = stock.clip()
    plain = stock.run("wan-t2v", pipe, video)
    height, width = change.get("size", video.shape[2:])
    called = video[: change.get("frames"), :, :height, :width]
    with hooks.apply(pipe, video=video), pytest.raises(InputError, match=message):
        stock.run("wan-t2v", pipe, called)
    assert torch.equal(stock.run("wan-t2v", pipe, video), plain)


def test_what_cannot_be_applied_is_refused_in_a_sentence() -> None:
    pipe = stock.MAKERS["wan-t2v"]()
    before, video = hanging(pipe), stock.clip()
    with pytest.raises(InputError, match=r"WanTransformer3DModel.* this one has a Mine"):
        hooks.apply(type("Pipe", (), {"transformer": Mine()})())
    with pytest.raises(InputError, match="CausalWanPipeline is not a pipeline of diffusers"):
        hooks.apply(tiny.pipeline())
    with pytest.raises(InputError, match="this one has no transformer"):
        hooks.apply(object())
    with pytest.raises(InputError, match=r"the mask has 3 x 4 x 6 .* the video 5 x 4 x 6"):
        hooks.apply(pipe, video=video, mask=torch.ones(3, 4, 6))
    with pytest.raises(InputError, match="has 2 axes"):
        hooks.apply(pipe, video=video, mask=torch.ones(4, 6))
    mask = torch.ones(4, 4, 6)
    mask[:, 1, 2] = 0
    with pytest.raises(InputError, match="at 1 of 24 places, the first of them row 1, column 2"):
        hooks.apply(pipe, mask=mask)
    with pytest.raises(InputError, match="is 88x56, and this pipeline needs multiples of 16"):
        hooks.apply(pipe, video=video[:, :, :56, :88])
    with pytest.raises(InputError, match="cannot be read"):
        hooks.apply(pipe, video=7)
    with pytest.raises(InputError, match="'source' needs a video"):
        hooks.apply(pipe, mask=torch.ones(4, 4, 6), standin="source")
    with pytest.raises(ValueError, match="'tome'"):
        hooks.apply(pipe, video=video, method="tome")
    with pytest.raises(ValueError, match="known: copy, neighbour, none, refresh, source"):
        hooks.apply(pipe, video=video, standin="mine")
    compiled = torch.compile(stock.wan_transformer(), backend="eager")
    with pytest.raises(InputError, match="compiled as a whole"):
        hooks.apply(type("Pipe", (), {"transformer": compiled})())
    assert hanging(pipe) == before


def test_the_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[1] / "examples" / "hooks_wan.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--steps", "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "edited.gif").stat().st_size > 0


def test_the_benchmark_runs_anywhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import hooks as benchmark

    small = ["--device", "cpu", "--layers", "1", "--width", "64", "--height", "32"]
    given = ["x", *small, "--frames", "9", "--steps", "1", "--models", "vace", "--shares", "0.5"]
    monkeypatch.setattr(sys, "argv", given)
    benchmark.main()
    *_, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert [row["kept"] for row in rows] == [0.5, 1.0]
