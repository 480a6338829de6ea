"""A model from its parts: where each lies on disk, what it will take, and putting them together.

A *source* is a model by any of its names: a recipe (published weights over a base in diffusers'
format) or a folder in diffusers' format, local or in the hub's cache. The text encoder is never
loaded with the rest: prompts go through a `PromptEncoder`, which has it while it needs it.

This file downloads nothing, and does not know devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import nn

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.finite import check_model
from stillframe.backbones.model_folder import check_numbers, check_part
from stillframe.backbones.wan import read_transformer
from stillframe.engine.inputs import check_channels
from stillframe.engine.stream import StreamSettings
from stillframe.errors import ModelError
from stillframe.loading import hub
from stillframe.loading.bases import known_base
from stillframe.loading.checkpoint import load_transformer
from stillframe.loading.identity import folder_identity
from stillframe.loading.memory import MemoryPlan, plan_memory
from stillframe.loading.prompts import PromptEncoder
from stillframe.loading.recipes import TIMESTEPS, Recipe
from stillframe.loading.taehv import TAEW_CONFIG, TAEW_CONFIGS, load_taehv
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.pipelines.generation import generated_size
from stillframe.tokens.schedule import edit_sigmas, scheduler_shift
from stillframe.untrusted.small_files import parse_json, read_bounded
from stillframe.video.fit import USUAL_SIZE, fit_to_grid

__all__ = [
    "Source",
    "Task",
    "autoencoder_config",
    "bare_pipeline",
    "build",
    "open_text",
    "pipeline_numbers",
    "plan",
    "stream_settings",
    "working_size",
]

# of a configuration
_MOST_BYTES = 2**22
_PARTS = ("transformer", "text_encoder", "vae")


@dataclass(frozen=True)
class Source:
    """Where a model's parts come from.

    Attributes:
        name: what the user calls it.
        base: folder or hub id in diffusers' format; with a recipe, its transformer is not used.
        recipe: None where ``base`` is the whole model.
        vae: "tiny" (``taew2_1`` or, for 48 channels, ``taew2_2``), "full" (the base's), or a weight
            file of the tiny autoencoder.
    """

    name: str
    base: str
    recipe: Recipe | None = None
    vae: str = "full"

    @property
    def wanted(self) -> tuple[hub.Wanted, ...]:
        """Files that must be on disk."""
        tiny = hub.tiny_vae(self.base)
        if self.recipe is not None:
            files = hub.wanted_by(self.recipe, "full" if self.vae == "full" else "tiny")
        else:
            files = (*hub.wanted_folder(self.base), tiny)
        return files if self.vae == "tiny" else tuple(entry for entry in files if entry != tiny)

    @property
    def configurations(self) -> tuple[hub.Wanted, ...]:
        """The files among them that a plan has to read; kilobytes, and none for a known base."""
        parts = ("transformer", "text_encoder") if self.vae != "full" else _PARTS
        known = known_base(self.base)
        names = tuple(f"{part}/config.json" for part in parts if part not in known)
        if self.recipe is None:
            names = ("model_index.json", *names)
        return (hub.Wanted(self.base, names),) if names else ()

    def folder(self) -> Path:
        """The base on disk.

        Raises:
            ModelError: it is not there.
        """
        return hub.require(self.base, "model_index.json", self.name).parent

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of one of the base's parts: on disk, or as the table of bases has it.

        Raises:
            ModelError: it is not there, is not JSON, or has numbers that no model can have.
        """
        file, known = f"{part}/config.json", known_base(self.base)
        if part in known and hub.find(self.base, file) is None:
            return known[part]
        config = self.read(file)
        check_numbers(config, f"{self.base}/{part}/config.json")
        return config

    def index(self) -> dict[str, Any]:
        """The base's ``model_index.json``.

        Raises:
            ModelError: see `config`.
        """
        return self.read("model_index.json")

    def read(self, file: str) -> dict[str, Any]:
        """The content of one of the base's JSON files.

        Raises:
            ModelError: see `config`.
        """
        path = hub.require(self.base, file, self.name)
        try:
            found = parse_json(read_bounded(path, _MOST_BYTES))
        except OSError as error:
            raise ModelError(f"{self.name} has a broken {file}: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{self.name} has a broken {file}: {error}") from error
        if not isinstance(found, dict):
            raise ModelError(f"{self.name} has a broken {file}: it holds no fields")
        return found


@dataclass(frozen=True)
class Task:
    """What a model is loaded for, as far as memory depends on it.

    Attributes:
        height, width: of the video in pixels.
        recovery: name of the recovery.
        compare: two streams run beside, unpruned, of two seeds.
        generate: text-to-video, with its own window.
        prompts: that are known beforehand.
        store: what the recovery stores in, see `StreamSettings`.
        motion: whether patches that moved are followed.
        cache: how committed frames are kept, see `StreamSettings`.
        weights: "fp8" where the transformer's matrices are stored so.
        window: at most so many frames are seen; None: the model's own number.
        offloaded: layers of the transformer that stay on the CPU.
    """

    height: int = 480
    width: int = 832
    recovery: str = "aligned"
    compare: bool = False
    generate: bool = False
    prompts: tuple[str, ...] = ()
    store: str = "auto"
    motion: bool = True
    cache: str = "auto"
    weights: str = "exact"
    window: int | None = None
    offloaded: int = 0


def autoencoder_config(source: Source) -> tuple[Mapping[str, Any], str]:
    """The configuration of a source's autoencoder, and its kind, "tiny" or "full"."""
    if source.vae != "full":
        config = source.config("transformer")
        channels = config.get("out_channels") or config.get("in_channels")
        # a file is for the transformer that it is named with, or refused when it is read
        other = (
            TAEW_CONFIG if source.vae == "tiny" else {**TAEW_CONFIG, "latent_channels": channels}
        )
        return TAEW_CONFIGS.get(channels, other), "tiny"
    config = source.config("vae")
    kind = "tiny" if config.get("_class_name") == "TinyVideoAutoencoder" else "full"
    return config, kind


def pipeline_numbers(source: Source) -> dict[str, Any]:
    """The pipeline's configuration: a recipe's, or what the folder says beyond its parts."""
    recipe = source.recipe
    if recipe is None:
        index, known = source.index(), signature(CausalWanPipeline.__init__).parameters
        parts = {name for name, value in index.items() if isinstance(value, list | tuple)}
        lists = ("edit_sigmas", "generate_sigmas", "first_sigmas")
        return {k: v for k, v in index.items() if k in known and (k in lists or k not in parts)}
    seen = max(recipe.edit_sink + recipe.edit_window, recipe.sink + recipe.window)
    noise = recipe.edit_noise
    return {
        "block_frames": recipe.edited,
        "sink_frames": recipe.edit_sink,
        "window_frames": recipe.edit_window,
        "position_limit": max(seen, min(recipe.positions, _positions(source))),
        "edit_sigmas": recipe.edit_levels,
        "edit_noise": None if noise is None else noise / TIMESTEPS,
        "edit_normalised": recipe.edit_normalised,
        "generate_sigmas": recipe.generate_levels,
        "first_sigmas": recipe.first_levels,
        "nearest_sigmas": recipe.nearest,
        "generate_block_frames": recipe.block,
        "generate_window_frames": recipe.window,
        "generate_sink_frames": recipe.sink,
        "context_sink": recipe.context_sink,
        "sink_average": recipe.sink_average,
        "recompute_context": recipe.prompt_change == "recompute",
    }


def _positions(source: Source) -> int:
    """Temporal positions that the transformer has."""
    known: int = source.config("transformer").get("rope_max_seq_len", 1024)
    return known


def open_text(
    source: Source,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    keep: bool = False,
    cache: Path | None = None,
) -> PromptEncoder:
    """The source's text encoder, not loaded yet.

    Args:
        source: with all its files on disk.
        dtype: of the model; in float16's place text is encoded in bfloat16.
        device: where to encode.
        keep: hold on to the weights between prompts.
        cache: folder for embeddings; None keeps none.
    """
    return PromptEncoder(
        source.folder(),
        _given(source)["text_length"],
        torch.bfloat16 if dtype == torch.float16 else dtype,
        device,
        keep,
        cache=cache,
        identity=_text_identity(source),
    )


def _text_identity(source: Source) -> str:
    """Which text encoder it is: into a folder on this machine another one may come, of its name."""
    folder = Path(source.base).expanduser()
    if not os.path.isdir(folder):
        return source.base
    return f"{source.base} {folder_identity(folder, ('text_encoder', 'tokenizer'))}"


def build(source: Source, dtype: torch.dtype, text: PromptEncoder) -> CausalWanPipeline:
    """Load everything but the text encoder, on the CPU.

    Args:
        source: with all its files on disk.
        dtype: of transformer and autoencoder.
        text: what prompts will go through.

    Raises:
        ModelError: a part is missing, damaged, or not of the model it should be.
    """
    folder = source.folder()
    transformer, vae = _transformer(source, folder, dtype), _autoencoder(source, folder, dtype)
    pipe = bare_pipeline(source, transformer, vae)
    pipe.prompt_encoder = text
    return pipe


def bare_pipeline(source: Source, transformer: Any, vae: nn.Module) -> CausalWanPipeline:
    """A pipeline of parts, configured as the source says, without a text encoder.

    Raises:
        ModelError: its configuration is not on disk, or damaged, or the parts are of different
            models.
    """
    pipe = CausalWanPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=vae,
        scheduler=_scheduler(source),
        **pipeline_numbers(source),
    )
    made = open_autoencoder(pipe.vae, 1).latent_channels
    check_channels(made, pipe.denoiser.latent_channels)
    return pipe


