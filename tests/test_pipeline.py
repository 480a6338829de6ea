"""The pipeline as diffusers' users know it: folders, inputs, outputs, errors, no traces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers.loaders import WanLoraLoaderMixin
from tests import tiny
from torch import Tensor

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.engine.stream import BlockStats
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline, CausalWanPipelineOutput
from stillframe.tokens.schedule import edit_sigmas

FRAMES, HEIGHT, WIDTH = 14, 32, 48


@pytest.fixture
def pipe() -> CausalWanPipeline:
    return tiny.pipeline()


@contextmanager
def logged() -> Iterator[list[str]]:
    """Warnings that the libraries log meanwhile."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, names = Keep(logging.WARNING), ("diffusers", "transformers", "stillframe")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    yield messages
    for name in names:
        logging.getLogger(name).removeHandler(handler)


def eight_bit(batch: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(B, T, H, W, 3) uint8."""
    video = tiny.clip(FRAMES, HEIGHT, WIDTH, batch=batch)
    return (video.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).numpy()


def edit(pipe: Any, video: Any, **options: Any) -> Any:
    """Edited frames, (B, T, H, W, 3)."""
    options.setdefault("prompt", "oil painting")
    generator = torch.Generator().manual_seed(0)
    return pipe(video, generator=generator, **options).frames


# folders


@pytest.mark.parametrize("wan", [False, True])
def test_saving_and_loading_keeps_everything(tmp_path: Path, wan: bool) -> None:
    pipe = tiny.pipeline(wan=wan, source=True, strength=0.6, sink_frames=2, conditioning="sdedit")
    pipe.save_pretrained(tmp_path)
    with logged() as messages:
        loaded = CausalWanPipeline.from_pretrained(tmp_path)
    assert messages == []
    kept = {k: v for k, v in pipe.config.items() if not k.startswith("_") and k not in tiny.parts()}
    assert {k: loaded.config[k] for k in kept} == kept
    assert isinstance(loaded.vae, AutoencoderKLWan if wan else TinyVideoAutoencoder)
    video = eight_bit()
    assert np.array_equal(edit(loaded, video), edit(pipe, video))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ],
    ids=["euler", "unipc"],
)
def test_a_folder_saved_by_the_stock_pipeline_loads(tmp_path: Path, scheduler: Any) -> None:
    """Published Wan 2.1 folders have a UniPC scheduler, and keys for a second transformer."""
    parts = tiny.parts(wan=True) | {"scheduler": scheduler}
    WanPipeline(**parts).save_pretrained(tmp_path)
    index = (tmp_path / "model_index.json").read_text()
    assert "transformer_2" in index
    assert "boundary_ratio" in index
    with logged() as messages:
        pipe = CausalWanPipeline.from_pretrained(tmp_path)
    assert messages == []
    assert pipe.settings(strength=0.4).sigmas == edit_sigmas(0.4, 3, 3.0)
    frames = edit(pipe, eight_bit(), prompt=None, prompt_embeds=torch.randn(1, 5, tiny.TEXT_DIM))
    assert frames.shape == (1, FRAMES, HEIGHT, WIDTH, 3)


def test_parts_can_be_given_in_diffusers_ways(tmp_path: Path, pipe: CausalWanPipeline) -> None:
    pipe.save_pretrained(tmp_path)
    vae = TinyVideoAutoencoder.from_pretrained(tmp_path, subfolder="vae")
    other = CausalWanPipeline.from_pretrained(tmp_path, vae=vae)
    assert other.vae is vae
    assert set(other.components) == set(tiny.parts())
    half = CausalWanPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    frames = edit(half, eight_bit())
    assert np.isfinite(frames).all()


def test_lora_loading_is_diffusers_own(pipe: CausalWanPipeline) -> None:
    assert isinstance(pipe, WanLoraLoaderMixin)
    assert "transformer" in pipe._lora_loadable_modules


# inputs and outputs


def as_pil(video: Any) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(frame) for frame in video[0]]


INPUTS: dict[str, Callable[[Any], Any]] = {
    "images": as_pil,
    "images in a tuple": lambda v: tuple(as_pil(v)),
    "images in a list": lambda v: [as_pil(v)],
    "bytes": lambda v: v[0],
    "bytes, batch": lambda v: v,
    "list of byte arrays": lambda v: list(v),
    "list of byte frames": lambda v: list(v[0]),
    "floats": lambda v: v[0].astype(np.float32) / 255,
    "floats, batch": lambda v: v.astype(np.float32) / 255,
    "doubles": lambda v: v[0].astype(np.float64) / 255,
    "tensor": lambda v: torch.from_numpy(v[0]).permute(0, 3, 1, 2) / 255,
    "tensor, batch": lambda v: torch.from_numpy(v).permute(0, 1, 4, 2, 3) / 255,
    "list of tensors": lambda v: [torch.from_numpy(v[0]).permute(0, 3, 1, 2) / 255],
    "byte tensor": lambda v: torch.from_numpy(v[0]).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_video_gives_the_same_result(pipe: CausalWanPipeline, kind: str) -> None:
    video = eight_bit()
    expected = edit(pipe, torch.from_numpy(video).permute(0, 1, 4, 2, 3).float() / 255)
    got = edit(pipe, INPUTS[kind](video))
    assert got.shape == (1, FRAMES, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_output_types_hold_the_same_frames(pipe: CausalWanPipeline) -> None:
    video = eight_bit(2)
    array = edit(pipe, video)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    tensor = edit(pipe, video, output_type="pt")
    assert tensor.shape == (2, FRAMES, 3, HEIGHT, WIDTH)
    assert np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), array)
    images = edit(pipe, video, output_type="pil")
    assert [len(row) for row in images] == [FRAMES, FRAMES]
    pixels = np.stack([[np.asarray(image) for image in row] for row in images])
    assert np.abs(pixels / 255 - array).max() <= 0.5 / 255 + 1e-6


def test_a_tuple_on_request_and_blocks_reported_twice(pipe: CausalWanPipeline) -> None:
    seen: list[BlockStats] = []
    options: dict[str, Any] = {"prompt": "sepia", "callback_on_block_end": seen.append}
    out = pipe(eight_bit(), **options)
    assert isinstance(out, CausalWanPipelineOutput)
    assert out.blocks == seen
    assert [block.block for block in seen] == [0, 1]
    frames, blocks = pipe(eight_bit(), "sepia", return_dict=False)
    assert frames.shape == out.frames.shape
    assert len(blocks) == 2


def test_the_working_size_can_be_chosen_and_is_cut_to_the_grid(pipe: CausalWanPipeline) -> None:
    assert pipe.frame_multiple == 16
    video = eight_bit()
    assert edit(pipe, video, height=48, width=64).shape[2:4] == (48, 64)
    odd = np.pad(video, ((0, 0), (0, 0), (0, 9), (0, 15), (0, 0)))
    assert odd.shape[2:4] == (41, 63)
    assert edit(pipe, odd).shape[2:4] == (32, 48)
    assert edit(pipe, as_pil(odd)).shape[2:4] == (32, 48)


# prompts


def test_prompts_are_padded_with_zeros_to_the_text_length(pipe: CausalWanPipeline) -> None:
    embeds = pipe.encode_prompt(["oil painting", "a night of sepia painting"])
    assert embeds.shape == (2, 12, tiny.TEXT_DIM)
    lengths = [int((row != 0).any(-1).sum()) for row in embeds]
    assert lengths == [3, 6]
    one = pipe.encode_prompt("oil painting")
    torch.testing.assert_close(one, embeds[:1])
    assert pipe.encode_prompt("oil " * 40).shape == (1, 12, tiny.TEXT_DIM)


def test_one_prompt_for_all_or_one_each(pipe: CausalWanPipeline) -> None:
    video = eight_bit(2)
    shared = edit(pipe, video, prompt="night")
    assert np.array_equal(edit(pipe, video, prompt=["night"]), shared)
    assert np.array_equal(edit(pipe, video, prompt=["night", "night"]), shared)
    mixed = edit(pipe, video, prompt=["night", "sepia"])
    np.testing.assert_allclose(mixed[0], shared[0], rtol=0, atol=1e-5)
    assert np.abs(mixed[1] - shared[1]).max() > 1e-3
    embeds = pipe.encode_prompt(["night", "sepia"])
    assert np.array_equal(edit(pipe, video, prompt=None, prompt_embeds=embeds), mixed)


def test_a_stream_of_two_videos_takes_one_prompt(pipe: CausalWanPipeline) -> None:
    video = tiny.clip(12, HEIGHT, WIDTH, batch=2)
    generators = [torch.Generator().manual_seed(i) for i in (3, 4)]
    both = pipe.stream("night", generator=generators).push(video)
    assert both is not None
    for row in range(2):
        generator = torch.Generator().manual_seed(3 + row)
        one = pipe.stream("night", generator=generator).push(video[row : row + 1])
        torch.testing.assert_close(one, both[row : row + 1], rtol=0, atol=1e-5)


# calls and streams


def test_a_call_is_a_stream(pipe: CausalWanPipeline) -> None:
    video = tiny.clip(31, 64, 96)
    options: dict[str, Any] = {"strength": 0.7, "num_inference_steps": 2}
    called: Any = pipe(
        video, "night", generator=torch.Generator().manual_seed(9), output_type="pt", **options
    )
    blocks: list[BlockStats] = []
    stream = pipe.stream(
        "night", generator=torch.Generator().manual_seed(9), on_block=blocks.append, **options
    )
    # the video processor maps to [-1, 1] and back, in and out
    chunks = [((x * 2 - 1) + 1) / 2 for x in video.split(5, 1)]
    parts = [*map(stream.push, chunks), stream.flush()]
    frames = torch.cat([part for part in parts if part is not None], 1)
    torch.testing.assert_close(called.frames, frames, rtol=0, atol=1e-6)
    for ours, theirs in zip(blocks, called.blocks, strict=True):
        assert torch.equal(ours.keep, theirs.keep)


def test_settings_come_from_the_configuration_unless_given() -> None:
    pipe = tiny.pipeline(
        source=True, block_frames=2, sink_frames=2, window_frames=5, position_limit=30,
        strength=0.8, num_inference_steps=4,
    )  # fmt: skip
    settings = pipe.settings()
    assert (settings.block_frames, settings.sink_frames) == (2, 2)
    assert (settings.window_frames, settings.position_limit) == (5, 30)
    assert settings.conditioning == "source"
    assert settings.sigmas == edit_sigmas(0.8, 4, 5.0)
    assert pipe.settings(sigmas=[0.9, 0.3]).sigmas == (0.9, 0.3)
    assert pipe.settings(conditioning="sdedit").conditioning == "sdedit"
    assert tiny.pipeline().settings().conditioning == "sdedit"


def test_methods_by_name_and_by_value(pipe: CausalWanPipeline) -> None:
    video = tiny.clip(40)
    by_name = edit(pipe, video, method="prune")
    assert np.array_equal(edit(pipe, video, method=InterFramePruning()), by_name)
    assert not np.array_equal(edit(pipe, video, method="full"), by_name)


# errors


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sigmas": [0.4, 0.6]}, r"\[0.4, 0.6\]"),
        ({"sigmas": []}, r"got \[\]"),
        ({"strength": 0.0}, r"strength must be in \(0, 1\], got 0.0"),
        ({"strength": 1.5}, "got 1.5"),
        ({"num_inference_steps": 0}, "at least 1 denoising step is needed, got 0"),
        ({"conditioning": "both"}, "got 'both'"),
        ({"conditioning": "source"}, "no source channels"),
        ({"method": "magic"}, "unknown method 'magic'; known: full, idm"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 5, tiny.TEXT_DIM)}, "either prompt or prompt_embeds"),
        ({"prompt": ["a", "b", "c"]}, "3 prompts for 2 videos"),
        ({"height": 8}, "multiples of 16, got 8"),
        ({"width": 40, "height": 48}, "multiples of 16, got 40"),
        ({"width": 0}, "multiples of 16, got 0"),
        ({"output_type": "gif"}, "'np', 'pt' or 'pil', got 'gif'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_wrong_arguments_are_refused_with_their_numbers(
    pipe: CausalWanPipeline, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        edit(pipe, eight_bit(2), **wrong)


@pytest.mark.parametrize(
    "video",
    [
        [],
        np.zeros((0, 32, 48, 3), np.float32),
        np.zeros((1, 0, 32, 48, 3), np.float32),
        torch.zeros(0, 3, 32, 48),
        torch.zeros(2, 0, 3, 32, 48),
        [[]],
        (),
    ],
    ids=["list", "array", "batch", "tensor", "tensor batch", "list of lists", "tuple"],
)
def test_an_empty_video_is_refused(pipe: CausalWanPipeline, video: Any) -> None:
    with pytest.raises(ValueError, match="the video has 0 frames"):
        edit(pipe, video)


@pytest.mark.parametrize("video", [None, "clip.mp4", 3, [1, 2]])
def test_what_is_no_video_is_refused(pipe: CausalWanPipeline, video: Any) -> None:
    with pytest.raises(ValueError, match=r"images, arrays or tensors, got (NoneType|str|int)"):
        edit(pipe, video)


@pytest.mark.parametrize(("height", "width"), [(15, 48), (48, 15), (1, 1)])
def test_a_video_smaller_than_the_grid_is_refused(
    pipe: CausalWanPipeline, height: int, width: int
) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height} is smaller than one token of 16x16"):
        edit(pipe, torch.rand(3, 3, height, width))


# nothing is left behind


def state_of(pipe: CausalWanPipeline) -> tuple[list[Any], Tensor]:
    """Processors, and what the stock model computes."""
    model = pipe.transformer
    x = torch.linspace(-1, 1, 4 * 3 * 4 * 6).view(1, 4, 3, 4, 6)
    with torch.no_grad():
        out = model(x, torch.tensor([500.0]), torch.ones(1, 3, tiny.TEXT_DIM), return_dict=False)[0]
    return list(model.attn_processors.values()), out


def test_a_call_leaves_the_stock_model_as_it_was(pipe: CausalWanPipeline) -> None:
    processors, out = state_of(pipe)
    weights = {name: x.clone() for name, x in pipe.transformer.state_dict().items()}
    edit(pipe, eight_bit())
    after, same = state_of(pipe)
    assert all(a is b for a, b in zip(processors, after, strict=True))
    assert torch.equal(out, same)
    assert all(torch.equal(weights[k], x) for k, x in pipe.transformer.state_dict().items())


def test_so_does_an_exception_in_the_middle(pipe: CausalWanPipeline) -> None:
    processors, out = state_of(pipe)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = pipe.transformer.blocks[1].ffn.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        edit(pipe, eight_bit())
    hook.remove()
    after, same = state_of(pipe)
    assert all(a is b for a, b in zip(processors, after, strict=True))
    assert torch.equal(out, same)
    assert edit(pipe, eight_bit()).shape[1] == FRAMES


def test_the_stock_pipeline_runs_on_the_same_parts() -> None:
    ours = tiny.pipeline(wan=True)
    edit(ours, eight_bit())
    stock = WanPipeline(**ours.components)
    stock.set_progress_bar_config(disable=True)
    frames = stock(
        prompt="night", height=32, width=48, num_frames=5, num_inference_steps=2,
        guidance_scale=1.0, max_sequence_length=12,
    ).frames  # fmt: skip
    assert frames.shape == (1, 5, 32, 48, 3)
