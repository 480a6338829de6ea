"""Published models through the public path: by name, with every option, and as folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.published import base_folder, publish, taehv_file
from tests.video_samples import decode, make_video
from torch import Tensor
from typer.testing import CliRunner

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.cli.app import app
from stillframe.errors import ModelError
from stillframe.loading import device_memory
from stillframe.loading import load as load_module
from stillframe.loading.adapt import attention_backends
from stillframe.loading.assemble import Task, plan
from stillframe.loading.load import load_pipeline
from stillframe.loading.prompts import PromptEncoder
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.pipelines.causal_wan import CausalWanPipeline

NAME = "self-forcing"
PROMPT = "oil painting"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def published(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny Self Forcing by its name; gives the transformer that its weights are of."""
    monkeypatch.setenv("STILLFRAME_CACHE", str(tmp_path / "cache"))
    model, table = publish(tmp_path, load_recipes()[NAME], base)
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    return model


def load(name: str = NAME, **options: Any) -> CausalWanPipeline:
    return load_pipeline(name, device="cpu", **{"vae": "full", "task": Task(64, 96), **options})


def edit(pipe: CausalWanPipeline, frames: int = 9) -> Tensor:
    """Edited frames of a small clip."""
    video = tiny.clip(frames)[0]
    generator = torch.Generator().manual_seed(3)
    done = pipe(video, PROMPT, generator=generator, output_type="pt", return_dict=False)
    assert isinstance(done, tuple)
    return done[0]


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Any, *parts: str) -> None:
    """Exit code 2 and one sentence that has ``parts``."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


# the pipeline


def test_a_recipe_edits_as_the_same_parts_put_together_by_hand(published: Any, base: Path) -> None:
    whole = CausalWanPipeline.from_pretrained(base, transformer=published)
    whole.set_progress_bar_config(disable=True)
    by_hand = edit(whole)
    torch.testing.assert_close(edit(load()), by_hand, rtol=0, atol=1e-6)


def test_a_folder_and_its_recipe_free_copy_edit_alike(
    published: Any, base: Path, tmp_path: Path
) -> None:
    result = run("models", "convert", NAME, tmp_path / "out", "--vae", "full", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    expected = edit(load())
    for again in (
        load(str(tmp_path / "out"), vae=None),
        CausalWanPipeline.from_pretrained(tmp_path / "out"),
    ):
        assert again.settings() == load().settings()
        assert again.generation_settings() == load().generation_settings()
        torch.testing.assert_close(edit(again), expected, rtol=0, atol=1e-6)


def test_a_weight_file_converts_with_the_recipe_it_is_of(published: Any, tmp_path: Path) -> None:
    moved = tmp_path / "mine.pt"
    shutil.copy(tmp_path / "weights" / load_recipes()[NAME].file, moved)
    refused(run("models", "convert", moved, tmp_path / "out"), "--recipe", "is a file")
    refused(run("models", "convert", moved, tmp_path / "out", "--recipe", "nothing"), "nothing")
    result = run(
        "models", "convert", moved, tmp_path / "out", "--recipe", NAME, "--vae", "full",
        "--dtype", "float32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(
        edit(load(str(tmp_path / "out"), vae=None)), edit(load()), rtol=0, atol=1e-6
    )
    refused(run("models", "convert", NAME, tmp_path / "out", "--vae", "full"), "there already")


def test_a_file_that_is_not_the_pinned_one_is_refused(published: Any, tmp_path: Path) -> None:
    weights, table = tmp_path / "weights" / load_recipes()[NAME].file, tmp_path / "recipes.toml"
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = table.read_text()
    table.write_text(f'{text}sha256 = "{right}"\n')
    edit(load())
    assert run("models", "fetch", NAME, "--vae", "full").exit_code == 0
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    table.write_text(f'{text}sha256 = "{wrong}"\n')
    refused(run("models", "fetch", NAME, "--vae", "full"), right, wrong, NAME)
    with pytest.raises(ModelError, match=rf"its SHA-256 is {right}, and {wrong} was expected$"):
        load()
    # the user's own file is not the recipe's
    moved = tmp_path / "mine.pt"
    shutil.copy(weights, moved)
    words = ("models", "convert", moved, tmp_path / "out", "--recipe", NAME, "--vae", "full")
    assert run(*words).exit_code == 0


def test_a_conversion_that_fails_leaves_nothing(
    published: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lame = tmp_path / "lame"
    shutil.copytree(base, lame)
    shutil.rmtree(lame / "tokenizer")
    table = tmp_path / "recipes.toml"
    table.write_text(table.read_text().replace(str(base), str(lame)))
    before = set(tmp_path.iterdir())
    refused(run("models", "convert", NAME, tmp_path / "out", "--vae", "full"), "tokenizer")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_tiny_autoencoder_takes_the_place_of_the_full_one(
    published: Any, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"taew2_1{suffix}"
    vae = taehv_file(path)
    pipe = load(vae=str(path))
    assert isinstance(pipe.vae, TinyVideoAutoencoder)
    assert pipe.vae.config.frames_to_trim == 3
    x = torch.rand(1, 8, 3, 32, 32)
    torch.testing.assert_close(pipe.vae.encode(x), vae.encode(x))
    assert edit(pipe).shape[1] == 9


def test_other_files_and_names_are_no_autoencoder(published: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown autoencoder 'tinny'"):
        load(vae="tinny")
    wrong = tmp_path / "weights" / load_recipes()[NAME].file
    with pytest.raises(ModelError, match=r"self_forcing_dmd\.pt"):
        load(vae=str(wrong))


def test_the_text_encoder_is_not_held(published: Any, base: Path, tmp_path: Path) -> None:
    pipe = load()
    assert pipe.text_encoder is None
    whole = CausalWanPipeline.from_pretrained(base)
    torch.testing.assert_close(pipe.encode_prompt(PROMPT), whole.encode_prompt(PROMPT))
    assert not pipe.prompt_encoder.loaded  # type: ignore[union-attr]
    # a later process finds the prompt on disk, and needs no text encoder for it
    again = load()
    again.prompt_encoder.folder = tmp_path / "nowhere"  # type: ignore[union-attr]
    torch.testing.assert_close(again.encode_prompt(PROMPT), whole.encode_prompt(PROMPT))
    with pytest.raises(ModelError):
        again.encode_prompt("another prompt")


@pytest.mark.usefixtures("published")
def test_a_text_encoder_that_was_exchanged_encodes_anew(base: Path, tmp_path: Path) -> None:
    """As the bundled model's is by an update of the package: same folder, names and sizes."""
    own, table = tmp_path / "own", Path(os.environ[RECIPES_VARIABLE])
    shutil.copytree(base, own)
    table.write_text(table.read_text().replace(str(base), str(own)))
    before = load().encode_prompt(PROMPT)
    (path,) = (own / "text_encoder").glob("*.safetensors")
    facts, mirrored = path.stat(), {k: x.flip(0) for k, x in load_file(path).items()}
    save_file(mirrored, path, metadata={"format": "pt"})
    # archives and images of disks may give all files the same time
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    exchanged = load().prompt_encoder
    assert isinstance(exchanged, PromptEncoder)
    fresh = PromptEncoder(own, exchanged.text_length, exchanged.dtype, cache=None, identity="")
    assert torch.equal(exchanged(PROMPT), fresh(PROMPT))
    assert not torch.equal(exchanged(PROMPT), before[0])


