"""Every kernel against its reference on random rows; run by test_fused_kernels.py.

Widths are no powers of 2, rows are strided views, some slots take entries that others overwrite.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from tests.causal_kernels import compare_causal
from tests.map_kernels import compare_maps
from tests.moving_kernels import compare_moving
from torch import Tensor

from stillframe.detection.pixels import Anchors, VisibleChange, appearance, changed
from stillframe.kernels import flow as flow_kernels
from stillframe.kernels import placing
from stillframe.kernels import visible as visible_kernels
from stillframe.kernels.attention import join, join_reference
from stillframe.kernels.norms import (
    Affine,
    Rows8,
    gelu8,
    residual_norm,
    residual_norm8,
    residual_norm_reference,
)
from stillframe.kernels.placing import (
    place,
    place_reference,
    rotate_rows,
    rotate_rows_reference,
    rotated_queries,
    rotated_queries_reference,
)
from stillframe.kernels.rows import Displaced, Entries, Sources, Table, packed
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

FP8 = torch.float8_e4m3fn
WIDTH, HEAD, KEPT, FRAMES, PLACES = 48, 12, 7, 3, 5
SLOTS = FRAMES * PLACES
EPS = 1e-6


class Compare:
    """Counts comparisons; raises at the first difference beyond a dtype's rounding."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        # float32: other order of sums; bfloat16: one rounding that falls the other way
        self.tolerance = 2e-6 if dtype == torch.float32 else 2**-6
        self.count = 0

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.device, self.dtype)

    def equal(self, kernel: Tensor, reference: Tensor) -> None:
        limit = self.tolerance
        torch.testing.assert_close(kernel.float(), reference.float(), atol=limit, rtol=limit)
        self.count += 1

    def rounded(self, mine: Rows8, exact: Tensor) -> None:
        """Every number within a step of FP8 of what it stands for: 3 bits, or the least step."""
        kept, exact = mine.rows.float() * mine.scale, exact.float()
        step = torch.maximum(exact.abs() / 8, mine.scale * 2**-8)
        near = (((kept - exact).abs() / step) < 1).float().mean()
        # the interpreter's own conversion has a flaw at carries
        assert near == 1 if self.device == "cuda" else near > 0.9
        largest = mine.rows.float().abs().amax(1)
        assert ((largest > 440) & (largest <= 448)).all()
        self.count += 1


def compare_norms(c: Compare) -> None:
    hidden, added, gate = c.random(KEPT, WIDTH), c.random(KEPT, WIDTH), c.random(WIDTH).float()
    modulated = Affine(c.random(WIDTH).float(), c.random(WIDTH).float(), 1)
    weighted = Affine(c.random(WIDTH), c.random(WIDTH), 0)
    for branch, factor, affine in (
        (added, gate, modulated),
        (added, None, weighted),
        (None, None, None),
    ):
        mine, other = hidden.clone(), hidden.clone()
        out = residual_norm(mine, branch, factor, affine, EPS)
        c.equal(out, residual_norm_reference(other, branch, factor, affine, EPS))
        c.equal(mine, other)
    for branch, factor, affine in ((added, gate, modulated), (added, None, weighted)):
        rows8 = residual_norm8(hidden.clone(), branch, factor, affine, EPS)
        c.rounded(rows8, residual_norm_reference(hidden.clone(), branch, factor, affine, EPS))
    c.rounded(gelu8(3 * hidden), F.gelu(3 * hidden.float(), approximate="tanh"))