def _transformer(source: Source, folder: Path, dtype: torch.dtype) -> Any:
    recipe = source.recipe
    if recipe is None:
        with _told(f"the transformer of {source.name}"):
            return read_transformer(folder / "transformer", dtype)
    hub.check_pins(recipe)
    repo = recipe.repo_place
    lora = None if recipe.lora is None else hub.require(repo, recipe.lora, source.name)
    weights = hub.require(repo, recipe.file, source.name)
    config = source.config("transformer")
    return load_transformer(config, weights, recipe.keys, dtype, lora, recipe.lora_scale)


def _scheduler(source: Source) -> FlowMatchEulerDiscreteScheduler:
    """Of whatever class the folder's is, the two numbers that matter."""
    if source.recipe is not None:
        return FlowMatchEulerDiscreteScheduler(shift=source.recipe.shift)
    config = source.read("scheduler/scheduler_config.json")
    return FlowMatchEulerDiscreteScheduler(
        shift=scheduler_shift(config), num_train_timesteps=config.get("num_train_timesteps", 1000)
    )


def _autoencoder(source: Source, folder: Path, dtype: torch.dtype) -> nn.Module:
    if source.vae == "tiny":
        tiny = hub.tiny_vae(source.base)
        path = hub.require(tiny.repo, tiny.files[0], f"{source.name} --vae tiny")
        return load_taehv(path, dtype)
    if source.vae != "full":
        return load_taehv(Path(source.vae).expanduser(), dtype)
    _, kind = autoencoder_config(source)
    family = TinyVideoAutoencoder if kind == "tiny" else AutoencoderKLWan
    with _told(f"the autoencoder of {source.name}"):
        check_part(folder / "vae")
        vae: nn.Module = family.from_pretrained(
            folder / "vae", torch_dtype=dtype, local_files_only=True
        )
        check_model(vae, f"the autoencoder of {source.name}")
    return vae


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What a damaged folder fails with, which is anything, as a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{what} cannot be loaded: {reason}") from error


