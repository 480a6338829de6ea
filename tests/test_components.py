"""A pipeline's parts: setting them takes effect or is refused, and pipelines share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tests import tiny
from tests.published import model_of
from torch import Tensor

from stillframe.errors import ModelError
from stillframe.loading.load import load_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.schedule import edit_sigmas

EMBEDS = torch.linspace(-1, 1, 5 * tiny.TEXT_DIM).view(1, 5, -1)


def edit(pipe: Any, **options: Any) -> Tensor:
    """Edited frames (1, T, 3, H, W) of a small clip."""
    options.setdefault("prompt", None if "prompt_embeds" in options else "oil painting")
    generator = torch.Generator().manual_seed(0)
    video = tiny.clip(26, 32, 48)
    frames: Tensor = pipe(video, generator=generator, output_type="pt", **options).frames
    return frames


def made_with(**parts: Any) -> CausalWanPipeline:
    """A pipeline that had these parts from the start."""
    return CausalWanPipeline(**{**tiny.parts(), **parts}, text_length=12)


def other_text_encoder() -> Any:
    model = tiny.text_encoder()
    for parameter in model.parameters():
        parameter.data.mul_(1.7)
    return model


def other_vae() -> Any:
    vae: Any = tiny.autoencoder()
    vae.decoder[-1].weight.data.mul_(0.5)
    return vae


OTHERS: dict[str, Any] = {
    "transformer": lambda: model_of(5),
    "vae": other_vae,
    "text_encoder": other_text_encoder,
    "scheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=1.0),
}


# setting


@pytest.mark.parametrize("part", OTHERS)
def test_a_part_that_is_set_is_the_one_that_works(part: str) -> None:
    other = OTHERS[part]()
    pipe = made_with()
    before = edit(pipe)
    setattr(pipe, part, other)
    assert getattr(pipe, part) is other
    expected = edit(made_with(**{part: OTHERS[part]()}))
    assert torch.equal(edit(pipe), expected)
    assert not torch.equal(before, expected)


def test_a_tokenizer_that_is_set_is_the_one_that_works() -> None:
    pipe = made_with()
    mine = tiny.tokenizer()
    mine.add_tokens(["magic"])
    before = pipe.encode_prompt("magic")
    pipe.tokenizer = mine
    assert not torch.equal(pipe.encode_prompt("magic"), before)


def test_what_follows_from_parts_follows() -> None:
    pipe = made_with()
    pipe.vae = tiny.wan_autoencoder()
    assert pipe.frame_multiple == made_with(vae=tiny.wan_autoencoder()).frame_multiple
    assert pipe.video_processor.config.vae_scale_factor == pipe.frame_multiple
    source = tiny.transformer(source=True)
    pipe.transformer = source
    assert pipe.denoiser.takes_source
    assert pipe.settings().conditioning == "source"


def test_an_open_stream_keeps_its_parts() -> None:
    pipe, video = made_with(), tiny.clip(24, 32, 48)

    def stream() -> Any:
        return pipe.stream("night", generator=torch.Generator().manual_seed(0))

    expected = stream().push(video)
    running: Any = stream()
    first = running.push(video[:, :12])
    pipe.transformer = model_of(5)
    assert torch.equal(torch.cat([first, running.push(video[:, 12:])], 1), expected)


def test_settings_that_are_set_take_effect() -> None:
    pipe = made_with()
    pipe.strength, pipe.num_inference_steps, pipe.window_frames = 0.8, 2, 9
    assert pipe.strength == pipe.config.strength == 0.8
    settings = pipe.settings()
    assert settings.sigmas == edit_sigmas(0.8, 2, 5.0)
    assert settings.window_frames == 9
    expected = made_with(strength=0.8, num_inference_steps=2, window_frames=9)
    assert torch.equal(edit(pipe), edit(expected))


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("transformer", None, ModelError, "is a WanTransformer3DModel, got NoneType"),
        ("transformer", torch.nn.Linear(2, 2), ModelError, "WanTransformer3DModel, got Linear"),
        ("vae", None, ModelError, "TinyVideoAutoencoder or AutoencoderKLWan, got NoneType"),
        ("scheduler", 3, ModelError, "a scheduler has a configuration, got int"),
        ("text_encoder", 3, ModelError, "text_encoder is called with prompts, got int"),
        ("prompt_encoder", "no", ModelError, "prompt_encoder is called with prompts, got str"),
        ("denoiser", None, AttributeError, "denoiser of a pipeline cannot be set"),
        ("video_processor", None, AttributeError, "video_processor of a pipeline cannot be set"),
        ("frame_multiple", 8, AttributeError, "frame_multiple of a pipeline cannot be set"),
        ("compute_device", "cpu", AttributeError, "compute_device of a pipeline cannot be set"),
        ("components", {}, AttributeError, "components of a pipeline cannot be set"),
        ("settings", {"strength": 1}, AttributeError, "settings is a method"),
    ],
)
def test_what_cannot_be_set_says_so_and_nothing_changes(
    name: str, value: Any, error: type[Exception], said: str
) -> None:
    pipe = made_with()
    before = edit(pipe)
    with pytest.raises(error, match=said):
        setattr(pipe, name, value)
    assert torch.equal(edit(pipe), before)


def test_a_transformer_compiled_as_a_whole_is_refused_and_blocks_are_not() -> None:
    """Its forward is never called; compiled blocks run, and give the same picture."""
    pipe = made_with()
    before = edit(pipe)
    with pytest.raises(ModelError, match=r"compile its blocks, .*compile_repeated_blocks\(\)"):
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    ran: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        ran.append(len(inputs))
        return graph.forward

    pipe.transformer.compile_repeated_blocks(backend=backend)
    assert torch.allclose(edit(pipe), before, atol=1e-5)
    assert ran


# sharing


def along(**config: Any) -> CausalWanPipeline:
    settings = {"strength": 0.9, "sink_frames": 2, "window_frames": 9, **config}
    return tiny.pipeline(source=True, **settings)


def test_a_pipeline_of_the_same_components_gives_the_same_picture() -> None:
    pipe = along()
    again = CausalWanPipeline(**pipe.components)
    assert again.settings() == pipe.settings()
    assert again.generation_settings() == pipe.generation_settings()
    assert torch.equal(edit(again), edit(pipe))
    assert again.transformer is pipe.transformer
    assert again.vae is pipe.vae


def test_of_two_pipelines_that_share_parts_each_hands_on_its_own_settings() -> None:
    one = along()
    two = CausalWanPipeline(**one.components, strength=0.4, sink_frames=1)
    assert two.config.strength == 0.4
    assert two.config.window_frames == one.config.window_frames == 9
    one.num_inference_steps = 5
    for pipe in (one, two):
        again = CausalWanPipeline(**pipe.components)
        kept = {k: v for k, v in pipe.config.items() if k in again._settings()}
        assert {k: again.config[k] for k in kept} == kept
    # parts by themselves say nothing
    fresh = CausalWanPipeline(**{**one.components, "scheduler": one.scheduler})
    assert fresh.config.strength == CausalWanPipeline(**tiny.parts()).config.strength


def test_a_prompt_encoder_goes_along() -> None:
    pipe = CausalWanPipeline(**{**tiny.parts(), "text_encoder": None, "tokenizer": None})
    pipe.prompt_encoder = lambda prompts: EMBEDS.expand(len(prompts), -1, -1)
    again = CausalWanPipeline(**pipe.components)
    assert torch.equal(edit(again), edit(pipe))


def test_from_pipe_keeps_parts_and_settings() -> None:
    pipe = along()
    again = CausalWanPipeline.from_pipe(pipe)
    assert again.settings() == pipe.settings()
    assert torch.equal(edit(again), edit(pipe))


def test_stock_pipelines_take_the_components() -> None:
    stock = WanPipeline(**tiny.pipeline(wan=True).components)
    assert isinstance(stock.transformer, WanTransformer3DModel)


# loading


def test_diffusers_finds_the_class_that_a_folder_names(tmp_path: Path) -> None:
    pipe = along()
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is CausalWanPipeline
    assert torch.equal(edit(loaded), edit(pipe))


def test_the_bundled_model_loads_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = CausalWanPipeline.from_pretrained("tiny")
    by_name = load_pipeline("tiny", device="cpu")
    assert pipe.settings() == by_name.settings()
    for part in ("transformer", "vae", "text_encoder"):
        weights, same = (getattr(p, part).state_dict() for p in (pipe, by_name))
        assert all(torch.equal(weights[name], x) for name, x in same.items())
        assert all(weights[name].dtype == x.dtype for name, x in same.items())
    # the same numbers at other addresses, which matrix products may round otherwise
    frames = edit(by_name, prompt="sepia")
    torch.testing.assert_close(edit(pipe, prompt="sepia"), frames, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "unknown model 'nothing': .*none of tiny"),
        ("self-forcing", "load_pipeline knows published ones by name"),
        ("a/b/c", "unknown model 'a/b/c'"),
        (".", "the folder has no model_index.json"),
    ],
)
def test_what_is_no_model_is_refused_without_asking_a_hub(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said):
        CausalWanPipeline.from_pretrained(name)
