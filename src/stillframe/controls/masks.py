"""Keep masks as a side-car file: one analysis for several prompts, or masks of other tools.

The format is described in ``docs/control.md``: a line that names it, a line of JSON, and for every
block its number of bytes (4, little-endian) and so many of zlib, which hold the mask's bits in the
order frame, row, column, eight a byte, the first the highest; and then, if anything moved, the
displacement of every token in that order. Knows bytes and files, not where masks come from.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    RunningControl,
    SourceFacts,
    StreamFacts,
    register,
)
from stillframe.controls.given import Given
from stillframe.errors import InputError
from stillframe.methods import Method
from stillframe.methods.prune import MOTIONS
from stillframe.options import Option
from stillframe.tokens.grid import Grid
from stillframe.untrusted.numbers import check_number, number_text
from stillframe.untrusted.small_files import parse_json, read_bounded
from stillframe.whole_file import write_whole

__all__ = ["GivenMasks", "MaskHeader", "MaskRecorder", "RunningMasks"]

_MAGIC = b"stillframe masks\n"
_VERSION = 3
_READ = (1, 2, 3)  # the first has no tolerance, the first two have no motion
# of all blocks together: some hundred bytes each, some thousand where things move
_MOST_BYTES = 2**28
_MOST_HEADER_BYTES = 2**16
_LARGEST_SIDE = 2**16
_SIZES = ("block_frames", "height", "width", "patch", "temporal")
# of a block: 64 frames of 8K in patches of 16 pixels, and more
_MOST_TOKENS = 2**24
_LENGTH = struct.Struct("<I")
# displacements: int16, x and y, in so many parts of a pixel
_PARTS = 16
_DISPLACEMENT = np.dtype("<i2")


@dataclass(frozen=True)
class MaskHeader:
    """What masks are of.

    Attributes:
        block_frames, height, width: S x h x w tokens of a block.
        patch: side of a token in pixels of the model's frames.
        temporal: pixel frames of a latent frame.
        frames: pixel frames of the video that the masks were made for.
        tolerance: they were made with, in grey levels; None if there was none.
        tau1, tau2: thresholds they were made with, None if there were none.
        motion: ``Method.motion`` that they were made with; None if they do not say.

    Raises:
        ValueError: for numbers out of their bounds.
    """

    block_frames: int
    height: int
    width: int
    patch: int
    temporal: int
    frames: int = 0
    tolerance: float | None = None
    tau1: float | None = None
    tau2: float | None = None
    motion: str | None = None

    def __post_init__(self) -> None:
        sizes = (self.block_frames, self.height, self.width, self.patch, self.temporal)
        if min(sizes) < 1 or self.frames < 0:
            raise ValueError(f"sizes of masks must be positive, got {sizes} for {self.frames}")
        for name, size in zip(_SIZES, sizes, strict=True):
            check_number(name, size, 1, _LARGEST_SIDE, whole=True)
        if self.block_frames * self.height * self.width > _MOST_TOKENS:
            raise ValueError(f"a block has at most {_MOST_TOKENS} patches, got {self}")
        check_number("frames", self.frames, 0, 10**12, whole=True)
        for name in ("tolerance", "tau1", "tau2"):
            if getattr(self, name) is not None and getattr(self, name) != math.inf:
                check_number(name, getattr(self, name), 0, 10**9)
        if self.motion not in (None, *MOTIONS):
            raise ValueError(f"motion of masks is one of {', '.join(MOTIONS)}")

    @property
    def moves(self) -> bool:
        """Whether what they leave out may have moved."""
        return self.motion not in (None, "off")

    @property
    def grid(self) -> Grid:
        """Of a block."""
        return Grid(self.block_frames, self.height, self.width)

    def __str__(self) -> str:
        return (
            f"{self.block_frames}x{self.height}x{self.width} patches of {self.patch} pixels, "
            f"{self.temporal} frames each"
        )


@register("masks")
@dataclass(frozen=True)
class GivenMasks(Control):
    """Keep masks of a whole video, compressed.

    Attributes:
        header: what they are of.
        blocks: zlib streams, see the module.
    """

    summary = "masks of another run instead of the method's"
    options: ClassVar = {
        "masks_in": Option(
            "path", "Recompute what this file of masks says.", metavar="FILE",
            group="What is recomputed",
        ),
        "masks_out": Option(
            "path", "Write which patches were recomputed.", metavar="FILE",
            group="What is recomputed",
        ),
    }  # fmt: skip
    alone = ("masks_out",)
    unused: ClassVar = {"masks_in": False}
    order = 10
    strict = True

    header: MaskHeader
    blocks: tuple[bytes, ...]

    @classmethod
    def from_options(cls, given: Given) -> GivenMasks | None:
        path = given["masks_in"]
        return None if path is None else cls.read(path)

    def block(self, number: int) -> Tensor:
        """The mask of a block, (1, S, h, w) bool.

        Raises:
            InputError: there is none, or it is damaged.
        """
        bits, _ = self._record(number)
        keep = np.unpackbits(np.frombuffer(bits, np.uint8), count=self.header.grid.tokens)
        return torch.from_numpy(keep.astype(np.bool_)).view(1, *astuple(self.header.grid))

    def motion(self, number: int) -> Tensor | None:
        """Displacements (x, y) in pixels of a block, (1, S, h, w, 2): where what was reused comes
        from, in the latent frame before, less where it is; None where nothing moved.

        They are for whoever reads the file. A stream with these masks finds its own.

        Raises:
            InputError: there is no such block, or it is damaged.
        """
        _, data = self._record(number)
        if not data:
            return None
        parts = np.frombuffer(data, _DISPLACEMENT).astype(np.float32) / _PARTS
        return torch.from_numpy(parts).view(1, *astuple(self.header.grid), 2)

    def _record(self, number: int) -> tuple[bytes, bytes]:
        """The bits of a block's mask, and the bytes of its displacements or none."""
        if number >= len(self.blocks):
            raise InputError(
                f"there are masks of {len(self.blocks)} blocks, and the video has more"
            )
        tokens = self.header.grid.tokens
        size = -(-tokens // 8)
        sizes = (size, size + tokens * 2 * _DISPLACEMENT.itemsize)[: 1 + self.header.moves]
        try:
            unpacker = zlib.decompressobj()
            packed = unpacker.decompress(self.blocks[number], sizes[-1] + 1)
        except zlib.error as error:
            raise InputError(f"the mask of block {number} is damaged: {error}") from error
        if len(packed) not in sizes:
            told = " or ".join(map(str, sizes))
            raise InputError(f"the mask of block {number} is damaged: it has not {told} bytes")
        if not unpacker.eof:
            raise InputError(f"the mask of block {number} is damaged: it is cut off")
        return packed[:size], packed[size:]

    def check(self, method: Method, controls: Controls) -> None:
        if not method.prunes:
            raise ValueError(f"method {method.name!r} computes everything: it cannot have masks")
        if self.header.moves and _more(self.header.motion, method.motion):
            raise ValueError(
                f"the masks were made with motion {self.header.motion!r}: with {method.motion!r} "
                "what they leave out would stand still where it moves"
            )

    def fitted(self, source: SourceFacts) -> GivenMasks:
        """The same, if it is of such blocks; length and thresholds may differ."""
        grid = source.grid
        if grid is not None and source.timeline is not None:
            sizes = (grid.frames, grid.height, grid.width, source.patch, source.timeline.temporal)
            wanted = MaskHeader(*sizes)
            if str(wanted) != str(self.header):
                raise InputError(f"the masks are of {self.header}, and the video has {wanted}")
        return self

    @property
    def gives_mask(self) -> bool:
        return True

    def start(self, facts: StreamFacts) -> RunningMasks:
        return RunningMasks(self)

    def write(self, path: str | PathLike[str]) -> None:
        """Write the side-car; the file is complete or not there.

        Raises:
            OutputError: it cannot be written.
        """
        head = {"version": _VERSION, "blocks": len(self.blocks), **asdict(self.header)}
        records = (_LENGTH.pack(len(block)) + block for block in self.blocks)
        write_whole(path, (_MAGIC + json.dumps(head).encode() + b"\n", *records))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> GivenMasks:
        """Read a side-car.

        Raises:
            InputError: it cannot be read, is of another format or version, or incomplete.
        """
        try:
            data = read_bounded(path, _MOST_BYTES)
        except OSError as error:
            raise InputError(f"{path} could not be read: {error.strerror}") from error
        if not data.startswith(_MAGIC):
            raise InputError(f"{path} ({len(data)} bytes) is not a file of masks")
        line, _, body = data[len(_MAGIC) :].partition(b"\n")
        try:
            head: dict[str, Any] = parse_json(line[: _MOST_HEADER_BYTES + 1])
            version, count = head.pop("version"), head.pop("blocks")
            if version not in _READ:
                told = number_text(version)
                raise InputError(f"{path} has masks of version {told}, not up to {_VERSION}")
            header = MaskHeader(**head)
            blocks = tuple(_records(body))
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise InputError(f"{path} ({len(data)} bytes) is damaged: {_why(error)}") from error
        if len(blocks) != count:
            told = number_text(count)
            raise InputError(f"{path} is damaged: it has {len(blocks)} of {told} blocks")
        return cls(header, blocks)


class RunningMasks(RunningControl[GivenMasks]):
    """Masks of a stream's blocks, one after the other."""

    def __init__(self, control: GivenMasks) -> None:
        super().__init__(control)
        self._number = 0

    def begin(self, block: ControlledBlock) -> None:
        grid = self.control.header.grid
        if grid != block.grid:
            raise ValueError(f"the masks are of {grid}, and the stream has {block.grid}")

    def select(self, block: ControlledBlock) -> Tensor:
        return self.control.block(self._number)

    def end(self, block: ControlledBlock) -> None:
        self._number += 1

    def report(self) -> dict[str, Any]:
        return {"masks_in": True}


def _more(motion: str | None, other: str) -> bool:
    """Whether a motion reuses what another does not."""
    return motion is not None and MOTIONS.index(motion) > MOTIONS.index(other)


def _why(error: Exception) -> str:
    """What is wrong with the content, without a word of Python's."""
    if isinstance(error, ValueError):
        return str(error)
    return (
        "it cuts a block off"
        if isinstance(error, struct.error)
        else "its header is of other fields"
    )


def _records(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size + length
        if at > len(body):
            raise ValueError(f"its last block lacks {at - len(body)} bytes")
        yield body[at - length : at]


class MaskRecorder:
    """Collects the masks of a stream's blocks as they are done, some hundred bytes each."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._shape: tuple[int, ...] = ()
        self._moves = False

    def add(self, keep: Tensor, motion: Tensor | None = None) -> None:
        """Take the mask of the next block, (1, S, h, w) bool.

        Args:
            motion: displacements (1, S, h, w, 2), see `GivenMasks.motion`; they are rounded to 1/16
                of a pixel, and end at 2,048 pixels.
        """
        self._shape = tuple(keep.shape[1:])
        data = np.packbits(keep.cpu().numpy().reshape(-1)).tobytes()
        if motion is not None:
            least, most = np.iinfo(_DISPLACEMENT).min, np.iinfo(_DISPLACEMENT).max
            parts = (motion.float() * _PARTS).round().clamp(least, most).cpu().numpy()
            moved = bool(parts.any())
            self._moves |= moved
            data += parts.astype(_DISPLACEMENT).tobytes() if moved else b""
        self._blocks.append(zlib.compress(data, 9))

    def masks(self, header: MaskHeader) -> GivenMasks:
        """All of them.

        Raises:
            ValueError: the header does not fit.
        """
        if self._blocks and self._shape != astuple(header.grid):
            raise ValueError(f"the blocks are of {self._shape} tokens, not {header.grid}")
        if self._moves and not header.moves:
            raise ValueError(f"in blocks with motion {header.motion!r} nothing can have moved")
        return GivenMasks(header, tuple(self._blocks))