def plan(
    source: Source, dtype: torch.dtype, task: Task, device: torch.device | str = "cuda"
) -> MemoryPlan:
    """What a task will take on a device, from the configurations alone.

    Raises:
        ModelError: a configuration is not on disk, or not one of this kind of model.
        ValueError: a size does not fit the grid.
    """
    with _well_typed(source.name):
        return _planned(source, dtype, task, device)


def _planned(
    source: Source, dtype: torch.dtype, task: Task, device: torch.device | str
) -> MemoryPlan:
    vae_config, kind = autoencoder_config(source)
    planned = plan_memory(
        source.config("transformer"),
        vae_config,
        kind,
        source.config("text_encoder"),
        height=task.height,
        width=task.width,
        dtype=dtype,
        settings=stream_settings(source, task),
        recovery="none" if task.generate else task.recovery,
        motion=task.motion and not task.generate,
        weights=task.weights,
        offloaded=task.offloaded,
        on_cpu=torch.device(device).type == "cpu",
    )
    if not task.compare:
        return planned
    # the other two have a cache, an autoencoder's memory and frames of their own
    names = ("cache", "stream", "frames", "kept")
    return replace(planned, **{name: 3 * getattr(planned, name) for name in names})


@contextmanager
def _well_typed(name: str) -> Iterator[None]:
    """What arithmetic fails with on a configuration of texts, lists and absurd numbers.

    A RuntimeError is torch's for sizes that do not fit together; nothing runs on a device here.
    """
    wrong = (TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RuntimeError)
    try:
        yield
    except wrong as error:
        raise ModelError(
            f"{name} has a configuration with values of the wrong kind or size"
        ) from error


