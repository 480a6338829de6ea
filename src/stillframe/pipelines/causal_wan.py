"""The causal video-to-video pipeline: diffusers' conventions around the block loop.

``CausalWanPipeline.from_pretrained`` reads any folder of Wan 2.1 text-to-video or Wan 2.2 TI2V-5B,
in diffusers' format (and the bundled model); calling it edits a clip, `CausalWanPipeline.stream`
edits frames as they come. Both run the same `EditStream`. What it makes from a prompt alone is in
``generation``. It knows nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from stillframe.autoencoders.streaming import latent_statistics, open_autoencoder
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.base import TextCache
from stillframe.config import EditConfig
from stillframe.controls import Controls, SourceFacts
from stillframe.engine.inputs import Generators, check_embeds, check_generators
from stillframe.engine.stream import BlockStats, EditStream, StreamSettings
from stillframe.methods import as_method
from stillframe.pipelines.clips import (
    CausalWanPipelineOutput,
    check_output_type,
    pack_clip,
    read_clip,
)
from stillframe.pipelines.components import SettableParts, taking_along
from stillframe.pipelines.generation import TextToVideo
from stillframe.pipelines.levels import NoiseLevels
from stillframe.tokens.schedule import edit_sigmas, scheduler_shift
from stillframe.turns import device_turn, model_turn

__all__ = ["CausalWanPipeline", "CausalWanPipelineOutput"]

#: The papers' editing strength, u of the first pass.
SDEDIT_STRENGTH = 0.4

OnBlock = Callable[[BlockStats], None]


class CausalWanPipeline(SettableParts, WanLoraLoaderMixin, TextToVideo, NoiseLevels):
    """Edit video with a causal Wan transformer, recomputing only the latent patches that changed.

    Args:
        tokenizer, text_encoder: UMT5, or any with the same interface. Without them, prompts go
            through `prompt_encoder`, or are given as embeddings.
        transformer: ``WanTransformer3DModel``; with 2C input channels the source latents are
            concatenated to the noisy ones.
        vae: ``AutoencoderKLWan`` or `TinyVideoAutoencoder`.
        scheduler: only its ``shift`` (``flow_shift`` in some) and ``num_train_timesteps`` are used.
        block_frames: S, latent frames denoised together.
        sink_frames, window_frames: frames attention sees, `StreamSettings`.
        position_limit: temporal positions in use; 21 is what Self Forcing was trained on.
        strength, num_inference_steps, conditioning: defaults of a call. ``conditioning`` None means
            "source" where the transformer takes source latents, else "sdedit".
        text_length: tokens of a prompt; embeddings are padded to it with zeros, as Wan expects.
        default_height: working height where a caller gives no size.
        edit_sigmas: schedule of edits, conditioned as is usual, that say nothing about it; None
            leaves it to ``strength`` and ``num_inference_steps``.
        generate_sigmas: the same for text-to-video; None means four steps from 1, shifted.
        generate_window_frames, generate_sink_frames: frames attention sees in text-to-video.
        generates: whether the model was trained to make video from a prompt alone.
        generate_block_frames: S of text-to-video; None means ``block_frames``.
        first_sigmas: schedule of text-to-video's first block, where it has one of its own.
        nearest_sigmas: whether levels are what the model is told, and it is denoised at the nearest
            ones of the scheduler's grid, `nearest_sigma`.
        edit_noise: level that the source is brought to where the schedule is ``edit_sigmas``; None
            means its first one.
        edit_normalised: whether the model starts from source latents that are normalised.
        context_sink, context_noise, sink_average, recompute_context: see `StreamSettings`.
        store, cache, products: what "auto" means in `StreamSettings`.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012 - diffusers adds lists

    @taking_along
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast | None,
        text_encoder: UMT5EncoderModel | None,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan | TinyVideoAutoencoder,
        scheduler: FlowMatchEulerDiscreteScheduler,
        block_frames: int = 3,
        sink_frames: int = 1,
        window_frames: int = 6,
        position_limit: int = 21,
        strength: float = 0.4,
        num_inference_steps: int = 3,
        conditioning: str | None = None,
        text_length: int = 512,
        default_height: int = 480,
        edit_sigmas: Sequence[float] | None = None,
        generate_sigmas: Sequence[float] | None = None,
        generate_window_frames: int = 21,
        generate_sink_frames: int = 0,
        generates: bool = True,
        generate_block_frames: int | None = None,
        first_sigmas: Sequence[float] | None = None,
        nearest_sigmas: bool = False,
        edit_noise: float | None = None,
        edit_normalised: bool = True,
        context_sink: bool = True,
        context_noise: float = 0.0,
        sink_average: float | None = None,
        recompute_context: bool = False,
        store: str = "auto",
        cache: str = "exact",
        products: str = "exact",
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )
        self.register_to_config(
            block_frames=block_frames,
            sink_frames=sink_frames,
            window_frames=window_frames,
            position_limit=position_limit,
            strength=strength,
            num_inference_steps=num_inference_steps,
            conditioning=conditioning,
            text_length=text_length,
            default_height=default_height,
            edit_sigmas=None if edit_sigmas is None else list(edit_sigmas),
            generate_sigmas=None if generate_sigmas is None else list(generate_sigmas),
            generate_window_frames=generate_window_frames,
            generate_sink_frames=generate_sink_frames,
            generates=generates,
            generate_block_frames=generate_block_frames,
            first_sigmas=None if first_sigmas is None else list(first_sigmas),
            nearest_sigmas=nearest_sigmas,
            edit_noise=edit_noise,
            edit_normalised=edit_normalised,
            context_sink=context_sink,
            context_noise=context_noise,
            sink_average=sink_average,
            recompute_context=recompute_context,
            store=store,
            cache=cache,
            products=products,
        )
        #: Prompts to embeddings (B, text_length, text_dim), where there is no text encoder.
        self.prompt_encoder: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def compute_device(self) -> torch.device:
        """Where it computes; with weights offloaded that is not where they lie."""
        return torch.device(self._execution_device)

    @torch.inference_mode()
    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Embed prompts: (B, text_length, text_dim), zero past each prompt's end, as in Wan.

        Raises:
            ValueError: the pipeline has neither a text encoder nor a `prompt_encoder`, or there is
                no prompt, or one that is no text.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        if not prompts:
            raise ValueError("there are 0 prompts to encode")
        for one in prompts:
            if not isinstance(one, str):
                raise ValueError(f"a prompt is text, got {type(one).__name__}")
            if not _is_text(one):
                raise ValueError(f"the prompt {one!r} is not valid text")
        device = self.compute_device
        if self.text_encoder is None:
            if self.prompt_encoder is None:
                raise ValueError("this pipeline has no text encoder: give prompt_embeds")
            return self.prompt_encoder(prompts).to(device, self.transformer.dtype)
        if self.tokenizer is None:
            raise ValueError("this pipeline has a text encoder and no tokenizer")
        # tokenizers of two threads get in each other's way, too
        with model_turn(self.text_encoder, device):
            return self._encoded(prompts, device)

    def _encoded(self, prompts: list[str], device: torch.device) -> Tensor:
        tokens = self.tokenizer(
            [prompt_clean(p) for p in prompts],
            padding="max_length",
            max_length=self.config.text_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(device)
        embeds = self.text_encoder(tokens.input_ids.to(device), mask).last_hidden_state
        return (embeds * mask.unsqueeze(-1)).to(self.transformer.dtype)

    @torch.inference_mode()
    def text(
        self, prompt: str | Sequence[str] | None, prompt_embeds: Tensor | None = None
    ) -> TextCache:
        """Keys and values of a prompt, or of embeddings (B, L, text_dim), for every layer.

        Raises:
            ValueError: if neither or both are given.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt or prompt_embeds")
        if prompt is not None:
            prompt_embeds = self.encode_prompt(prompt)
        assert prompt_embeds is not None
        check_embeds(prompt_embeds, self.transformer.config.text_dim)
        with device_turn(self.compute_device):
            return self.denoiser.text(prompt_embeds.to(self.compute_device))

    def settings(
        self,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        conditioning: str | None = None,
        store: str = EditConfig.store,
        cache: str = EditConfig.cache,
        execution: str = EditConfig.execution,
        products: str = EditConfig.products,
    ) -> StreamSettings:
        """How to denoise: what is None comes from the pipeline's configuration.

        Raises:
            ValueError: for numbers out of range and unknown names, or "source" conditioning without
                source channels.
        """
        config = self.config
        usual = config.conditioning or ("source" if self.denoiser.takes_source else "sdedit")
        conditioning = conditioning or usual
        if strength is None and num_inference_steps is None and sigmas is None:
            sigmas = config.edit_sigmas if conditioning == usual else None
        own = sigmas is not None and sigmas is config.edit_sigmas
        if strength is None:
            # a model that sees its source may start from pure noise; SDEdit has nothing else to see
            strength = config.strength if conditioning == usual else SDEDIT_STRENGTH
        if sigmas is None:
            sigmas = edit_sigmas(
                strength,
                config.num_inference_steps if num_inference_steps is None else num_inference_steps,
                scheduler_shift(self.scheduler.config),
            )
        return StreamSettings(
            **self.levels(sigmas),
            source_noise=config.edit_noise if own else None,
            source_scale=None if config.edit_normalised else latent_statistics(self.vae),
            **self.traits,
            conditioning=conditioning,
            block_frames=config.block_frames,
            sink_frames=config.sink_frames,
            window_frames=config.window_frames,
            position_limit=config.position_limit,
            timestep_scale=self.scheduler.config.num_train_timesteps,
            store=config.store if store == "auto" else store,
            cache=config.cache if cache == "auto" else cache,
            execution=execution,
            products=config.products if products == "auto" else products,
        )

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        config: EditConfig | None = None,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        on_block: OnBlock | None = None,
        blocks_before: int = 0,
        **options: Any,
    ) -> EditStream:
        """Open a stream: push frames, get frames.

        Args:
            prompt: one prompt, or one for each batch row.
            config: how to edit.
            generator: source of noise; a list gives each batch row its own. Without one, noise
                comes from the configuration's seed, and without that from torch's own generator.
            prompt_embeds: instead of a prompt.
            on_block: called after every block.
            blocks_before: of the same video, that another stream edits; see `EditStream`.
            options: fields of `EditConfig`, such as ``method`` and ``control``, that take the place
                of those of ``config``.

        Raises:
            ValueError: for unknown names and numbers out of range.
        """
        config = EditConfig.of(config, options)
        return EditStream(
            self.denoiser,
            open_autoencoder(self.vae, self.config.block_frames),
            self.text(prompt, prompt_embeds),
            as_method(config.method),
            self.settings(**config.settings),
            config.generator if generator is None else generator,
            on_block,
            config.control,
            blocks_before,
        )

    @torch.inference_mode()
    def __call__(
        self,
        video: Any,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_block_end: OnBlock | None = None,
        config: EditConfig | None = None,
        **options: Any,
    ) -> CausalWanPipelineOutput | tuple[Any, list[BlockStats]]:
        """Edit a clip.

        Args:
            video: frames as diffusers' ``VideoProcessor`` takes them: list of PIL images, array
                (T, H, W, 3), tensor (T, 3, H, W), or a batch of any of these; numbers are in [0, 1]
                or uint8.
            prompt: what it should look like; one for all, or one for each video.
            height, width: working size in pixels; default the video's, cut down to the grid.
            num_inference_steps: denoising passes a block.
            strength: 0 to 1, how much of the source is replaced by noise at the first pass.
            generator: source of noise, or one for each video; see `stream`.
            prompt_embeds: (B, L, text_dim) instead of a prompt.
            output_type: "np", "pt" or "pil".
            return_dict: False returns the tuple (frames, blocks).
            callback_on_block_end: called with each block's `BlockStats`.
            config: how to edit. Boxes in pixels are of the working size.
            options: other fields of `EditConfig`, such as ``method``, ``sigmas`` and ``control``;
                what is given takes the place of the configuration's.

        Raises:
            ValueError: for an empty video, or arguments out of range.
        """
        check_output_type(output_type)
        schedule = {"num_inference_steps": num_inference_steps, "strength": strength}
        options |= {name: value for name, value in schedule.items() if value is not None}
        config = EditConfig.of(config, options)
        frames = read_clip(video, self.video_processor, self.frame_multiple, height, width)
        check_generators(generator, frames.shape[0])
        frames = frames.to(self._execution_device, torch.float32)
        blocks: list[BlockStats] = []

        def on_block(stats: BlockStats) -> None:
            blocks.append(stats)
            if callback_on_block_end is not None:
                callback_on_block_end(stats)

        text_embeds = self._expanded(prompt, prompt_embeds, frames.shape[0])
        control = None if config.control is None else self._fitted(config.control, frames)
        stream = self.stream(
            prompt_embeds=text_embeds,
            config=replace(config, control=control),
            generator=generator,
            on_block=on_block,
        )
        parts = [stream.push(frames), stream.flush()]
        edited = torch.cat([part for part in parts if part is not None], 1)
        return pack_clip(edited, blocks, self.video_processor, output_type, return_dict)

    def _fitted(self, control: Controls, frames: Tensor) -> Controls:
        """The control for a clip (B, T, 3, H, W)."""
        return control.fitted(
            SourceFacts(frames.shape[-1], frames.shape[-2], timeline=self.timeline)
        )

    def _expanded(
        self, prompt: str | Sequence[str] | None, embeds: Tensor | None, batch: int
    ) -> Tensor:
        """Prompt embeddings, one row for each video."""
        if (prompt is None) == (embeds is None):
            raise ValueError("give either prompt or prompt_embeds")
        if prompt is not None:
            embeds = self.encode_prompt(prompt)
        assert embeds is not None
        check_embeds(embeds, self.transformer.config.text_dim)
        if embeds.shape[0] not in (1, batch):
            raise ValueError(f"{embeds.shape[0]} prompts for {batch} videos")
        return embeds.expand(batch, -1, -1).to(self._execution_device)


def _is_text(prompt: str) -> bool:
    """Whether it has no lone surrogates, which bytes that are not UTF-8 become in an argument."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in prompt)


# where DiffusionPipeline.from_pretrained looks for the class that a folder names
diffusers.CausalWanPipeline = CausalWanPipeline
