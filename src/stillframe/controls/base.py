"""A control: what decides about a block's mask beside the method. One file each.

A control is a frozen dataclass: its fields say what is asked for. Its options, declared beside
them, become options of the command line and fields of the server's messages. For every stream it
starts a `RunningControl`, which the engine calls in the order of `Control.order`.

Adding one: a file in this package (or anywhere, if it is imported) with a subclass of `Control`
under `register`, and one of `RunningControl`, which overrides what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.controls.given import Given
from stillframe.controls.shapes import MotionMap
from stillframe.controls.trace import Timing
from stillframe.methods import Method
from stillframe.options import Option
from stillframe.registry import Registry
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

__all__ = [
    "Control",
    "ControlledBlock",
    "Controls",
    "Demands",
    "Order",
    "RunningControl",
    "SourceFacts",
    "StreamFacts",
    "control_kinds",
    "register",
]


class Order(NamedTuple):
    """What becomes of a block.

    Attributes:
        whole: every token is computed.
        forget: the context is forgotten, too: the block is computed as a stream's first one.
    """

    whole: bool = False
    forget: bool = False


_NO_ORDER = Order()
_TIMELINE = Timeline()


class Demands(NamedTuple):
    """What controls ask of a block's mask, for others to respect or to count.

    Attributes:
        barred: (B, S, h, w) bool, not to be computed unless the block is whole.
        forced: to be computed; nothing that is barred.
        due: to be computed as well, by a control that adds and counts it itself.
        spare: number of tokens that a control is going to add.
    """

    barred: Tensor
    forced: Tensor
    due: Tensor
    spare: int = 0


class StreamFacts(NamedTuple):
    """What a control may know of the stream that it is started for.

    Attributes:
        method: that makes the masks; None if there is none.
        timeline: how its blocks, latent frames and pixel frames go together.
    """

    method: Method | None = None
    timeline: Timeline = _TIMELINE


class SourceFacts(NamedTuple):
    """The video that controls are fitted to.

    Attributes:
        width, height: of the source, in pixels.
        extent: shares of the model's frames, across and down, that the picture fills.
        timeline: of the stream; None if it is not known.
        grid: of a block; None if it is not known.
        patch: side of a token in pixels of the model's frames.
    """

    width: int
    height: int
    extent: tuple[float, float] = (1.0, 1.0)
    timeline: Timeline | None = None
    grid: Grid | None = None
    patch: int = 0


@dataclass
class ControlledBlock:
    """A block that is being made, as far as it is known.

    Attributes:
        tokens: (B, S, N, P) source; of the frame before where nobody looks at them.
        grid: S x h x w.
        running: all controls, in order.
        order: what they made of it; known after `RunningControl.begin`.
        source: with what came before it; known from `RunningControl.view` on, unless the block is
            a stream's first one.
        lengths: rising numbers of tokens that kept ones are padded to, if they are.
        staleness: (B, S, h, w) in grey levels, of what it shows; None where nothing says.
        keep: (B, S, N) bool, tokens that were computed; known at the end, as is the rest.
        whole: whether all were.
        timing: what it took.
    """

    tokens: Tensor
    grid: Grid
    running: Sequence[RunningControl[Any]] = field(repr=False)
    order: Order = _NO_ORDER
    source: SourceBlock | None = None
    lengths: Sequence[int] = ()
    staleness: Tensor | None = None
    keep: Tensor | None = None
    whole: bool = False
    timing: Timing | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a mask: B, S, h, w."""
        return len(self.tokens), self.grid.frames, self.grid.height, self.grid.width

    def no_demands(self) -> Demands:
        """Demands of nothing, to be replaced in part."""
        none = torch.zeros(self.shape, dtype=torch.bool, device=self.tokens.device)
        return Demands(none, none, none)

    @cached_property
    def demands(self) -> Demands:
        """What all controls ask for; what is barred is neither forced nor due."""
        found = [asked for each in self.running if (asked := each.demands(self)) is not None]
        barred, forced, due, spare = self.no_demands()
        for asked in found:
            barred, forced, due = barred | asked.barred, forced | asked.forced, due | asked.due
            spare += asked.spare
        return Demands(barred, forced & ~barred, due & ~barred, spare)


_C = TypeVar("_C", bound="Control")
_R = TypeVar("_R", bound="Control")


