"""A control: what decides about a block's mask beside the method. One file each.

A control is a frozen dataclass: its fields say what is asked for. Its options, declared beside
them, become options of the command line and fields of the server's messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self

from stillframe.controls.mask_video import MaskVideo
from stillframe.controls.shapes import Painting
from stillframe.options import Option
from stillframe.registry import Registry

__all__ = ["ControlFiles", "Given", "OneControl", "control_kinds", "register"]


class ControlFiles(Protocol):
    """Reads the files that options name, and the video that is edited, when they are asked for."""

    def region(self, path: str) -> Painting | MaskVideo:
        """What is white in a picture or a video.

        Raises:
            InputError: it is neither, or cannot be read.
        """
        ...

    def scenes(self) -> tuple[int, ...]:
        """Frames of the video, from 0, with which a scene begins.

        Raises:
            InputError: they cannot be looked for.
        """
        ...


@dataclass(frozen=True)
class Given:
    """Values of options, by name.

    Attributes:
        values: plain values within their bounds; None, like one that is missing, is not given.
        named: how whoever gave an option knows it: ``--gop`` for "gop".
        files: reads what options name; None where no files may be read.
    """

    values: Mapping[str, Any]
    named: Callable[[str], str] = str
    files: ControlFiles | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def reading(self, name: str) -> ControlFiles:
        """What reads the file that an option names; a ValueError where none may be read."""
        if self.files is None:
            raise ValueError(f"{self.named(name)} cannot name a file here, got {self[name]!r}")
        return self.files

    def check(self, kind: type[OneControl]) -> None:
        """Raise a ValueError if options of ``kind`` are given, but none that they need."""
        given = {
            name
            for name, option in kind.options.items()
            if self[name] not in (None, option.default) and name not in kind.alone
        }
        needs = kind.needs or tuple(kind.options)[:1]
        if given and not given & set(needs):
            names = [name for name in kind.options if name in given]
            verb = "needs" if len(names) == 1 else "need"
            raise ValueError(f"{self._list(names, 'and')} {verb} {self._list(needs, 'or')}")

    def _list(self, names: Sequence[str], word: str) -> str:
        *most, last = [self.named(name) for name in names]
        return f"{', '.join(most)} {word} {last}" if most else last


class OneControl:
    """Base of all controls.

    Class attributes:
        name: that it is registered under.
        summary: one line for listings.
        options: from which it is built, by name.
        needs: options one of which must be given for any other to be; by default the first.
        alone: options that need none of these.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_options(cls, given: Given) -> Self | None:
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


_REGISTRY: Registry[OneControl] = Registry("control")

#: Class decorator: makes a control known under a name.
register = _REGISTRY.register

#: All registered controls by name.
control_kinds = _REGISTRY.all
