"""``stillframe models check``: whether a model that was fetched is what it should be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.options import HARDWARE, SIZE, VAE
from stillframe.cli.screen import say
from stillframe.options import Option

__all__ = ["check"]

_OPTIONS = {
    "out": Option(
        "path",
        "Write the pictures here, as PNG; by default NAME-check.png in this folder.",
        metavar="FILE",
        short="o",
    ),
    **SIZE,
    **HARDWARE,
    **VAE,
}


@takes(_OPTIONS)
def check(
    name: Annotated[str, typer.Argument(help="A recipe's name, a folder, or a hub id.")],
    given: Given,
) -> None:
    """Say whether a model's files are what is expected, and run a picture and a block through it.

    These lines and the pictures are what to send to us: docs/tried-it.md.
    """
    from stillframe.errors import ModelError
    from stillframe.jobs.check import check_model, write_thumbnail

    if given["threads"] is not None:
        import torch

        torch.set_num_threads(given["threads"])
    safe = re.sub(r"[^\w.-]+", "-", Path(name).name)
    out = given["out"] or Path(f"{safe}-check.png")
    found = check_model(
        name,
        vae=given["vae"],
        device=given["device"],
        dtype=given["dtype"],
        height=given["height"],
        width=given["width"],
    )
    for what, value in found.rows:  # as lines, which can be pasted anywhere
        say(f"{what}: {value}")
    write_thumbnail(found, out)
    say(f"{out}: a picture, the same through the autoencoder, and the block's last frame")
    if found.doubts:
        raise ModelError("; ".join(found.doubts))
    say(f"{name} is sane: its numbers are in range; whether it looks right, the pictures show")
