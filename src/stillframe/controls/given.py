"""Plain values of options, and the files that they name, from which controls are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stillframe.controls.mask_video import MaskVideo
from stillframe.controls.shapes import Painting
from stillframe.options import Option

__all__ = ["ControlFiles", "Given"]


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

    def check(
        self, options: Mapping[str, Option], needs: Sequence[str], alone: Sequence[str]
    ) -> None:
        """Refuse options of a control that are given without those that ask for it.

        Args:
            options: of the control.
            needs: options one of which must be given for any other to be.
            alone: options that need none of these.

        Raises:
            ValueError: naming both.
        """
        given = [
            name
            for name, option in options.items()
            if self[name] not in (None, option.default) and name not in alone
        ]
        if given and not set(given) & set(needs):
            verb = "needs" if len(given) == 1 else "need"
            raise ValueError(f"{self._list(given, 'and')} {verb} {self._list(needs, 'or')}")

    def _list(self, names: Sequence[str], word: str) -> str:
        *most, last = [self.named(name) for name in names]
        return f"{', '.join(most)} {word} {last}" if most else last
