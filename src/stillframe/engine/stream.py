"""The block loop: source frames in, edited frames out, recomputing only what changed.

One loop serves files and live streams. For every block of S latent frames:

    choose tokens (method) -> encode -> denoise the kept ones (recovery fills in for the others)
           -> commit clean keys and values (context pass) -> restore the full grid -> decode

Only what is computed is encoded and decoded, and what lies close around. Where latents decide what
that is (``detector="latent"``, controls that look at them), a block is encoded whole before.

Everything a stream remembers lives in the `EditStream`; weights are shared and untouched. Streams
of one model may run in threads of their own, which take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from stillframe.autoencoders.streaming import StreamingAutoencoder
from stillframe.backbones.base import Backbone, TextCache
from stillframe.controls import Controls, ControlState, StreamFacts, Timing
from stillframe.detection.frames import PixelBlocks
from stillframe.detection.motion import Settled
from stillframe.detection.pixels import appearance
from stillframe.detection.staleness import Staleness
from stillframe.engine.incoming import IncomingBlock
from stillframe.engine.inputs import Generators, check_channels, check_generators, read_frames
from stillframe.engine.moved import MovedPictures
from stillframe.engine.passes import BlockPasses
from stillframe.engine.planning import (
    advance,
    followed,
    picture_wanted,
    settle,
    source_wanted,
)
from stillframe.engine.results import Results
from stillframe.engine.settings import StreamSettings
from stillframe.engine.stages import BlockStats, StageClock
from stillframe.engine.state import StreamState, recovery_of
from stillframe.kernels.linear import takes_fp8
from stillframe.methods import Method
from stillframe.tokens.grid import Grid, Plan, patchify, plan_tokens, unpatchify
from stillframe.tokens.restore import restore
from stillframe.tokens.source import SourceBlock
from stillframe.turns import device_turn, model_turn

__all__ = ["BlockStats", "EditStream", "StageClock", "StreamSettings", "check_settings"]


# On an H100 reading the weights of a 1.3B model takes 3.3 ms, a block 60 to 170.
_READ_EVERY = 8


def check_settings(backbone: Backbone, settings: StreamSettings) -> None:
    """Raise a ValueError if a transformer cannot be run with some settings."""
    if settings.conditioning == "source" and not backbone.takes_source:
        raise ValueError("this transformer has no source channels: use conditioning='sdedit'")
    if settings.position_limit > backbone.positions:
        raise ValueError(
            f"{settings.position_limit} positions are too many: "
            f"this transformer has {backbone.positions}"
        )
    device = backbone.device
    if settings.products == "fp8" and not (settings.execution == "fused" or takes_fp8(device)):
        raise ValueError(f"products in FP8 need a card of compute capability 9.0, not {device}")


class EditStream:
    """One stream of edited video. Push frames, get frames; `flush` at the end.

    Args:
        backbone: the transformer.
        autoencoder: a fresh stream through the autoencoder.
        text: the prompt, from ``backbone.text``.
        method: which tokens to compute.
        settings: how to denoise.
        generator: source of noise; a list gives each batch row its own.
        on_block: called with the `BlockStats` of every finished block.
        control: what else decides about masks; None for nothing.
        blocks_before: of the same video, that another stream edits: their share of the noise is
            left out, so that blocks have the noise that one stream would give them.

    Attributes:
        control_state: the controls at work, None without any.
        staleness: of what was reused, for streams that frames are pushed to.

    Raises:
        ValueError: the settings do not fit the transformer, or the control not the method.
    """

    def __init__(
        self,
        backbone: Backbone,
        autoencoder: StreamingAutoencoder,
        text: TextCache,
        method: Method,
        settings: StreamSettings,
        generator: Generators = None,
        on_block: Callable[[BlockStats], None] | None = None,
        control: Controls | None = None,
        blocks_before: int = 0,
    ) -> None:
        check_settings(backbone, settings)
        check_channels(autoencoder.latent_channels, backbone.latent_channels)
        check_generators(generator)
        self._autoencoder = autoencoder
        self.control_state: ControlState | None = None
        if control is not None:
            control.check(method)
            self._set_controls(control, method)
        self.method = method
        self.settings = settings
        self.blocks = 0
        self.staleness = Staleness()
        self.clock = StageClock()
        self._captured = 0
        self._backbone = backbone
        self._text = text
        self._generator = generator
        self._left_out = blocks_before
        self._on_block = on_block
        self._state: StreamState | None = None
        self._revision: int | None = None
        on_gpu = text.embeds.device.type == "cuda"
        self._reads_every = _READ_EVERY if on_gpu else 1
        self._whole = True
        self._recompute_due = False
        self._pixels = PixelBlocks(autoencoder.timeline)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of this stream's ``cache`` and ``recovery`` store. Bounded.

        They may lie in buffers that other streams use in between; see ``kernels.shared``.
        """
        state = self._state  # another thread may ask while a cut forgets it
        if state is None:
            return {"cache": 0, "recovery": 0}
        return {"cache": state.cache.nbytes, "recovery": state.recovery.nbytes}

    @property
    def graphs(self) -> int:
        """CUDA graphs of the transformer that were captured for this stream; those that others
        captured serve it, too."""
        state = self._state
        fused = None if state is None else state.fused
        return 0 if fused is None else fused.captured

    @property
    def lengths(self) -> Sequence[int]:
        """Numbers of tokens that fused passes are padded to, rising; none without such passes."""
        state = self._state
        return () if state is None or state.fused is None else state.fused.lengths

    def warm(self, counts: Sequence[int] | None = None) -> Iterator[int]:
        """Capture the transformer's graphs ahead, for blocks like the latest one.

        What the stream remembers is spoilt: make one for this alone. Other streams of the model
        find the graphs. It does nothing where none are captured.

        Args:
            counts: of tokens that blocks will compute; None: of any.

        Yields:
            each length in tokens, once it is captured.
        """
        state = self._state
        lengths = iter(()) if state is None or state.fused is None else state.fused.warm(counts)
        length: int | None = 0
        while state is not None and length is not None:
            device = self._text.embeds.device
            with torch.inference_mode(), model_turn(self._backbone.transformer, device):
                state.enter()
                length = next(lengths, None)
            if length is not None:
                yield length

    def set_text(self, text: TextCache) -> None:
        """Change the prompt from the next block on, which is then computed whole."""
        self._text = text
        self._whole = True
        self._recompute_due = self.settings.recompute_context

    def _set_controls(self, controls: Controls, method: Method) -> None:
        facts = StreamFacts(method, self._autoencoder.timeline)
        state = ControlState(controls, facts, self.control_state) if controls else None
        self.control_state = state

    def update(
        self,
        *,
        method: Method | None = None,
        settings: StreamSettings | None = None,
        controls: Controls | None = None,
    ) -> None:
        """Change the method, the settings or the controls from the next block on; None leaves them.

        Controls that did not change go on as they were; no controls are ``Controls()``.

        Autoencoder and context go on. Other settings make that block whole, since what is shown was
        made with the old ones. Another method does not, unless its recovery or the number of passes
        is another: the new store is empty, so the block is whole. Where plain pruning left holes
        that the new recovery does not know of, the context is forgotten, too.

        Raises:
            ValueError: for settings that do not fit the transformer, or differ in more than sigmas
                and conditioning, or a method that does not fit the controls. Nothing has
                changed then.
        """
        method, settings = method or self.method, settings or self.settings
        check_settings(self._backbone, settings)
        if controls is not None:
            controls.check(method)
        elif self.control_state is not None:
            self.control_state.controls.check(method)
        self.settings.check_change(settings)
        if controls is not None:
            self._set_controls(controls, method)
        if (method, settings) == (self.method, self.settings):
            return
        self._whole |= settings != self.settings
        self.method, self.settings = method, settings
        if self.control_state is not None:
            self.control_state.use(method)
        if self._state is not None and self._state.cache.holes and recovery_of(method).complete:
            self._state = None
        elif self._state is not None:
            # what is known of motion lies where other streams' comes, too
            with device_turn(self._text.embeds.device):
                self._whole |= self._state.update(method, len(settings.sigmas))

    @torch.inference_mode()
    def push(self, frames: Tensor) -> Tensor | None:
        """Feed frames (B, T, 3, H, W) in [0, 1] or uint8, any T; None means "feed me more".

        Returns:
            edited frames (B, T', 3, H, W), for the blocks that are now complete.

        Raises:
            ValueError: if they are no such frames, H or W does not fit the model's grid, or frames
                change size. Nothing was taken then.
        """
        frames = read_frames(frames, self._autoencoder.timeline.spatial * self._backbone.patch)
        check_generators(self._generator, frames.shape[0])
        blocks = self._autoencoder.take(frames)
        self._pixels.add(frames)
        return self._edit(blocks)

    @torch.inference_mode()
    def flush(self) -> Tensor | None:
        """End the stream: the frames that were still waiting, None if there were none."""
        return self._edit(self._autoencoder.finish())

    def _edit(self, blocks: Sequence[Tensor]) -> Tensor | None:
        edited = [self._edited(self._incoming(block)) for block in blocks]
        edited = [frames for frames in edited if frames.shape[1]]
        return torch.cat(edited, 1) if edited else None

    @torch.inference_mode()
    def edit_block(self, latents: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Edit the next block, latents (B, C, S, h, w) that need no encoding; returns its frames.

        `push` does this with what it encodes. A stream is fed by either of them, not by both.

        Args:
            latents: of the source.
            pixels: ``SourceBlock.pixels``; without them, change is judged by latents.

        Raises:
            ValueError: the method needs pixels and there are none.
        """
        patch = self._backbone.patch
        return self._edited(IncomingBlock(pixels, patch, lambda _: latents), latents.device)

    def _incoming(self, frames: Tensor) -> IncomingBlock:
        """The next block of frames, to be encoded when it is known what of it is needed."""

        def encode(changed: Tensor | None) -> Tensor:
            with self.clock("encode"):
                return self._autoencoder.encode_block(frames, changed)

        return IncomingBlock(self._pixels.take(), self._backbone.patch, encode)

    def _edited(self, block: IncomingBlock, device: torch.device | None = None) -> Tensor:
        """Frames of the next block."""
        if self.method.needs_pixels and block.pixels is None:
            raise ValueError(f"method {self.method.name!r} looks at source frames: push them")
        device = device or self._text.embeds.device
        # one turn for all of it: what is found for a block is read until it is shown
        with device_turn(device):
            with model_turn(self._backbone.transformer):
                state, plan, result = self._computed(block)
            with self.clock("decode"):
                grid = unpatchify(result, state.grid, self._backbone.patch)
                changed = None
                if self.method.holds and self._autoencoder.changed_alone:
                    changed = picture_wanted(state, plan)
                frames = self._decoded(grid, block.latents, changed)
                if self.method.holds:
                    frames = self._composed(state, frames, plan)
        self._end(state, plan)
        return frames

    def _computed(self, block: IncomingBlock) -> tuple[StreamState, Plan, Tensor]:
        """The block's state, its plan, and its result (B, S*N, P), which the state remembers."""
        self._follow_weights()
        if self.control_state is not None:
            with self.clock("mask"):
                self._obey(self.control_state, block)
        if self._state is None:
            self._state = StreamState(
                self._backbone,
                self.settings,
                self.method,
                block.latents,
                self._autoencoder.timeline.temporal,
            )
        state = self._state
        with self.clock("context"):
            state.enter()
        if self._recompute_due and state.recent:
            self._passes.recompute(state, list(state.recent))
        self._recompute_due = False
        plan, source = self._plan(state, block)
        result = self._recompute(state, source, plan, block.latents)
        if self.control_state is not None:
            self.control_state.result(result, state.result)
        n = state.grid.frame_tokens
        state.source, state.result = source[:, -n:], result[:, -n:]
        if state.recent.maxlen:
            state.recent.append((self._model_source(source), result))
        return state, plan, result

    def _follow_weights(self) -> None:
        """Make anew what was derived from weights that have changed since the block before, and
        this block whole, since what is shown was made with the old ones."""
        due = self.blocks % self._reads_every == 0
        revision = self._backbone.revision(read=due or self._text.revision != self._revision)
        if self._text.revision != revision:
            self._text = self._backbone.text(self._text.embeds)
        before, self._revision = self._revision, revision
        if before in (None, revision):
            return
        self._whole = True
        if self._state is not None and not self._state.follow_weights():
            self._state = None

    def _early(self, state: StreamState | None, block: IncomingBlock) -> Tensor | None:
        """What stands for the block's tokens (B, S*N, P) while its mask is made, if that does not
        depend on them: those of the frame before it. None: the block is to be encoded first."""
        if state is None or state.source is None or not self.method.visible or self._whole:
            return None
        controls = self.control_state
        if block.pixels is None or (controls is not None and controls.looks_at_latents):
            return None
        return state.source.repeat(1, state.grid.frames, 1)

    def _decoded(self, edited: Tensor, source: Tensor, changed: Tensor | None) -> Tensor:
        if self.control_state is None:
            return self._autoencoder.decode(edited, changed)
        return self.control_state.decode(self._autoencoder, edited, source, changed)

    def _composed(self, state: StreamState, frames: Tensor, plan: Plan) -> Tensor:
        """The block's frames with what was shown wherever nothing was computed."""
        keep = plan.keep.unflatten(2, state.sides)
        # what lies around a region that alone is edited shows its source
        source = None if self.control_state is None else self.control_state.unedited(keep)
        lacking = self._autoencoder.timeline.missing_frames if self.blocks == 0 else 0
        moved = None if state.settled is None else MovedPictures(state.settled, state.even)
        return state.shown.compose(frames, keep, plan.everything, lacking, source, moved)

    def _obey(self, controls: ControlState, block: IncomingBlock) -> None:
        """Make the coming block whole, and forget what came before, if the controls say so."""
        early = self._early(self._state, block)
        if early is None or self._state is None:
            tokens, grid = block.tokens(), self._grid(block.latents)
        else:
            tokens, grid = early, self._state.grid
        order = controls.begin(tokens.unflatten(1, (grid.frames, grid.frame_tokens)), grid)
        self._whole |= order.whole
        if order.forget:
            # the autoencoder goes on: its memory is short, and pictures stay in step
            self._state = None

    def _grid(self, latents: Tensor) -> Grid:
        _, _, frames, height, width = latents.shape
        return Grid(frames, height // self._backbone.patch, width // self._backbone.patch)

    def _plan(self, state: StreamState, incoming: IncomingBlock) -> tuple[Plan, Tensor]:
        """The block's plan and its source (B, S*N, P): whole if it must be, else what the method
        selects and merges."""
        grid, pixels = state.grid, incoming.pixels
        early = self._early(state, incoming)
        whole, self._whole = self._whole, False
        source = incoming.tokens() if early is None else early
        by_frame = source.unflatten(1, (grid.frames, grid.frame_tokens))
        if state.source is None or state.reference is None:
            with self.clock("mask"):
                return self._first_plan(state, by_frame, pixels), source
        with self.clock("mask"):
            block = SourceBlock(by_frame, state.source, state.reference, grid, pixels)
            block = self._seen(state, block)
            if not whole and state.motion is not None:  # else nobody asks for gains
                block = followed(state, block, self._gains)
            keep = self._mask(state, block, whole).flatten(2)
            plan = settle(state, block, torch.ones_like(keep) if whole else keep)
        if early is not None:
            alone = self._autoencoder.changed_alone
            source = incoming.tokens(source_wanted(state, plan) if alone else None)
            by_frame = source.unflatten(1, (grid.frames, grid.frame_tokens))
            block = block._replace(tokens=by_frame)
        with self.clock("mask"):
            state.attention.merger = None if whole else state.merger
            if state.attention.merger is not None:
                state.attention.merger.begin_block(block)
            if not plan.nothing:
                state.recovery.observe(block, plan)
            shown = restore(source, state.reference, plan.provider)
            state.reference = shown[:, -grid.frame_tokens :]
            self._note(state, pixels, plan)
        return plan, source

    def _first_plan(self, state: StreamState, by_frame: Tensor, pixels: Tensor | None) -> Plan:
        """The plan of a stream's first block, (B, S, N, P), which is whole."""
        plan = plan_tokens(torch.ones_like(by_frame[..., 0], dtype=torch.bool))
        state.reference = by_frame[:, -1]
        first = SourceBlock(by_frame, by_frame[:, 0], state.reference, state.grid, pixels)
        if state.motion is not None:
            state.motion.restart(first)
        state.recovery.observe(self._seen(state, first), plan)
        self._note(state, pixels, plan)
        return plan

    def _seen(self, state: StreamState, block: SourceBlock) -> SourceBlock:
        """A block with what a method that goes by what is seen compares."""
        if not self.method.visible:
            return block
        if block.pixels is not None:
            return block._replace(anchor=state.anchors.pixels, look=appearance(block.pixels, block))
        look, before = (
            (x.unflatten(-1, (-1, len(self._gains))) @ self._gains).flatten(-2)
            for x in (block.tokens, block.reference)
        )
        return block._replace(look=look, look_anchor=before)

    def _note(self, state: StreamState, pixels: Tensor | None, plan: Plan) -> None:
        """Keep the pixels that tokens were computed from, and how stale the others are."""
        if pixels is None:
            return
        stale = advance(state, pixels, plan)
        if not plan.everything:
            self.staleness.add(stale, plan.keep.view(stale.shape))
        if self.control_state is not None:
            self.control_state.block.staleness = stale

    def _mask(self, state: StreamState, block: SourceBlock, whole: bool) -> Tensor:
        """The keep mask (B, S, h, w) of a block that is not a first one."""
        if self.control_state is None:
            return state.select(block)
        return self.control_state.mask(state.select, whole, block, self.lengths)

    def _recompute(self, state: StreamState, source: Tensor, plan: Plan, latents: Tensor) -> Tensor:
        """Denoise and commit the block; returns its result, (B, S*N, P) float32."""
        noise = self._noise(latents)
        if plan.nothing:
            with self.clock("context"):
                state.attention.skip_block(plan)
            own = torch.zeros_like(source)
        else:
            own = self._passes(state, self._model_source(source), noise, plan)
        if plan.everything or state.result is None:
            return own
        with self.clock("context"):
            if state.settled is not None:
                return self._carried(state, own, source, plan, state.settled)
            return restore(own, state.result, plan.provider)

    def _carried(
        self,
        state: StreamState,
        own: Tensor,
        source: Tensor,
        plan: Plan,
        settled: Sequence[Settled],
    ) -> Tensor:
        """The full grid (B, S*N, P), with the edits of what moved."""
        assert state.result is not None
        assert state.source is not None
        if state.results is None:
            state.results = Results(state.grid, self._backbone.patch, self._gains)
        before = state.result, state.source
        restored, state.even = state.results.restore(own, before, source, plan.keep, settled)
        return restored

    @cached_property
    def _gains(self) -> Tensor:
        """(C, C) see `StreamingAutoencoder.channel_gains`."""
        return self._autoencoder.channel_gains()

    @property
    def _passes(self) -> BlockPasses:
        return BlockPasses(self._backbone, self._text, self.settings, self.clock)

    def _model_source(self, source: Tensor) -> Tensor:
        """Source tokens (B, S*N, P) in the scale that the model starts from."""
        if self.settings.source_scale is None:
            return source
        mean, deviation = map(source.new_tensor, self.settings.source_scale)
        return (source.unflatten(2, (-1, len(mean))) * deviation + mean).flatten(2)

    def _noise(self, latents: Tensor) -> list[Tensor]:
        """Noise for each pass, (B, S*N, P). Always drawn for the whole grid, so that what is kept
        does not change what noise the rest gets."""
        left_out, self._left_out = self._left_out, 0
        for number in range(left_out):
            self._draws(latents, number == 0)
        first = self._state is None or self._state.first
        return [patchify(draw, self._backbone.patch) for draw in self._draws(latents, first)]

    def _draws(self, latents: Tensor, first: bool) -> list[Tensor]:
        """Noise for each pass of the next block, the stream's first one or another."""
        return [
            randn_tensor(latents.shape, self._generator, latents.device, torch.float32)
            for _ in self.settings.passes(first)
        ]

    def _end(self, state: StreamState, plan: Plan) -> None:
        """Tell everybody what became of the block."""
        told = self.control_state is not None or self._on_block is not None
        seconds = self.clock.lap() if told else {}
        if self.control_state is not None:
            captured, self._captured = self._captured != self.graphs, self.graphs
            timing = Timing(plan.kept_share, sum(seconds.values()), captured)
            self.control_state.end(plan.keep, plan.everything, timing)
        if self._on_block is not None:
            keep = plan.keep.unflatten(2, state.sides)
            kept = round(sum(plan.counts) * state.attention.attended_share)
            moved = motion = None
            # on a GPU it is not waited for whether anything did
            if state.settled is not None and any(x.some_moved for x in state.settled):
                moved = torch.stack([found.moved for found in state.settled])
                motion = torch.stack([found.motion for found in state.settled])
            given = self.blocks, kept, keep.numel(), keep, seconds, moved, motion
            self._on_block(BlockStats(*given))
        self.blocks += 1