class Control(ABC):
    """Base of all controls.

    Class attributes:
        name: that it is registered under.
        summary: one line for listings.
        options: from which it is built, by name.
        needs: options one of which must be given for any other to be; by default the first.
        alone: options that need none of these.
        order: of masks. Each control gets the mask of those before it; the last has the last word.
            10 masks made before, 20 the source's codec, 30 a rate, 50 regions, 60 a refresh, 70 a
            guard, which samples what is left out.
        makes_whole: whether it may give an `Order`, so that a first pass over a file asks it, too.
        needs_motion: whether it needs the motion vectors of the source's codec.
        strict: whether what it leaves out is left out however it looks.
        unused: what a report says of it where it is not asked for.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 40
    makes_whole: ClassVar[bool] = False
    needs_motion: ClassVar[bool] = False
    strict: ClassVar[bool] = False
    unused: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_options(cls, given: Given) -> Control | None:
        """The control that options ask for, None if they do not.

        By default its fields are its options, in their order, and the first one asks for it.

        Raises:
            ValueError: a value is out of range.
            InputError: a file cannot be read.
        """
        values = [given[name] for name in cls.options]
        if not values or values[0] is None or values[0] is False:
            return None
        names = (each.name for each in fields(cls))  # type: ignore[arg-type]
        pairs = zip(names, values, strict=False)
        return cls(**{name: value for name, value in pairs if value is not None})

    def check(self, method: Method, controls: Controls) -> None:  # noqa: B027 - most fit any
        """Raise a ValueError if a method cannot be controlled like this, or not beside others."""

    def fitted(self, source: SourceFacts) -> Self:
        """The same for a source of such frames."""
        return self

    @property
    def unpruned(self) -> Control | None:
        """What of it concerns a stream that prunes nothing."""
        return None

    @property
    def gives_mask(self) -> bool:
        """Whether its masks take the place of the method's, whatever that finds."""
        return False

    @abstractmethod
    def start(self, facts: StreamFacts) -> RunningControl[Any]:
        """A fresh state for one stream."""


class Controls(tuple[Control, ...]):
    """Controls of a stream, at most one of a name, in their order: ``Controls(Gop(40), Cuts())``.

    Raises:
        ValueError: two are of one name.
    """

    __slots__ = ()

    def __new__(cls, *controls: Control) -> Self:
        names = [control.name for control in controls]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"a stream has one {twice} control, got {names.count(twice)}")
        return super().__new__(cls, sorted(controls, key=lambda each: (each.order, each.name)))

    def __getnewargs__(self) -> tuple[Control, ...]:
        return tuple(self)

    def find(self, kind: type[_R]) -> _R | None:
        """The control of a class, None if there is none."""
        return next((each for each in self if isinstance(each, kind)), None)

    def replaced(self, control: Control) -> Controls:
        """The same with a control instead of the one of its name, or added."""
        return Controls(*(each for each in self if each.name != control.name), control)

    def check(self, method: Method) -> None:
        """Raise a ValueError if a method cannot be controlled like this."""
        for each in self:
            each.check(method, self)

    def fitted(self, source: SourceFacts) -> Controls:
        """The same for a source of such frames.

        Raises:
            InputError: masks made before are of another grid.
        """
        return Controls(*(each.fitted(source) for each in self))

    @property
    def unpruned(self) -> Controls:
        """What of them concerns a stream that prunes nothing."""
        return Controls(*(kept for each in self if (kept := each.unpruned) is not None))


class RunningControl(Generic[_C]):
    """A control of one stream, called for every block in the order of these methods.

    By default each of them does nothing. `select` to `mask` are left out for a stream's first
    block, which is whole.

    Args:
        control: what is asked for.
    """

    def __init__(self, control: _C) -> None:
        self.control = control

    @property
    def looks_at_latents(self) -> bool:
        """Whether it needs the source's latents, all of them: a block is encoded before its mask is
        made, then."""
        return False

    def begin(self, block: ControlledBlock) -> Order | None:
        """Look at the source before anything is decided; may make the block whole."""
        return None

    def demands(self, block: ControlledBlock) -> Demands | None:
        """What must or must not be computed, asked after all have begun, if anybody wants it."""
        return None

    def select(self, block: ControlledBlock) -> Tensor | None:
        """A mask (1 or B, S, h, w) that takes the method's place; None leaves it to the method."""
        return None

    def view(self, source: SourceBlock) -> SourceBlock:
        """The source as the method is to see it."""
        return source

    def skip(self, block: ControlledBlock) -> None:
        """Look at a block that is whole in any case; called instead of `mask`."""

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        """The keep mask (B, S, h, w), from that of the controls before."""
        return keep

    def result(self, result: Tensor, previous: Tensor | None) -> None:
        """Take the block's result (B, S*N, P), and that of the frame before it, (B, N, P)."""

    def shows_source(self, block: ControlledBlock) -> Tensor | None:
        """Where the result shows the source, (S, h, w) bool; None: nowhere, in any block."""
        return None

    def end(self, block: ControlledBlock) -> None:
        """The block is done."""

    # beside the blocks

    def frame(self, motion: MotionMap | None) -> None:
        """What the source's codec says of the next frame that is pushed, None if nothing."""

    def outside(self, seconds: float) -> None:
        """Time that was spent outside of the stream on the block that is being made."""

    def use(self, method: Method) -> None:
        """Go on with another method."""

    def adopt(self, previous: RunningControl[Any]) -> RunningControl[Any]:
        """What to go on with, in a stream that had ``previous`` under this name.

        By default that, if the same is asked for, so that what did not change goes on as it was.
        """
        return previous if previous.control == self.control else self

    def report(self) -> dict[str, Any]:
        """What was asked for and what was done, as plain values; may wait for the device."""
        return {self.control.name: asdict(self.control)}  # type: ignore[call-overload]

    def telemetry(self) -> dict[str, Any] | None:
        """How it does, for those who watch a live stream; call it once after every block."""
        return None

    def warnings(self) -> list[str]:
        """Sentences on what went wrong in the stream."""
        return []


_REGISTRY: Registry[Control] = Registry("control")

#: Class decorator: makes a control known under a name.
register = _REGISTRY.register

#: All registered controls by name.
control_kinds = _REGISTRY.all
