"""Text-to-video: an edit of anything, the stock model under a mask, any length, size and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.tiny import Masked, Saturating, causal_mask, set_self_attention, stock
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.engine.stream import BlockStats
from stillframe.pipelines.causal_wan import CausalWanPipeline, CausalWanPipelineOutput
from stillframe.pipelines.generation import GenerateStream
from stillframe.tokens.grid import Grid, patchify
from stillframe.tokens.schedule import generate_sigmas

HEIGHT, WIDTH = 32, 48
SIGMAS = generate_sigmas(4, 5.0)
# pixel frames by which the first block is short of a full one
KINDS = {"tiny": 0, "trimming": 3, "wan": 3}
Kind = pytest.mark.parametrize("kind", KINDS)


def open_pipeline(kind: str, *, source: bool = False, **config: Any) -> CausalWanPipeline:
    parts = tiny.parts(source=source, wan=kind == "wan")
    if kind == "trimming":
        parts["vae"] = tiny.autoencoder(trim=3)
    return CausalWanPipeline(**parts, text_length=12, **config)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(pipe: CausalWanPipeline, num_frames: int, **options: Any) -> Any:
    """A whole clip as a tensor."""
    usual = {"prompt": "night", "height": HEIGHT, "width": WIDTH, "generator": seeded()}
    return pipe.generate(num_frames=num_frames, output_type="pt", **{**usual, **options})


# an edit of anything, from sigma 1


@Kind
@pytest.mark.parametrize("source", [False, True])
def test_generating_is_editing_anything_from_sigma_1(kind: str, source: bool) -> None:
    pipe = open_pipeline(kind, source=source, generate_window_frames=6, generate_sink_frames=1)
    blocks: list[BlockStats] = []
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    made = pipe.generate_stream(
        "night", num_frames=50, generator=seeded(), on_block=blocks.append, **size
    )
    frames = torch.cat(list(made), 1)
    assert frames.shape == (1, 50, 3, HEIGHT, WIDTH)
    assert len(blocks) >= 5
    assert all(stats.kept_share == 1 for stats in blocks)
    for seed in (0, 1):
        stream = pipe.stream(
            "night", sigmas=SIGMAS, conditioning="sdedit", method="full", generator=seeded()
        )
        parts = [stream.push(tiny.clip(50, HEIGHT, WIDTH, seed=seed)), stream.flush()]
        assert torch.equal(frames, torch.cat([part for part in parts if part is not None], 1))
        assert stream.blocks == len(blocks)
    other = pipe.generate_stream("night", num_frames=50, generator=seeded(1), **size)
    assert not torch.equal(torch.cat(list(other), 1), frames)


# the stock model over the whole sequence, under a mask


@contextmanager
def passes_of(model: Any) -> Iterator[list[Tensor]]:
    """What the transformer predicts in every pass meanwhile, (B, T, p*p*C)."""
    seen: list[Tensor] = []

    def note(module: Any, inputs: Any, output: Tensor) -> None:
        seen.append(output.clone())

    hook = model.proj_out.register_forward_hook(note)
    yield seen
    hook.remove()


def rollout(
    pipe: CausalWanPipeline, text: Tensor, processor: Callable[[int], Any], blocks: int
) -> tuple[list[Tensor], Tensor]:
    """Every pass of every block by a forward over the whole sequence so far.

    Args:
        processor: the stock model's self-attention for so many blocks.

    Returns:
        what each pass predicts for its block, context passes included; clean latents.
    """
    model, size, generator = pipe.transformer, pipe.config.block_frames, seeded()
    shape = (text.shape[0], tiny.CHANNELS, size, HEIGHT // 8, WIDTH // 8)
    clean, passes = torch.empty(*shape[:2], 0, *shape[3:]), []

    def predict(x: Tensor, level: float) -> Tensor:
        sequence = torch.cat([clean, x], 2)
        sigma = torch.zeros(sequence.shape[2])
        sigma[-size:] = level
        shown = model.config.in_channels - tiny.CHANNELS
        nothing = sequence.new_zeros(shape[0], shown, *sequence.shape[2:])
        out = stock(model, torch.cat([sequence, nothing], 1), sigma, text)[:, :, -size:]
        passes.append(patchify(out, 2))
        return out

    before = model.blocks[0].attn1.processor
    for number in range(blocks):
        set_self_attention(model, processor(number + 1))
        # all noise of a block is drawn first, one pass after the other
        noise = [torch.randn(shape, generator=generator) for _ in SIGMAS]
        x0 = torch.zeros(shape)
        for eps, level in zip(noise, SIGMAS, strict=True):
            x = (1 - level) * x0 + level * eps
            x0 = x - level * predict(x, level)
        predict(x0, 0.0)
        clean = torch.cat([clean, x0], 2)
    set_self_attention(model, before)
    return passes, clean


def compare(
    pipe: CausalWanPipeline, processor: Callable[[int], Any], blocks: int, prompts: Sequence[str]
) -> None:
    """The pipeline's rollout against `rollout`, pass by pass."""
    text = pipe.encode_prompt(prompts)
    expected, clean = rollout(pipe, text, processor, blocks)
    with passes_of(pipe.transformer) as passes:
        made = generate(pipe, 12 * blocks, prompt=prompts)
    assert len(passes) == len(expected) == blocks * (len(SIGMAS) + 1)
    for got, wanted in zip(passes, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    with torch.no_grad():
        frames = pipe.vae.decode(clean)
    torch.testing.assert_close(made.frames, frames, rtol=0, atol=1e-5)


GRID = Grid(3, HEIGHT // 16, WIDTH // 16)


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize(("window", "sink"), [(6, 1), (21, 0), (6, 3)])
def test_a_rollout_is_the_stock_model_under_a_mask(window: int, sink: int, source: bool) -> None:
    pipe = open_pipeline(
        "tiny", source=source, generate_window_frames=window, generate_sink_frames=sink
    )

    def masked(blocks: int) -> Masked:
        return Masked(causal_mask(blocks, 3, GRID.frame_tokens, sink, window))

    compare(pipe, masked, 5, ["night", "oil painting"])


@pytest.mark.parametrize(("window", "sink", "limit"), [(21, 0, 21), (21, 3, 24), (6, 1, 21)])
def test_positions_hold_the_window_past_their_end(window: int, sink: int, limit: int) -> None:
    """9 blocks are 27 frames: positions have run out, at what sink and window together need."""
    pipe = open_pipeline("tiny", generate_window_frames=window, generate_sink_frames=sink)
    assert pipe.generation_settings().position_limit == limit

    def saturating(blocks: int) -> Saturating:
        return Saturating(pipe.transformer.rope, GRID, sink, window, limit)

    compare(pipe, saturating, 9, ["night"])


def test_the_windows_differ_so_that_the_comparisons_can_fail() -> None:
    clips = [
        generate(
            open_pipeline("tiny", generate_window_frames=window, generate_sink_frames=sink), 60
        ).frames
        for window, sink in ((6, 1), (21, 0), (6, 3))
    ]
    for i in range(3):
        assert (clips[i] - clips[i - 1]).abs().max() > 1e-3


# length, size, batch


@Kind
@pytest.mark.parametrize("frames", [1, 2, 9, 10, 12, 13, 25, 81])
def test_blocks_are_completed_and_cut_to_the_frames_asked_for(kind: str, frames: int) -> None:
    pipe = open_pipeline(kind)
    made = generate(pipe, frames, sigmas=[1.0])
    assert made.frames.shape == (1, frames, 3, HEIGHT, WIDTH)
    assert len(made.blocks) == -(-(frames + KINDS[kind]) // 12)
    longer = pipe.generate_stream(
        "night", height=HEIGHT, width=WIDTH, sigmas=[1.0], generator=seeded()
    )
    parts = [next(longer) for _ in range(len(made.blocks) + 1)]
    assert [part.shape[1] for part in parts] == [12 - KINDS[kind], *[12] * (len(parts) - 1)]
    # the video processor maps to [-1, 1] and back
    torch.testing.assert_close(torch.cat(parts, 1)[:, :frames], made.frames, rtol=0, atol=1e-6)


def test_a_stream_has_no_end_and_holds_no_more_for_it() -> None:
    stream = open_pipeline("tiny").generate_stream("night", height=16, width=16, sigmas=[1.0])
    assert isinstance(stream, GenerateStream)
    next(stream)
    held = stream.memory
    for frames, _ in zip(stream, range(12), strict=False):
        assert frames.isfinite().all()
    assert stream.frames_left is None
    assert stream.memory == held


def test_a_stream_with_an_end_stops_and_stays_stopped() -> None:
    stream = open_pipeline("wan").generate_stream(
        "night", num_frames=10, height=16, width=16, sigmas=[1.0]
    )
    assert [frames.shape[1] for frames in stream] == [9, 1]
    assert list(stream) == []


@Kind
def test_a_batch_of_two_prompts_is_two_runs(kind: str) -> None:
    pipe, prompts = open_pipeline(kind), ["night", "oil painting"]
    both = generate(pipe, 20, prompt=prompts, generator=[seeded(3), seeded(4)]).frames
    for row, prompt in enumerate(prompts):
        one = generate(pipe, 20, prompt=prompt, generator=seeded(3 + row)).frames
        torch.testing.assert_close(both[row : row + 1], one, rtol=0, atol=1e-5)
    embeds = pipe.encode_prompt(prompts)
    again = generate(
        pipe, 20, prompt=None, prompt_embeds=embeds, generator=[seeded(3), seeded(4)]
    ).frames
    assert torch.equal(again, both)


@pytest.mark.parametrize(
    ("default", "height", "width", "size"),
    [
        (480, None, None, (480, 832)),
        (720, None, None, (720, 1280)),
        (480, 64, None, (64, 96)),
        (32, None, 64, (32, 64)),
        (40, None, None, (32, 32)),
        (8, None, None, (16, 32)),
    ],
)
def test_the_size_is_on_the_grid_and_about_16_to_9(
    default: int, height: int | None, width: int | None, size: tuple[int, int]
) -> None:
    pipe = open_pipeline("tiny", default_height=default)
    stream = pipe.generate_stream("night", height=height, width=width)
    assert (stream.height, stream.width) == size
    if max(size) < 100:
        assert next(stream).shape[-2:] == size


def test_results_come_as_diffusers_gives_them() -> None:
    pipe = open_pipeline("wan")
    seen: list[BlockStats] = []
    made = generate(pipe, 10, callback_on_block_end=seen.append)
    assert isinstance(made, CausalWanPipelineOutput)
    assert made.blocks == seen
    assert {"denoise", "context", "decode"} <= set(seen[0].seconds)
    array: Any = pipe.generate("night", 10, HEIGHT, WIDTH, generator=seeded(), return_dict=False)[0]
    assert array.shape == (1, 10, HEIGHT, WIDTH, 3)
    assert torch.equal(torch.from_numpy(array).permute(0, 1, 4, 2, 3), made.frames)
    images: Any = pipe.generate("night", 2, HEIGHT, WIDTH, output_type="pil")
    assert [[image.size for image in row] for row in images.frames] == [[(WIDTH, HEIGHT)] * 2]


# configuration


def test_settings_come_from_the_configuration_unless_given() -> None:
    pipe = open_pipeline("tiny", position_limit=30, generate_sigmas=(1.0, 0.757, 0.522))
    settings = pipe.generation_settings()
    assert settings.sigmas == (1.0, 0.757, 0.522)
    assert (settings.window_frames, settings.sink_frames) == (21, 0)
    assert (settings.position_limit, settings.conditioning) == (30, "sdedit")
    assert pipe.generation_settings(2).sigmas == generate_sigmas(2, 5.0)
    assert pipe.generation_settings(sigmas=[1, 0.5]).sigmas == (1.0, 0.5)
    assert open_pipeline("tiny").generation_settings().sigmas == SIGMAS
    assert (pipe.settings().window_frames, pipe.settings().sink_frames) == (6, 1)


@pytest.mark.parametrize("source", [False, True], ids=["sdedit", "source"])
def test_an_explicit_schedule_of_edits_serves_usual_calls_that_name_none(source: bool) -> None:
    plain = open_pipeline("tiny", source=source)
    pipe = open_pipeline("tiny", source=source, edit_sigmas=[0.7, 0.5, 0.4])
    usual, other = ("source", "sdedit") if source else ("sdedit", None)
    assert pipe.settings().sigmas == (0.7, 0.5, 0.4)
    assert pipe.settings(conditioning=usual).sigmas == (0.7, 0.5, 0.4)
    for options in (
        {"strength": 0.3},
        {"num_inference_steps": 2},
        {"sigmas": [0.3]},
        {"conditioning": other, "strength": 0.3},
    ):
        given: dict[str, Any] = options
        assert pipe.settings(**given) == plain.settings(**given)
    if other is not None:
        assert pipe.settings(conditioning=other) == plain.settings(conditioning=other)


def test_what_generating_needs_is_saved_with_the_pipeline(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "edit_sigmas": [0.7, 0.4],
        "generate_sigmas": [1.0, 0.6],
        "generate_window_frames": 9,
        "generate_sink_frames": 2,
    }
    pipe = open_pipeline("tiny", **config)
    pipe.save_pretrained(tmp_path)
    loaded = CausalWanPipeline.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in config} == config
    assert torch.equal(generate(loaded, 20).frames, generate(pipe, 20).frames)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sigmas": [0.9, 0.5]}, "starts at sigma 1, got 0.9"),
        ({"sigmas": [1.0, 1.0]}, r"must fall strictly within \(0, 1\], got \[1.0, 1.0\]"),
        ({"num_inference_steps": 0}, "at least 1 denoising step is needed, got 0"),
        ({"num_inference_steps": 2, "sigmas": [1.0]}, r"either steps, 2, or sigmas, \[1.0\]"),
        ({"num_frames": 0}, "at least 1 frame must be made, got 0"),
        ({"height": 40}, "multiples of 16, got 40"),
        ({"width": -16}, "multiples of 16, got -16"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"output_type": "gif"}, "'np', 'pt' or 'pil', got 'gif'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_wrong_arguments_are_refused_with_their_numbers(wrong: dict[str, Any], said: str) -> None:
    options = {"prompt": "night", "height": HEIGHT, "width": WIDTH, "num_frames": 5, **wrong}
    with pytest.raises(ValueError, match=said):
        open_pipeline("tiny").generate(**options)


def test_a_window_larger_than_the_models_positions_is_refused() -> None:
    pipe = open_pipeline("tiny", generate_window_frames=60, generate_sink_frames=5)
    with pytest.raises(ValueError, match="64 positions cannot hold 5 sink and 60 window frames"):
        pipe.generate_stream("night")


def test_there_is_no_source_to_condition_on() -> None:
    pipe = open_pipeline("tiny", source=True)
    vae, text = open_autoencoder(pipe.vae, 3), pipe.text("night")
    settings = pipe.settings(sigmas=[1.0], conditioning="source")
    with pytest.raises(ValueError, match="no source to show, got 'source'"):
        GenerateStream(pipe.denoiser, vae, text, settings, HEIGHT, WIDTH)
