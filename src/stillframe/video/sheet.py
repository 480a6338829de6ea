"""Pictures side by side in one PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillframe.whole_file import write_whole

__all__ = ["write_sheet"]

Pixels = NDArray[np.uint8]


def write_sheet(rows: Sequence[Sequence[Pixels]], target: Path) -> None:
    """Write rows of pictures, uint8 (H, W, 3) of one size, as a PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "PNG")
    write_whole(target, [content.getvalue()])
