"""What an edited stream remembers from block to block, and how its parts are put together.

Made when the size of the frames is known. The block loop (``engine``) drives it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor, nn

from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.backbones.base import Backbone, FusedPasses
from stillframe.detection.capture import Faster, captured
from stillframe.detection.motion import Motion, Settled
from stillframe.detection.pixels import Anchors, VisibleChange
from stillframe.engine.compose import ShownPictures
from stillframe.engine.results import Results
from stillframe.engine.settings import StreamSettings
from stillframe.kernels.shared import (
    CapturedStep,
    Find,
    Memory,
    Step,
    captures_on,
    shared_workplace,
)
from stillframe.methods import Method, Selector
from stillframe.recovery import Recovery, RecoverySetup, find_recovery
from stillframe.tokens.grid import Grid
from stillframe.tokens.merge import MergeSetup

__all__ = ["StreamState", "recovery_of"]


class StreamState:
    """What a stream remembers once the size of its frames is known."""

    def __init__(
        self,
        backbone: Backbone,
        settings: StreamSettings,
        method: Method,
        latents: Tensor,
        temporal: int,
    ) -> None:
        batch, _, frames, height, width = latents.shape
        self.patch = backbone.patch
        self.grid = Grid(frames, height // self.patch, width // self.patch)
        shape = CacheShape(
            layers=backbone.layers,
            batch=batch,
            grid=self.grid,
            heads=backbone.heads,
            head_dim=backbone.head_dim,
            sink=settings.sink_frames,
            window=settings.window_frames,
        )
        device, dtype = latents.device, backbone.dtype
        self._backbone, self._settings, self._device = backbone, settings, device
        self._find = _finder(backbone.transformer, self._captures)
        # passes are made there, and in the recovery's part of it
        kept = settings.cache_dtype(dtype)
        self.memory = Memory(self._find("passes", (shape, device, dtype, kept)))
        self.cache = KeyValueCache(shape, device, dtype, self.memory, kept, settings.sink_average)
        kind, store = recovery_of(method), settings.store_dtype(dtype)
        self.recovery = kind(
            RecoverySetup(
                shape,
                len(settings.sigmas),
                device,
                dtype,
                *method.match,
                store,
                self._memory_of(kind, len(settings.sigmas), store),
            )
        )
        self.attention = backbone.block_attention(
            self.cache, self.recovery, settings.position_limit, settings.context_sink
        )
        self.select = self._selector(method)
        self.merger = method.merger(MergeSetup(self.grid, len(settings.sigmas), device))
        self.fused = self._fused()
        self.anchors = Anchors()
        self.shown = ShownPictures(temporal, frames, self._find)
        self.results: Results | None = None
        #: see `Results.restore`
        self.even: list[list[Tensor]] = []
        self.motion = self._motion(method)
        self.settled: list[Settled] | None = None
        self._visible = method.visible
        # last frame of the block before: source, what it was recomputed from, result
        self.source: Tensor | None = None
        self.reference: Tensor | None = None
        self.result: Tensor | None = None
        # sources and results of the blocks in the window, where they may be needed again
        reach = -(-shape.ring // frames) if settings.recompute_context else 0
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=reach)

    def update(self, method: Method, steps: int) -> bool:
        """Go on with another method or number of denoising passes.

        Returns:
            whether the recovery is a new one, which has to see a whole block first.
        """
        before, recovery = self.recovery.setup, recovery_of(method)
        tolerance, trim = method.match
        setup = replace(before, steps=steps, tolerance=tolerance, trim=trim)
        self.select = self._selector(method)
        if self.motion is not None and self.anchors.pixels is not None:
            self.motion.enter()
            self.anchors.pixels = self.motion.release(self.anchors.pixels)
        self.motion = self._motion(method)
        self.merger = method.merger(MergeSetup(self.grid, steps, before.device))
        # what a store's entries were computed from is compared in other units
        same = method.visible == self._visible or not recovery.compares
        self._visible = method.visible
        if type(self.recovery) is recovery and before.steps == steps and same:
            self.recovery.setup = setup
            return False
        memory = self._memory_of(recovery, steps, before.store)
        self.recovery = self.attention.recovery = recovery(replace(setup, memory=memory))
        self.fused = self._fused()
        return True

    def follow_weights(self) -> bool:
        """Go on with weights that have changed; False if they are now of another number format."""
        if self.cache.keys(0).dtype != self._backbone.dtype:
            return False
        self.fused = self._fused()
        return True

    def enter(self) -> None:
        """Find keys and values as the stream left them; call it first in every turn."""
        self.memory.enter()
        self.recovery.memory.enter()
        if self.motion is not None:
            self.motion.enter()

    def _memory_of(self, recovery: type[Recovery], steps: int, store: torch.dtype) -> Memory:
        """Of a new recovery, at the place where passes with its kind are made."""
        key = recovery, steps, store
        place = shared_workplace(self.memory.place, "recovery", key, self._captures)
        return Memory(place)

    def _selector(self, method: Method) -> Selector:
        select = method.selector()
        return (
            captured(select, _faster(self._find, method, self.grid)) if self._captures else select
        )

    def _motion(self, method: Method) -> Motion | None:
        if method.motion == "off":
            return None
        change = VisibleChange(method.match[0])
        if self._captures:
            decides = "change", method.match[0]
            change = change.captured(_faster(self._find, decides, self.grid))
        return Motion(method.motion, change, self._find)

    @property
    def first(self) -> bool:
        """Whether nothing has been committed yet."""
        return self.cache.frames == 0

    @property
    def sides(self) -> tuple[int, int]:
        """Patches of a frame, h and w."""
        return self.grid.height, self.grid.width

    @property
    def _captures(self) -> bool:
        """Whether many small kernels are made a graph."""
        return captures_on(self._device) and self._settings.execution in ("auto", "graphs")

    def _fused(self) -> FusedPasses | None:
        """Passes in fewer kernels, where they are wanted and there are some."""
        execution = self._settings.execution
        on_gpu = self._device.type == "cuda"
        if execution == "reference" or (execution == "auto" and not on_gpu):
            return None
        fp8 = self._settings.products == "fp8"
        return self._backbone.fused(self.attention, fp8=fp8)


def recovery_of(method: Method) -> type[Recovery]:
    # a method that never prunes has nothing to recover
    return find_recovery(method.recovery if method.prunes else "none")


# Not methods: a state that parts of it refer to would outlive its stream until garbage is
# collected, and what has ended is not to be saved when another stream comes.


def _finder(model: nn.Module, captures: bool) -> Find:
    """Finds the workplaces for what is done with latents of a model."""
    return lambda kind, key: shared_workplace(model, kind, key, captures)


def _faster(find: Find, decides: Hashable, grid: Grid) -> Faster:
    """Makes graphs of steps, which are alike in streams where the same thing decides."""
    numbers = count()

    def faster(step: Step) -> CapturedStep:
        of = next(numbers), decides, grid
        return CapturedStep(step, lambda shapes: find("step", (*of, shapes)))

    try:
        hash(decides)
    except TypeError:  # a method with parameters that cannot be told apart
        return CapturedStep
    return faster
