"""Text-to-video: the editing loop with nothing for a source.

At sigma 1 the first pass starts from pure noise, so that nothing of a source is left; where every
token is computed and no source channels are shown, editing anything is making a video from the
prompt alone. So this only feeds the loop. It does not know what asks for frames, or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder
from stillframe.backbones.base import Backbone, TextCache
from stillframe.config import EditConfig
from stillframe.engine.inputs import Generators, check_generators
from stillframe.engine.stream import BlockStats, EditStream, StreamSettings
from stillframe.errors import ModelError
from stillframe.methods import find_method
from stillframe.pipelines.clips import CausalWanPipelineOutput, check_output_type, pack_clip
from stillframe.tokens.schedule import Pass, generate_sigmas, scheduler_shift

__all__ = ["GenerateStream", "TextToVideo", "generated_size"]

#: Denoising passes where nobody says how many: Self Forcing's.
STEPS = 4

OnBlock = Callable[[BlockStats], None]


class GenerateStream(Iterator[Tensor]):
    """One stream of video made from a prompt: iterate to get frames, a block at a time.

    Each item is (B, T, 3, H, W) in [0, 1]; T differs between the first block and later ones.

    Args:
        denoiser: the transformer.
        autoencoder: a fresh stream through the autoencoder, which only decodes.
        text: the prompt, from ``denoiser.text``; one row a video.
        settings: how to denoise; sigmas start at 1, conditioning is "sdedit".
        height, width: of the frames, in pixels.
        num_frames: how many to make, the last block being cut to fit; None for no end.
        generator: source of noise; a list gives each batch row its own.
        on_block: called with the `BlockStats` of every finished block.

    Raises:
        ValueError: for sizes or settings out of range.
    """

    def __init__(
        self,
        denoiser: Backbone,
        autoencoder: StreamingAutoencoder,
        text: TextCache,
        settings: StreamSettings,
        height: int,
        width: int,
        *,
        num_frames: int | None = None,
        generator: Generators = None,
        on_block: OnBlock | None = None,
    ) -> None:
        spatial = autoencoder.timeline.spatial
        multiple = spatial * denoiser.patch
        for side in (height, width):
            if side < 1 or side % multiple:
                raise ValueError(f"height and width must be multiples of {multiple}, got {side}")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"at least 1 frame must be made, got {num_frames}")
        if settings.sigmas[0] != 1:
            raise ValueError(f"a video from nothing starts at sigma 1, got {settings.sigmas[0]}")
        if settings.conditioning != "sdedit":
            raise ValueError(f"there is no source to show, got {settings.conditioning!r}")
        check_generators(generator, text.embeds.shape[0])
        self.height, self.width = height, width
        self.frames_left = num_frames
        full = find_method("full")()
        self._loop = EditStream(denoiser, autoencoder, text, full, settings, generator, on_block)
        size = (height // spatial, width // spatial)
        shape = (text.embeds.shape[0], denoiser.latent_channels, settings.block_frames, *size)
        self._nothing = torch.zeros(shape, device=text.embeds.device)

    @property
    def settings(self) -> StreamSettings:
        """How it denoises."""
        return self._loop.settings

    @property
    def memory(self) -> dict[str, int]:
        """Bytes held by this stream, see `EditStream.memory`. Bounded."""
        return self._loop.memory

    def set_text(self, text: TextCache) -> None:
        """Change the prompt from the next block on."""
        self._loop.set_text(text)

    def __next__(self) -> Tensor:
        """The frames of the next block."""
        if self.frames_left == 0:
            raise StopIteration
        frames = self._loop.edit_block(self._nothing)
        if self.frames_left is not None:
            frames = frames[:, : self.frames_left]
            self.frames_left -= frames.shape[1]
        return frames


class TextToVideo:
    """What a `CausalWanPipeline` can do without a source: its methods for text-to-video."""

    config: Any
    scheduler: Any
    vae: Any
    text: Callable[..., TextCache]
    levels: Callable[[Sequence[float]], dict[str, Any]]
    first_passes: Callable[[Sequence[float] | None], tuple[Pass, ...]]
    traits: dict[str, Any]
    if TYPE_CHECKING:

        @property
        def denoiser(self) -> Backbone: ...

        @property
        def frame_multiple(self) -> int: ...

        @property
        def video_processor(self) -> VideoProcessor: ...

    def generation_settings(
        self,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        execution: str = EditConfig.execution,
        products: str = EditConfig.products,
        cache: str = EditConfig.cache,
    ) -> StreamSettings:
        """How to denoise from nothing: what is None comes from the pipeline's configuration.

        Positions grow with the window, up to those that the model has.

        Raises:
            ModelError: the model is not made for it.
            ValueError: for numbers out of range, or if both are given.
        """
        config = self.config
        if not config.generates:
            raise ModelError(
                "this model edits video and was not trained to make it from a prompt alone: "
                "`stillframe models` lists those that were"
            )
        own = num_inference_steps is None and sigmas is None
        if num_inference_steps is None:
            sigmas = config.generate_sigmas if sigmas is None else sigmas
        elif sigmas is not None:
            raise ValueError(f"give either steps, {num_inference_steps}, or sigmas, {list(sigmas)}")
        if sigmas is None:
            steps = STEPS if num_inference_steps is None else num_inference_steps
            sigmas = generate_sigmas(steps, scheduler_shift(self.scheduler.config))
        seen = config.generate_sink_frames + config.generate_window_frames
        levels = self.levels(sigmas)
        return StreamSettings(
            **levels,
            first=self.first_passes(config.first_sigmas if own else None),
            **self.traits,
            conditioning="sdedit",
            block_frames=config.generate_block_frames or config.block_frames,
            sink_frames=config.generate_sink_frames,
            window_frames=config.generate_window_frames,
            position_limit=min(max(config.position_limit, seen), self.denoiser.positions),
            timestep_scale=self.scheduler.config.num_train_timesteps,
            cache=config.cache if cache == "auto" else cache,
            execution=execution,
            products=config.products if products == "auto" else products,
        )

    def generate_stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        config: EditConfig | None = None,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        on_block: OnBlock | None = None,
        **options: Any,
    ) -> GenerateStream:
        """Open a stream that makes video: iterate over it to get frames.

        Args:
            prompt: what to show; a list makes a batch.
            num_frames: how many frames to make; None for no end.
            height: in pixels; default the pipeline's ``default_height``.
            width: in pixels; default 16:9 and no more than that, 832 for a height of 480.
            config: how to denoise; what concerns a source does not matter.
            generator: source of noise, see `CausalWanPipeline.stream`.
            prompt_embeds: (B, L, text_dim) instead of a prompt.
            on_block: called after every block.
            options: ``num_inference_steps``, ``sigmas`` (the first must be 1), ``execution``,
                ``products`` or ``seed`` instead of the configuration's.

        Raises:
            ModelError: the model is not made for it.
            ValueError: for numbers out of range.
        """
        config = EditConfig.of_generation(config, options)
        settings = self.generation_settings(**config.generation_settings)
        height, width = generated_size(
            height, width, self.config.default_height, self.frame_multiple
        )
        return GenerateStream(
            self.denoiser,
            open_autoencoder(self.vae, settings.block_frames),
            self.text(prompt, prompt_embeds),
            settings,
            height,
            width,
            num_frames=num_frames,
            generator=config.generator if generator is None else generator,
            on_block=on_block,
        )

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        num_frames: int = 81,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_block_end: OnBlock | None = None,
        config: EditConfig | None = None,
        **options: Any,
    ) -> CausalWanPipelineOutput | tuple[Any, list[BlockStats]]:
        """Make a clip from a prompt.

        Args:
            num_frames: any number; the last block is computed whole and cut.
            num_inference_steps: denoising passes a block.
            output_type: "np", "pt" or "pil".
            return_dict: False returns the tuple (frames, blocks).
            callback_on_block_end: called with each block's `BlockStats`.

        The others are those of `generate_stream`.

        Raises:
            ValueError: for arguments out of range.
        """
        check_output_type(output_type)
        if num_inference_steps is not None:
            options["num_inference_steps"] = num_inference_steps
        blocks: list[BlockStats] = []

        def on_block(stats: BlockStats) -> None:
            blocks.append(stats)
            if callback_on_block_end is not None:
                callback_on_block_end(stats)

        stream = self.generate_stream(
            prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            config=config,
            generator=generator,
            prompt_embeds=prompt_embeds,
            on_block=on_block,
            **options,
        )
        frames = torch.cat(list(stream), 1)
        return pack_clip(frames, blocks, self.video_processor, output_type, return_dict)


def generated_size(
    height: int | None, width: int | None, default_height: int, multiple: int
) -> tuple[int, int]:
    """Height and width of a video that is made, in pixels; what is None follows from the rest.

    Args:
        height, width: that were asked for.
        default_height: of the pipeline.
        multiple: of sides.
    """
    if height is None:
        height = _whole(default_height, multiple)
    if width is None:
        # an even number of tokens gives Wan's own sizes, 832x480 and 1280x720
        width = _whole(height * 16 / 9, 2 * multiple)
    return height, width


def _whole(length: float, multiple: int) -> int:
    """``length`` cut down to a multiple, at least one of them."""
    return max(int(length // multiple), 1) * multiple
