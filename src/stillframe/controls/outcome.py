"""What controls make of a block, and what they did to a stream; not which controls there are."""

from __future__ import annotations

from typing import NamedTuple

from stillframe.controls.codec import Agreement

__all__ = ["Happened", "Order"]


class Order(NamedTuple):
    """What becomes of a block.

    Attributes:
        whole: every token is computed.
        forget: the context is, too: the block is computed as a stream's first one.
    """

    whole: bool
    forget: bool


class Happened(NamedTuple):
    """What controls did to a stream.

    Attributes:
        cuts: latent frames, from 0, with which a scene begins.
        whole_blocks: blocks made whole: by the group of pictures, and by cuts.
        refreshed_tokens: tokens computed for the refresh alone.
        oldest: largest number of blocks that any place was not recomputed for, None without a
            refresh.
        agreement: of the source's codec with the method, None without that detector.
    """

    cuts: tuple[int, ...]
    whole_blocks: int
    refreshed_tokens: int
    oldest: int | None
    agreement: Agreement | None = None
