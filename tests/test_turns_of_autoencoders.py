"""Streams through one autoencoder that take turns on its maps make what each makes alone.

On a CPU a graph is the work of the stream that it was captured in, done again: it has to do with
the buffers alone, whoever comes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_fused_autoencoder import WIDTHS, H, W, autoencoder
from torch import Tensor

from stillframe.autoencoders import tiny_fused
from stillframe.autoencoders.streaming import TinyStream
from stillframe.autoencoders.tiny_blocks import DECODING, ENCODING, WholeBlocks
from stillframe.autoencoders.tiny_fused import FusedDecoder, FusedEncoder
from stillframe.autoencoders.tiny_stream import captured_coders
from stillframe.kernels import graphs
from stillframe.kernels.graphs import Graphs, Replay

ORDER = [0, 1, 2, 2, 0, 0, 1, 2, 1, 0, 1, 2, 2, 1, 0]
SHARES = [None, 0.3, 0.06, 0.03, 0.1]


def again(work: Callable[[], Any]) -> tuple[Any, Replay]:
    return work(), work


@pytest.fixture(name="capture")
def capture_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has autoencoders share and capture from now on."""

    def capture() -> None:
        monkeypatch.setattr(graphs, "capture", again)
        monkeypatch.setattr(tiny_fused, "captures_on", lambda _: True)

    return capture


def changed(number: int, block: int, size: tuple[int, ...]) -> Tensor | None:
    share = SHARES[(number + block) % 5] if block else None
    generator = torch.Generator().manual_seed(10 * number + block)
    return None if share is None else torch.rand(*size, generator=generator) < share


Code = Callable[[int, int], list[Tensor]]


def compared(order: Sequence[int], fresh: Callable[[], Code], capture: Callable[[], None]) -> None:
    """``fresh`` makes what codes a block of a stream by their numbers, on a fresh autoencoder."""

    def run(numbers: Sequence[int]) -> dict[int, list[Tensor]]:
        code, found = fresh(), dict[int, list[Tensor]]()
        for number in numbers:
            known = found.setdefault(number, [])
            known += code(number, len(known) // 2)
        return found

    count = order.count(0)
    alone = {number: run([number] * count)[number] for number in set(order)}
    capture()
    captures = Graphs.captures
    together = run(order)
    assert Graphs.captures > captures
    for number, expected in alone.items():
        assert len(expected) == 2 * count
        assert all(map(torch.equal, together[number], expected)), number


@pytest.mark.parametrize(
    "options", WIDTHS, ids=["published kind", "wan 2.2 kind", "patches", "bundled"]
)
def test_the_tiny_one(options: dict[str, Any], capture: Callable[[], None]) -> None:
    side = options.get("patch_size", 1) * 2 ** options.get("spatial_stages", 3)
    channels = options.get("latent_channels", 16)

    def fresh() -> Code:
        vae = autoencoder(options)
        coders = dict[int, tuple[FusedEncoder, FusedDecoder]]()

        def code(number: int, block: int) -> list[Tensor]:
            if number not in coders:
                coders[number] = FusedEncoder(vae), FusedDecoder(vae)
            generator = torch.Generator().manual_seed(100 * number + block)
            cells = changed(number, block, (1, 2, H, W))
            frames = torch.rand(1, 8, 3, side * H, side * W, generator=generator)
            latents = torch.randn(1, channels, 2, H, W, generator=generator)
            encode, decode = coders[number]
            return [encode(frames, cells), decode(latents, cells)]

        return code

    compared(ORDER, fresh, capture)


def streams(vae: Any, kind: type[Any], size: tuple[int, int]) -> Code:
    """Codes blocks by streams through an autoencoder."""
    opened = dict[int, Any]()

    @torch.no_grad()
    def code(number: int, block: int) -> list[Tensor]:
        stream = opened[number] = opened.get(number) or kind(vae, 3)
        generator = torch.Generator().manual_seed(100 * number + block)
        frames = torch.rand(1, stream.next_frames, 3, *size, generator=generator)
        (taken,) = stream.take(frames)
        cells = changed(number, block, (1, 3, size[0] // 8, size[1] // 8))
        latents = stream.encode_block(taken, cells)
        given = torch.randn(latents.shape, generator=generator)
        return [latents, stream.decode(given, cells)]

    return code


class Stepped(TinyStream):
    """As on a GPU where there are no kernels for its numbers: its own modules are captured."""

    def reset(self) -> None:
        super().reset()
        vae, most = self.vae, 2**21
        if graphs.capture is again:
            self._encoder, self._decoder = captured_coders(vae)
        else:
            self._encoder = WholeBlocks(vae.encode_chunk, ENCODING, most)
            self._decoder = WholeBlocks(vae.decode_chunk, DECODING, most)


def test_one_that_is_not_fused(capture: Callable[[], None]) -> None:
    compared(ORDER, lambda: streams(tiny.autoencoder(), Stepped, (32, 48)), capture)


def test_a_second_stream_captures_nothing(capture: Callable[[], None]) -> None:
    capture()
    vae = autoencoder(WIDTHS[0])
    for number in range(3):
        captures, decoder = Graphs.captures, FusedDecoder(vae)
        for block in range(6):
            decoder(torch.randn(1, 16, 2, H, W), changed(number, block, (1, 2, H, W)))
        del decoder
        gc.collect()
        assert (Graphs.captures > captures) == (number == 0)


def test_weights_that_changed_are_no_more_captured(capture: Callable[[], None]) -> None:
    capture()
    vae = autoencoder(WIDTHS[0])
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 1, 8, 3, 8 * H, 8 * W, generator=generator)

    def coded() -> Tensor:
        encoder = FusedEncoder(vae)
        return torch.cat([encoder(block, None) for block in blocks])

    before = coded()
    assert torch.equal(coded(), before)
    with torch.no_grad():
        for weight in vae.encoder.parameters():
            weight.mul_(1.1)
    after = coded()
    assert not torch.equal(after, before)
    with torch.no_grad():
        for weight in vae.encoder.parameters():
            weight.add_(0)
    assert torch.equal(coded(), after)