def _given(source: Source) -> dict[str, Any]:
    """The pipeline's configuration, its defaults included."""
    usual = {k: p.default for k, p in signature(CausalWanPipeline.__init__).parameters.items()}
    return {**usual, **pipeline_numbers(source)}


def working_size(
    source: Source,
    frames: tuple[int, int] | None,
    height: int | None,
    width: int | None,
    *,
    generate: bool = False,
) -> tuple[int, int]:
    """Height and width that a model will work at, in pixels: whole tokens of it.

    Args:
        source: its configurations are known.
        frames: width and height of the video to edit; None for one of the usual size.
        height, width: of the result, as they were asked for.
        generate: for text-to-video, where there is no video to edit.

    Raises:
        ModelError: see `plan`.
        ValueError: a side would be too small.
    """
    with _well_typed(source.name):
        default: int = _given(source)["default_height"]
        multiple = _token_side(source)
        if generate:
            return generated_size(height, width, default, multiple)
        fit = fit_to_grid(
            *(frames or USUAL_SIZE),
            multiple=multiple,
            target_height=height,
            target_width=width,
            max_short_side=default,
        )
    return fit.padded_height, fit.padded_width


def _token_side(source: Source) -> int:
    """Pixels along the side of a token."""
    config, kind = autoencoder_config(source)
    patch: int = source.config("transformer").get("patch_size", (1, 2, 2))[1]
    if kind == "tiny":
        return patch * int(config.get("patch_size", 1) * 2 ** config.get("spatial_stages", 3))
    return patch * int(config.get("scale_factor_spatial", 8))


def stream_settings(source: Source, task: Task) -> StreamSettings:
    """How a task is done, as far as memory depends on it.

    Raises:
        ModelError: see `plan`.
    """
    given, kind = _given(source), "generate_" if task.generate else ""
    sink, window = given[f"{kind}sink_frames"], given[f"{kind}window_frames"]
    window = min(window, task.window or window)
    block = (given["generate_block_frames"] if task.generate else None) or given["block_frames"]
    return StreamSettings(
        sigmas=tuple(given["edit_sigmas"] or edit_sigmas(1.0, given["num_inference_steps"], 1.0)),
        block_frames=block,
        sink_frames=sink,
        window_frames=window,
        position_limit=max(given["position_limit"], sink + window),
        sink_average=given["sink_average"],
        store=given["store"] if task.store == "auto" else task.store,
        cache=given["cache"] if task.cache == "auto" else task.cache,
    )