# low-rank updates, attention, memory


def lora_file(path: Path, model: Any) -> dict[str, Tensor]:
    """A rank-2 update of all query projections, in the original code's names; what it adds."""
    lora, added = {}, {}
    for number, block in enumerate(model.blocks):
        out, width = block.attn1.to_q.weight.shape
        down, up = torch.randn(2, width), torch.randn(out, 2)
        layer = f"diffusion_model.blocks.{number}.self_attn.q"
        lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"] = down, up
        added[f"blocks.{number}.attn1.to_q.weight"] = up @ down
    save_file(lora, path)
    return added


@pytest.mark.parametrize("scale", [None, 0.25])
def test_a_lora_is_merged_at_its_scale(published: Any, tmp_path: Path, scale: float | None) -> None:
    added = lora_file(tmp_path / "style.safetensors", published)
    before = {name: value.clone() for name, value in load().transformer.state_dict().items()}
    spec = str(tmp_path / "style.safetensors") + ("" if scale is None else f":{scale}")
    after = load(loras=(spec,)).transformer.state_dict()
    assert set(after) == set(before)
    for name, value in before.items():
        expected = value + (scale or 1.0) * added.get(name, torch.zeros(()))
        torch.testing.assert_close(after[name], expected)


def test_two_loras_add_up(published: Any, tmp_path: Path) -> None:
    added = [lora_file(tmp_path / f"{i}.safetensors", published) for i in (0, 1)]
    before = load().transformer.state_dict()
    specs = (f"{tmp_path / '0.safetensors'}:0.5", str(tmp_path / "1.safetensors"))
    after = load(loras=specs).transformer.state_dict()
    for name, first in added[0].items():
        expected = before[name] + 0.5 * first + added[1][name]
        torch.testing.assert_close(after[name], expected)


def test_loras_that_do_not_fit_are_refused(published: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="is not there"):
        load(loras=(str(path),))
    lora_file(path, published)
    with pytest.raises(ValueError, match="FILE:SCALE"):
        load(loras=(f"{path}:much",))
    wide = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.randn(2, 7),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.randn(9, 2),
    }
    save_file(wide, path)
    with pytest.raises(ModelError, match="does not fit"):
        load(loras=(str(path),))


