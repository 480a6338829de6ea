"""Pruning in diffusers' own video pipelines: ``apply(pipe, video=...)``, ``remove(pipe)``.

A stock pipeline denoises all frames of a clip at once. Tokens whose pixels look like those of
another frame at the same place are not computed: that frame's result stands for theirs, and they
are there for attention as keys and values that a stand-in makes (`standin`).
"""

from stillframe.hooks.applying import apply
from stillframe.hooks.families import (
    Family,
    Processor,
    TransformerFamily,
    families,
    find_family,
    register,
)
from stillframe.hooks.hold import hold
from stillframe.hooks.session import Session, remove
from stillframe.hooks.standin import Neighbour, Refresh, Source, StandIn, standins
from stillframe.hooks.windows import windows

__all__ = [
    "Family",
    "Neighbour",
    "Processor",
    "Refresh",
    "Session",
    "Source",
    "StandIn",
    "TransformerFamily",
    "apply",
    "families",
    "find_family",
    "hold",
    "register",
    "remove",
    "standins",
    "windows",
]