def table(c: Compare, rows: int) -> Table:
    angle = 6 * torch.rand(rows, HEAD // 2)
    return Table(angle.cos().to(c.device), angle.sin().to(c.device))


def compare_queries(c: Compare) -> None:
    queries = c.random(KEPT, 3 * WIDTH)[:, WIDTH : 2 * WIDTH]
    weight = c.random(WIDTH).abs() + 0.5
    slots = torch.randperm(SLOTS)[:KEPT].sort().values.int().to(c.device)
    turned = table(c, SLOTS)
    for norm in (weight, None):
        for rotation, at in ((turned, slots), (turned, None), (None, None)):
            arguments = (queries, norm, rotation, at, EPS)
            c.equal(rotated_queries(*arguments), rotated_queries_reference(*arguments))


def sources(c: Compare, nowhere: bool) -> Sources:
    """Some slots kept; the others take another frame's entry of their place, or nothing."""
    new = torch.full((SLOTS,), -1)
    new[torch.randperm(SLOTS)[:KEPT].sort().values] = torch.arange(KEPT)
    provider = torch.randint(0, FRAMES, (FRAMES, PLACES))
    old = provider * PLACES + torch.arange(PLACES)
    out = torch.arange(SLOTS).view(FRAMES, PLACES).clone()
    out[0, 0] = -1
    if nowhere:
        old[1] = -1
    shaped = (new.view(FRAMES, PLACES), old, out)
    return Sources(*(x.to(c.device, torch.int32) for x in shaped))


def compare_places(c: Compare, fp8: bool) -> None:
    # what is exact in FP8 survives any rounding: the interpreter's own has a flaw at carries
    projected = c.random(KEPT, 3 * WIDTH)
    if fp8:
        projected = projected.to(FP8).to(c.dtype)
    _, key, value = projected.split(WIDTH, 1)
    weight = None if fp8 else c.random(WIDTH).abs() + 0.5
    offset = torch.tensor(2 * SLOTS, device=c.device)

    def store() -> Tensor:
        rows = c.random(4 * SLOTS, WIDTH)
        return rows.to(FP8).view(torch.uint8) if fp8 else rows

    entries = store(), store()
    turned = table(c, SLOTS)
    for nowhere in (False, True):
        at = sources(c, nowhere)
        for takes, keeps, both in ((1, 1, 1), (1, 0, 0), (0, 1, 1), (0, 0, 0), (1, 1, 0)):
            results = []
            for run in (place, place_reference):
                keys, values = (x.clone() for x in entries)
                taken = Entries(keys, values, offset) if takes else None
                kept = Entries(keys, values if both else None, offset) if keeps else None
                rows = tuple(torch.zeros(SLOTS + 9, WIDTH).to(c.device, c.dtype) for _ in "kv")
                run(key, value, weight, EPS, turned, at, (rows[0], rows[1]), taken, kept)
                shown = [x.view(FP8).float() if fp8 else x for x in (keys, values)]
                results.append([*rows, *shown])
            for mine, other in zip(*results, strict=True):
                c.equal(mine, other)


def displaced_sources(c: Compare) -> Sources:
    """Some slots kept; every second of the others takes an entry of another place."""
    at, slots = sources(c, False), torch.arange(SLOTS).view(FRAMES, PLACES)
    frame, step = torch.randint(0, FRAMES, slots.shape), torch.randint(1, PLACES, slots.shape)
    elsewhere = (frame * PLACES + (slots % PLACES + step) % PLACES).to(c.device, torch.int32)
    return at._replace(old=torch.where((slots % 2 == 0).to(c.device), elsewhere, at.old))


def compare_displaced(c: Compare, fp8: bool) -> None:
    """Copied first, entries of other places are what they were before any was overwritten."""
    _, key, value = c.random(KEPT, 3 * WIDTH).to(FP8).to(c.dtype).split(WIDTH, 1)
    offset, zero = (torch.tensor(n, device=c.device) for n in (SLOTS, 0))
    entries = c.random(2, 2 * SLOTS, WIDTH)
    stored = entries.to(FP8).view(torch.uint8) if fp8 else entries
    turned, at = table(c, SLOTS), displaced_sources(c)
    for both in (True, False):
        results = []
        for run in (place, place_reference):
            keys, values = stored.clone()
            taken = Entries(keys, values, offset)
            kept = taken if both else taken._replace(values=None)
            rows = c.random(2, SLOTS + 9, WIDTH) * 0
            copies = torch.zeros_like(stored[:, :SLOTS])
            scratch = Entries(copies[0], copies[1], zero)
            displaced, near = Displaced.like(at, scratch), Sources(*(x.clone() for x in at))
            displaced.split(near)
            assert (displaced.rows >= 0).any()
            assert ((near.old >= 0) & (near.new < 0)).any()
            given = (key, value, None, EPS, turned)
            if run is place:
                place(*given, near, (rows[0], rows[1]), taken, kept, displaced)
            else:
                place_reference(*given, at, (rows[0], rows[1]), taken, kept)
            results.append([*rows, *(x.view(FP8).float() if fp8 else x for x in (keys, values))])
        for mine, other in zip(*results, strict=True):
            c.equal(mine, other)
        # entries that only move keep every bit
        for mine, other in zip(results[0][2:], results[1][2:], strict=True):
            moved = SLOTS + at.out[(at.new < 0) & (at.out >= 0)].long()
            assert torch.equal(mine[moved], other[moved])


def compare_rows(c: Compare) -> None:
    raw, turned = c.random(2, 10, WIDTH), table(c, 8)
    mine = torch.zeros(2, 20, WIDTH).to(c.device, c.dtype)
    other = mine.clone()
    rotate_rows(raw, turned, mine, 4)
    rotate_rows_reference(raw, turned, other, 4)
    c.equal(mine, other)
    stored = packed(raw, torch.empty(0, dtype=torch.uint8))
    for by_hand in (False, True):
        with fp8_by_hand(by_hand):
            rotate_rows(stored, turned, mine, 4)
        rotate_rows_reference(stored, turned, other, 4)
        c.equal(mine, other)


def fp8_by_hand(asked: bool) -> Any:
    """As on cards that do not know the format."""
    bits = {0: 0, 1: 2, 2: 2}
    usual = placing._fp8
    return patch.object(placing, "_fp8", (lambda x: bits[usual(x)]) if asked else usual)


def compare_fp8_by_hand(c: Compare) -> None:
    """Every number of FP8, and those between two of them, through `place` and back."""
    held = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    between = torch.cat([held, (held[1:] + held[:-1]) / 2, held * 1.01, held.new_tensor([500.0])])
    numbers = torch.cat([between, -between])
    key = numbers[: len(numbers) // WIDTH * WIDTH].view(-1, WIDTH).to(c.device)
    rows, device = len(key), c.device
    turned = Table(torch.ones(rows, HEAD // 2).to(device), torch.zeros(rows, HEAD // 2).to(device))
    own = torch.arange(rows, dtype=torch.int32, device=device)[None]
    nowhere, zero = torch.full_like(own, -1), torch.zeros((), dtype=torch.int64, device=device)
    results = []
    for by_hand in (False, True):
        stores = torch.zeros(2, rows, WIDTH, dtype=torch.uint8).to(device)
        kept = Entries(stores[0], stores[1], zero)
        placed = torch.zeros_like(key), torch.zeros_like(key)
        with fp8_by_hand(by_hand):
            place(key, key, None, 0.0, turned, Sources(own, nowhere, own), placed, None, kept)
            place(key, key, None, 0.0, turned, Sources(nowhere, own, nowhere), placed, kept, None)
        results.append((*stores, *placed))
    expected = packed(key, results[1][0])
    assert torch.equal(results[1][0], expected)
    assert torch.equal(results[1][2], expected.view(FP8).float())
    if c.device != "cpu":  # the interpreter rounds halves in its own way
        assert all(map(torch.equal, *results))


def compare_joins(c: Compare) -> None:
    # strides as attention kernels leave them: rows before heads
    parts = c.random(3, KEPT, WIDTH // HEAD, HEAD).transpose(1, 2)
    logs = 3 * torch.randn(3, WIDTH // HEAD, KEPT, device=c.device)
    c.equal(join(parts, logs), join_reference(parts, logs))


def video(c: Compare, grid: Grid, times: int, blocks: int, noise: float, batch: int) -> Tensor:
    """(B, (1 + blocks*S)*t, 3, H, W) in [0, 1]: a picture, places that change, noise in levels."""
    places, frames = (grid.height, grid.width), (1 + blocks * grid.frames) * times
    sides = places[0] * 16, places[1] * 16
    picture = 0.2 + 0.6 * torch.rand(batch, 1, 3, *sides)
    steps = torch.rand(batch, frames, 3, *places) * (torch.rand(batch, frames, 1, *places) < 0.1)
    moved = F.interpolate(steps.cumsum(1).flatten(0, 1), sides).view(batch, frames, 3, *sides)
    shimmer = torch.randn(batch, frames, 3, *sides) * noise / 255
    pixels = picture + 0.05 * moved + 0.01 * torch.rand(()) + shimmer
    return pixels.to(c.device, c.dtype)


def compare_seen(c: Compare, grid: Grid, times: int, noise: float, batch: int) -> Tensor:
    """A stream's blocks by kernels and in torch: differences, masks, looks, anchors, staleness.
    Returns the masks."""
    pixels, size = video(c, grid, times, 3, noise, batch), grid.frames * times
    tokens = torch.zeros(batch, grid.frames, grid.frame_tokens, 4, device=c.device)

    def stream(kernels: bool) -> list[tuple[Tensor, ...]]:
        change, anchors = VisibleChange(3.0), Anchors()
        found: list[tuple[Tensor, ...]] = []
        for k in range(3):
            now = pixels[:, k * size : (k + 1) * size + times]
            assert visible_kernels.supported(now, grid.frames, grid.height, grid.width) == kernels
            # the first block has nothing before it, and nothing that was computed
            block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid, now, anchors.pixels)
            if k == 1:
                pairs = None
                keep = change.mask(block._replace(leniency=0.9))
            else:
                pairs = change(block)
                keep = changed(pairs)[0]
            stale = anchors.advance(now, keep)
            assert anchors.pixels is not None
            assert change._memory is not None
            shown = keep if pairs is None else pairs
            look = appearance(now, block)
            found.append((keep, shown, change._memory[0], look, anchors.pixels, stale))
        return found

    mine = stream(True)
    with patch.object(visible_kernels, "supported", lambda *_: False):
        reference = stream(False)
    assert (reference[-1][2].amax() > 0) == (noise > 0 and times >= 3)
    for ours, theirs in zip(mine, reference, strict=True):
        assert torch.equal(ours[0], theirs[0])
        # roots of what noise leaves of a difference: errors of a millionth become a thousandth
        for a, b, limit in zip(ours[1:], theirs[1:], (3e-3, 1e-4, 1e-4, 1e-6, 1e-3), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=limit, rtol=1e-5)
            c.count += 1
    return torch.stack([keep for keep, *_ in mine])


def compare_visible(c: Compare) -> None:
    """Small pictures suffice for the interpreter, which takes a tenth of a second a program."""
    # more than one program judges, and more than one part is ranked
    with patch.multiple(visible_kernels, _PLACES=4, _RANKED=8):
        kept = compare_seen(c, Grid(3, 2, 3), 4, 2.0, 1)
    assert 0.02 < kept.float().mean() < 0.98
    if c.dtype == torch.float32:
        compare_seen(c, Grid(2, 1, 2), 4, 0.0, 2)
        compare_seen(c, Grid(1, 2, 1), 2, 1.0, 1)
        compare_seen(c, Grid(2, 1, 1), 1, 0.0, 1)
        compare_seen(c, Grid(1, 2, 2), 8, 3.0, 1)
    if c.device != "cpu":
        kept = compare_seen(c, Grid(3, 30, 52), 4, 2.0, 2)
        assert 0.02 < kept.float().mean() < 0.98
        compare_seen(c, Grid(3, 68, 120), 4, 1.0, 1)  # ranked in several parts


def compare_levels(c: Compare, frames: Tensor, reference: Tensor) -> None:
    """A pyramid's pictures, and pixels' flow from that of patches, in and beyond the picture."""
    exact = torch.cat([reference[None], frames]).float()
    for padded in flow_kernels._padded_pyramid(frames, reference):
        margin = (padded.shape[1] - exact.shape[1]) // 2
        assert torch.equal(padded, F.pad(exact, 4 * [margin], mode="replicate"))
        rows, columns = (flow_kernels._patches(side) for side in exact.shape[1:])
        patches = 9 * c.random(len(frames), rows, columns, 2)
        mine = flow_kernels._densified(padded, patches)
        other = flow_kernels._densified_reference(exact[0], exact[1:], patches)
        apart = (mine - other).abs().amax(-1)
        # at steep edges the eighth power shows how places are rounded
        assert (apart < 2e-2).float().mean() > 0.999
        assert apart.amax() < 1
        exact = flow_kernels._halved(exact)
        c.count += 1


def compare_flow(c: Compare) -> None:
    """A moved texture with noise, at sizes whose last patches are moved in, and odd ones."""
    sizes = [(1, 96, 112)] if c.device == "cpu" else [(4, 64, 96), (2, 400, 416), (4, 480, 832)]
    for count, height, width in sizes:
        coarse = torch.rand(1, 1, height // 4 + 8, width // 4 + 8)
        texture = 255 * F.interpolate(coarse, scale_factor=4, mode="bicubic")[0, 0]
        texture += 2 * torch.randn_like(texture)
        moved = [texture[10 - i :, 8 + 3 * i :][:height, :width] for i in range(count)]
        frames, reference = (
            x.clamp(0, 255).byte().to(c.device)
            for x in (torch.stack(moved), texture[12 : 12 + height, 12 : 12 + width])
        )
        # the interpreter takes its time by the program
        few: dict[str, Any] = {"_TILE": 256, "_PIXELS": 8192}
        with patch.multiple(flow_kernels, **few) if c.device == "cpu" else nullcontext():
            mine = flow_kernels.dense_flow(frames, reference)
            assert torch.equal(mine, flow_kernels.dense_flow(frames, reference))
            assert (flow_kernels.dense_flow(reference[None], reference) == 0).all()
            compare_levels(c, frames, reference)
        apart = (mine - flow_kernels.dense_flow_reference(frames, reference)).abs().amax(-1)
        # where two starts are equally good, sums in another order may choose the other
        assert (apart < 1e-2).float().mean() > 0.999
        assert apart.median() < 1e-4
        c.count += 1


def compare_transformer(device: str) -> int:
    """What passes are made of."""
    count = 0
    for dtype in (torch.float32, torch.bfloat16):
        c = Compare(device, dtype)
        compare_norms(c)
        compare_queries(c)
        compare_rows(c)
        compare_fp8_by_hand(c)
        compare_joins(c)
        for fp8 in (False, True):
            compare_places(c, fp8)
            compare_displaced(c, fp8)
        count += c.count
    return count


def compare_autoencoders(device: str) -> int:
    """The tiny one's and Wan's."""
    count = 0
    for dtype in (torch.float32, torch.bfloat16):
        c = Compare(device, dtype)
        if device != "cpu" or dtype == torch.float32:  # the interpreter has no bfloat16 products
            compare_maps(c)
        compare_causal(c)
        count += c.count
    return count


def compare_detection(device: str) -> int:
    """Change and motion; of float16, too, on a GPU: pixels may be."""
    count, dtypes = 0, [torch.float32, torch.bfloat16]
    for dtype in dtypes if device == "cpu" else [*dtypes, torch.float16]:
        c = Compare(device, dtype)
        compare_visible(c)
        count += c.count
    c = Compare(device, torch.float32)
    compare_flow(c)
    compare_moving(c)
    return count + c.count


PARTS = {
    "transformer": compare_transformer,
    "autoencoders": compare_autoencoders,
    "detection": compare_detection,
}


def main(device: str, part: str) -> None:
    """Compare everything of a part; one line at the end."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # the reference's float32 is to be float32
    print(f"{PARTS[part](device)} compared")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
