"""What an edited stream remembers from block to block, and how its parts are put together.

Made when the size of the frames is known. The block loop (``engine``) drives it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.backbones.base import Backbone, FusedPasses
from stillframe.detection.capture import captured
from stillframe.detection.motion import Motion, Settled
from stillframe.detection.pixels import Anchors, VisibleChange
from stillframe.engine.compose import ShownPictures
from stillframe.engine.results import Results
from stillframe.engine.settings import StreamSettings
from stillframe.kernels.graphs import CapturedStep
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
        self.cache = KeyValueCache(shape, device, dtype)
        self.recovery = recovery_of(method)(
            RecoverySetup(
                shape,
                len(settings.sigmas),
                device,
                dtype,
                *method.match,
                settings.store_dtype(dtype),
            )
        )
        self.attention = BlockAttention(
            self.cache, backbone.rotary, self.recovery, settings.position_limit
        )
        self.select = self._selector(method)
        self.merger = method.merger(MergeSetup(self.grid, len(settings.sigmas), device))
        self.fused = self._fused()
        self.anchors = Anchors()
        self.shown = ShownPictures(temporal, frames, graphs=self._captures)
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
            self.anchors.pixels = self.motion.release(self.anchors.pixels)
        self.motion = self._motion(method)
        self.merger = method.merger(MergeSetup(self.grid, steps, before.device))
        # what a store's entries were computed from is compared in other units
        same = method.visible == self._visible or not recovery.compares
        self._visible = method.visible
        if type(self.recovery) is recovery and before.steps == steps and same:
            self.recovery.setup = setup
            return False
        self.recovery = self.attention.recovery = recovery(setup)
        self.fused = self._fused()
        return True

    def follow_weights(self) -> bool:
        """Go on with weights that have changed; False if they are now of another number format."""
        if self.cache.keys(0).dtype != self._backbone.dtype:
            return False
        self.fused = self._fused()
        return True

    def _selector(self, method: Method) -> Selector:
        select = method.selector()
        return captured(select) if self._captures else select

    def _motion(self, method: Method) -> Motion | None:
        if method.motion == "off":
            return None
        change = VisibleChange(method.match[0])
        if self._captures:
            change = change.captured(CapturedStep)
        return Motion(method.motion, change, self._captures)

    @property
    def sides(self) -> tuple[int, int]:
        """Patches of a frame, h and w."""
        return self.grid.height, self.grid.width

    @property
    def _captures(self) -> bool:
        """Whether many small kernels are made a graph."""
        return self._device.type == "cuda" and self._settings.execution in ("auto", "graphs")

    def _fused(self) -> FusedPasses | None:
        """Passes in fewer kernels, where they are wanted and there are some."""
        execution = self._settings.execution
        on_gpu = self._device.type == "cuda"
        if execution == "reference" or (execution == "auto" and not on_gpu):
            return None
        graphs, fp8 = on_gpu and execution != "fused", self._settings.products == "fp8"
        return self._backbone.fused(self.attention, graphs=graphs, fp8=fp8)


def recovery_of(method: Method) -> type[Recovery]:
    # a method that never prunes has nothing to recover
    return find_recovery(method.recovery if method.prunes else "none")