def test_the_attention_kernel_is_diffusers_choice_and_one_models_alone(published: Any) -> None:
    everybody = _AttentionBackendRegistry.get_active_backend()
    pipe = load(attention="_native_math")
    backends = {block.attn1.processor._attention_backend for block in pipe.transformer.blocks}
    assert {getattr(b, "value", b) for b in backends} == {"_native_math"}
    torch.testing.assert_close(edit(pipe), edit(load()), rtol=0, atol=1e-4)
    assert _AttentionBackendRegistry.get_active_backend() == everybody
    with pytest.raises(ValueError, match="unknown attention 'quick'"):
        load(attention="quick")
    missing = "flash"
    assert missing in attention_backends()
    with pytest.raises(ValueError, match="cannot be used here"):
        load(attention=missing)


def test_offloading_needs_a_gpu(published: Any) -> None:
    with pytest.raises(ValueError, match="the device is cpu"):
        load(offload=True)


def test_a_job_that_does_not_fit_is_refused_before_weights_are_read(
    published: Any, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights" / load_recipes()[NAME].file).write_bytes(b"not weights at all")
    vast = tmp_path / "vast"
    shutil.copytree(base, vast)
    config = json.loads((vast / "transformer" / "config.json").read_text())
    config["rope_max_seq_len"] = 3000
    (vast / "transformer" / "config.json").write_text(json.dumps(config))
    table = tmp_path / "recipes.toml"
    table.write_text(table.read_text().replace(str(base), str(vast)))
    with pytest.raises(ModelError, match=r"needs [\d.]+ GiB and cpu has [\d.]+ GiB free"):
        load(task=Task(40_000, 40_000))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_names_the_weights_as_they_load(
    published: Any, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needs, free = load_module.plan_pipeline(NAME, 64, 96, vae="full", dtype=dtype, device="cpu")
    pipe = load(dtype=dtype)
    assert needs.transformer == sum(
        x.nbytes for x in (*pipe.transformer.parameters(), *pipe.transformer.buffers())
    )
    assert free is None or free > needs.peak
    result = run("models", "plan", NAME, "--height", 64, "--width", 96, "--vae", "full")
    assert result.exit_code == 0, result.output
    assert "keys and values of the video" in result.output


# from the command line


def test_edit_and_generate_by_name(published: Any, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", list(_frames(tiny.clip(20)[0])))
    path = tmp_path / "taew2_1.safetensors"
    taehv_file(path)
    report = tmp_path / "r.json"
    result = run(
        "edit", source, "-o", tmp_path / "out.mp4", "--model", NAME, "--vae", path,
        "--prompt", PROMPT, "--report", report, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(report.read_text())
    assert told["model"] == NAME
    assert told["conditioning"] == "sdedit"
    assert told["sigmas"] == pytest.approx([0.76923, 0.72917, 0.625], abs=1e-5)
    assert len(decode(tmp_path / "out.mp4")) == 20
    result = run(
        "generate", "-o", tmp_path / "made.mp4", "--model", NAME, "--vae", path, "--prompt", PROMPT,
        "--frames", 10, "--height", 64, "--width", 96, "--report", report, "-y",
        "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text())["sigmas"] == pytest.approx(
        [1, 0.9375, 0.83333, 0.625], abs=1e-5
    )
    assert len(decode(tmp_path / "made.mp4")) == 10


def _frames(video: Tensor) -> Any:
    return (video.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _damage(tmp_path: Path, what: str) -> None:
    recipe = load_recipes()[NAME]
    weights = tmp_path / "weights" / recipe.file
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif what == "pickled code":
        torch.save({"generator_ema": dataclasses.replace(recipe)}, weights)
    elif what == "lacks":
        state = torch.load(weights, weights_only=True)
        del state["generator_ema"]["model.blocks.1.ffn.2.weight"]
        torch.save(state, weights)
    elif what == "has no generator_ema":
        torch.save({"critic": {}}, weights)
    elif what == "in shape":
        state = torch.load(weights, weights_only=True)
        state["generator_ema"]["model.head.head.weight"] = torch.zeros(3, 5)
        torch.save(state, weights)
    else:
        weights.unlink()


@pytest.mark.parametrize(
    "what",
    ["truncated", "pickled code", "lacks", "has no generator_ema", "in shape", "has no file"],
)
def test_damaged_weights_are_one_sentence(published: Any, tmp_path: Path, what: str) -> None:
    source = make_video(tmp_path / "in.mkv", list(_frames(tiny.clip(12)[0])))
    _damage(tmp_path, what)
    before = set(tmp_path.iterdir())
    result = run(
        "edit", source, "-o", tmp_path / "out.mp4", "--model", NAME, "--vae", "full",
        "--prompt", PROMPT, "--device", "cpu",
    )  # fmt: skip
    refused(result, what, "self_forcing_dmd")
    assert set(tmp_path.iterdir()) <= before | {tmp_path / "cache"}


# memory and where text is encoded

_GB = 10**9


@pytest.mark.parametrize(
    ("free", "known", "keep", "places"),
    [
        (40, False, False, ("cuda", "cuda")),
        (40, True, True, ("cuda", "cuda")),
        (12, True, False, ("cuda", "cpu")),
        (12, False, False, ("cpu", "cpu")),
        (12, True, True, ("cpu", "cpu")),
        (10, True, False, ("cpu", "cpu")),
        (8, True, False, None),
    ],
)
def test_text_is_encoded_on_the_gpu_where_that_fits(
    free: int, known: bool, keep: bool, places: tuple[str, str] | None, published: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """11 GB of text encoder and 9 GB of everything else, on GPUs of several sizes."""
    some, _ = load_module.plan_pipeline(NAME, 64, 96, vae="full", device="cpu")
    needs = dataclasses.replace(
        some.text_alone(), text_encoder=10 * _GB, text_activations=_GB, transformer=9 * _GB
    )
    assert (needs.encoding, needs.editing) == (11 * _GB, 9 * _GB)
    room = {"cuda": free * _GB, "cpu": 16 * _GB}
    monkeypatch.setattr(
        device_memory, "free_memory", lambda device: room[torch.device(device).type]
    )
    gpu = torch.device("cuda")
    if places is None:
        with pytest.raises(ModelError, match="cuda has"):
            load_module._text_devices(needs, gpu, known=known, keep=keep)
        return
    got = load_module._text_devices(needs, gpu, known=known, keep=keep)
    assert tuple(device.type for device in got) == places
    room["cpu"] = 10 * _GB
    if places[0] == "cpu":
        with pytest.raises(ModelError, match="cpu has"):
            load_module._text_devices(needs, gpu, known=known, keep=keep)


def test_a_plan_is_of_the_task_at_hand(published: Any) -> None:
    source = load_module.find_source(NAME, "full")
    usual, plain, beside, made = (
        plan(source, torch.float32, Task(64, 96, **more))
        for more in ({}, {"recovery": "clean"}, {"compare": True}, {"generate": True})
    )
    assert usual.recovery > plain.recovery == made.recovery == 0
    # window and sink of editing and generating, each with the block: (6 + 1) and (21 + 0) frames,
    # and keys before rotation of those that are committed
    assert made.cache > 2.5 * usual.cache
    # three edits in step: the pruned one, and unpruned ones of two seeds
    assert beside.cache == 3 * usual.cache
    assert beside.frames == 3 * usual.frames
    small = plan(source, torch.float32, Task(64, 96, store="fp8"))
    assert small.recovery < usual.recovery / 2


def test_prompts_that_are_known_are_encoded_before_the_rest_is_loaded(
    published: Any, base: Path, tmp_path: Path
) -> None:
    """The weights are missing, and still the prompt's embeddings are on disk."""
    (tmp_path / "weights" / load_recipes()[NAME].file).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="self_forcing_dmd"):
        load(task=Task(64, 96, prompts=("a new prompt",)))
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 1


# folders of other programs


def test_a_folder_that_names_its_authors_classes_loads(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As published folders of Self Forcing do; their weights are Wan's."""
    monkeypatch.setenv("STILLFRAME_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "foreign"
    shutil.copytree(base, folder)
    for file, key, value in (
        ("model_index.json", "transformer", ["diffusers", "CausalWanTransformer3DModel"]),
        ("model_index.json", "scheduler", ["diffusers", "SelfForcingFlowMatchScheduler"]),
        ("transformer/config.json", "_class_name", "CausalWanTransformer3DModel"),
        ("scheduler/scheduler_config.json", "_class_name", "SelfForcingFlowMatchScheduler"),
    ):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, key: value}))
    foreign, usual = load(str(folder), vae=None), load(str(base), vae=None)
    assert foreign.generation_settings() == usual.generation_settings()
    torch.testing.assert_close(edit(foreign), edit(usual))


def test_a_file_that_is_half_of_a_model_does_not_convert(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipes()["longlive"]
    model, table = publish(tmp_path, recipe, base)
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    weights = tmp_path / "weights" / recipe.file
    words = ("models", "convert", weights, tmp_path / "out", "--recipe", "longlive")
    options = ("--vae", "full", "--dtype", "float32")
    assert run(*words, *options).exit_code == 0
    done = load(str(tmp_path / "out"), vae=None).transformer.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(done[name], value)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "weights" / str(recipe.lora)).unlink()
    refused(run(*words, *options), "lora.pt")
    assert not (tmp_path / "out").exists()
