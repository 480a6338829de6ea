"""The source of the next block: latents that are given, or frames that are encoded when due.

A mask that goes by pixels needs no latents, so only what it wants is encoded.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from stillframe.tokens.grid import patchify

__all__ = ["IncomingBlock"]


class IncomingBlock:
    """A block's source.

    Args:
        pixels: see ``SourceBlock.pixels``.
        patch: side of a token in latent pixels.
        encode: makes its latents (B, C, S, h, w), of which some may be known not to be needed, see
            ``StreamingAutoencoder.encode_block``; called once.
    """

    def __init__(
        self, pixels: Tensor | None, patch: int, encode: Callable[[Tensor | None], Tensor]
    ) -> None:
        self.pixels = pixels
        self._patch, self._encode = patch, encode
        self._latents: Tensor | None = None
        self._tokens: Tensor | None = None

    @property
    def latents(self) -> Tensor:
        """(B, C, S, h, w); encoded whole, if nobody has asked for less."""
        if self._latents is None:
            self._latents = self._encode(None)
        return self._latents

    def tokens(self, changed: Tensor | None = None) -> Tensor:
        """(B, S*N, P) float32.

        Args:
            changed: (B, S, h, w) bool, latent pixels that are needed; None: all. It counts only
                where nothing has been encoded yet.
        """
        if self._latents is None:
            self._latents = self._encode(changed)
        if self._tokens is None:
            self._tokens = patchify(self._latents.float(), self._patch)
        return self._tokens
