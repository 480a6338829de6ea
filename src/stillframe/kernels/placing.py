"""Queries, keys and values of a pass to where attention reads them: a kernel and a reference each.

`rotated_queries` normalises and rotates queries. `place` does the same for keys and writes the
block's rows of the cache; where a token is pruned it takes an *entry* from elsewhere - a recovery's
store, or a committed frame - in the same kernel. Which row comes from where is data (`Sources`),
not code, so that a captured graph serves every mask. Entries of other places than a slot's own are
copied by `copy_rows` before `place` overwrites them. `rotate_rows` rotates committed keys of all
layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.rows import Displaced, Entries, Sources, Table, packed, unpacked

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = [
    "copy_rows",
    "copy_rows_reference",
    "place",
    "place_reference",
    "rotate_rows",
    "rotate_rows_reference",
    "rotated_queries",
    "rotated_queries_reference",
]


def _rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else F.rms_norm(x, x.shape[-1:], weight, eps)


def _turned(x: Tensor, table: Table) -> Tensor:
    """Rotate rows (R, C) by a table (R, D/2), in float32."""
    half = table.cos.shape[1]
    pairs = x.float().view(len(x), -1, half, 2)
    cos, sin = table.cos.unsqueeze(1), table.sin.unsqueeze(1)
    even, odd = pairs.unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.view(x.shape).type_as(x)


def rotated_queries_reference(
    queries: Tensor, weight: Tensor | None, table: Table | None, slots: Tensor | None, eps: float
) -> Tensor:
    """The slow reference of `rotated_queries`."""
    normed = _rms(queries, weight, eps)
    if table is None:
        return normed.contiguous()
    at = table if slots is None else Table(table.cos[slots.long()], table.sin[slots.long()])
    return _turned(normed, Table(at.cos[: len(queries)], at.sin[: len(queries)]))


def rotated_queries(
    queries: Tensor, weight: Tensor | None, table: Table | None, slots: Tensor | None, eps: float
) -> Tensor:
    """Normalise queries (RMS over all heads) and rotate them.

    Args:
        queries: (K, C), rows may be strided.
        weight: (C,) of the norm, None for no norm.
        table: rotations, None for none (cross-attention).
        slots: (K,) int32 row of the table for each query; None: in order.
        eps: of the norm.

    Returns:
        (K, C), contiguous.
    """
    if not _on_kernels(queries):
        return rotated_queries_reference(queries, weight, table, slots, eps)
    rows, width = queries.shape
    out = torch.empty((rows, width), device=queries.device, dtype=queries.dtype)
    some = queries
    _rotated_queries[(rows,)](
        queries, queries.stride(0), some if weight is None else weight,
        some if table is None else table.cos, some if table is None else table.sin,
        some if slots is None else slots, out, width, eps,
        1 if table is None else table.cos.shape[1],
        NORM=weight is not None, ROTATE=table is not None, SLOTS=slots is not None,
        BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return out


def place_reference(
    key: Tensor,
    value: Tensor,
    weight: Tensor | None,
    eps: float,
    table: Table,
    sources: Sources,
    rows: tuple[Tensor, Tensor],
    taken: Entries | None,
    kept: Entries | None,
) -> None:
    """The slow reference of `place`."""
    new, old, out = (x.flatten().long() for x in sources)
    own, fill = (new >= 0).unsqueeze(1), ((new < 0) & (old >= 0)).unsqueeze(1)
    keys = _rms(key, weight, eps)[new.clamp(min=0)]
    values = value[new.clamp(min=0)]
    if taken is not None:
        assert taken.values is not None
        at = old.clamp(min=0) + taken.offset
        keys = torch.where(own, keys, unpacked(taken.keys[at], keys.dtype))
        values = torch.where(own, values, unpacked(taken.values[at], values.dtype))
        own = own | fill
    count = len(new)
    for target, x in ((rows[0], _turned(keys, table)), (rows[1], values)):
        target[:count] = torch.where(own, x, target[:count])
    if kept is not None:
        chosen = (out >= 0) & own.squeeze(1)
        at = out[chosen] + kept.offset
        kept.keys[at] = packed(keys[chosen], kept.keys)
        if kept.values is not None:
            kept.values[at] = packed(values[chosen], kept.values)


def place(
    key: Tensor,
    value: Tensor,
    weight: Tensor | None,
    eps: float,
    table: Table,
    sources: Sources,
    rows: tuple[Tensor, Tensor],
    taken: Entries | None,
    kept: Entries | None,
    displaced: Displaced | None = None,
) -> None:
    """Write the block's rows of a layer's keys (rotated) and values.

    Args:
        key, value: (K, C) projections of the computed tokens, rows may be strided.
        weight: (C,) of the keys' RMS norm, None for no norm.
        eps: of the norm.
        table: rotations of the block's S*N slots.
        sources: where each slot comes from; an entry that one slot takes may be written by another
            slot of the same place: all are read first.
        rows: the layer's keys and values, (R, C) contiguous each; the first S*N rows are written.
        taken: entries that pruned slots take, None: they are left alone.
        kept: where to keep what was placed, keys before rotation, None: nowhere. May be ``taken``.
        displaced: slots that take entries of other places, which ``sources`` leaves alone.
    """
    if displaced is not None:
        # before any entry is overwritten, and placed when all others have been read
        assert taken is not None
        copy_rows(taken, displaced.rows, displaced.scratch)
        place(key, value, weight, eps, table, sources, rows, taken, kept)
        at, scratch = displaced.sources, displaced.scratch
        place(key, value, None, eps, table, at, rows, scratch, kept)
        return
    if not _on_kernels(key):
        place_reference(key, value, weight, eps, table, sources, rows, taken, kept)
        return
    (frames, places), width = sources.new.shape, key.shape[1]
    some = Entries(key, value, sources.new)
    source, target = taken or some, kept or some
    fp8 = _fp8((taken or kept or some).keys)
    apart = kept is not None and kept.values is not None
    _place[(places,)](
        key, value, key.stride(0), value.stride(0), key if weight is None else weight, eps,
        table.cos, table.sin, *sources, *rows,
        source.keys, source.values, source.offset,
        target.keys, target.values if apart else value, target.offset,
        places, width, table.cos.shape[1],
        NORM=weight is not None, TAKE=taken is not None, KEEP=kept is not None, BOTH=apart,
        FP8=fp8, FRAMES=frames, LANES=triton.next_power_of_2(frames),
        BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip


def copy_rows_reference(entries: Entries, rows: Tensor, scratch: Entries) -> None:
    """The slow reference of `copy_rows`."""
    at = rows.flatten().long()
    copied = (at >= 0).unsqueeze(1)
    for source, target in ((entries.keys, scratch.keys), (entries.values, scratch.values)):
        assert source is not None
        assert target is not None
        target.copy_(torch.where(copied, source[at.clamp(min=0) + entries.offset], target))


def copy_rows(entries: Entries, rows: Tensor, scratch: Entries) -> None:
    """Copy entries, as they are, to rows of their own.

    Args:
        entries: to copy from, keys and values.
        rows: (S, N) int32 row of the entries, -1: none.
        scratch: to copy to, row after row of ``rows``.
    """
    if not _on_kernels(entries.keys):
        copy_rows_reference(entries, rows, scratch)
        return
    width = entries.keys.shape[1]
    _copy_rows[(rows.numel(),)](
        entries.keys, entries.values, entries.offset, rows, scratch.keys, scratch.values, width,
        BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip


def rotate_rows_reference(raw: Tensor, table: Table, keys: Tensor, start: int) -> None:
    """The slow reference of `rotate_rows`."""
    count = len(table.cos)
    for layer in range(len(raw)):
        rows = unpacked(raw[layer, :count], keys.dtype)
        keys[layer, start : start + count] = _turned(rows, table)


def rotate_rows(raw: Tensor, table: Table, keys: Tensor, start: int) -> None:
    """Rotate committed keys of all layers to their positions.

    Args:
        raw: (L, R, C) keys before rotation, FP8 as uint8; as many rows as the table has are read.
        table: their rotations.
        keys: (L, R', C); written from row ``start`` on.
        start: see there.
    """
    if not _on_kernels(raw):
        rotate_rows_reference(raw, table, keys, start)
        return
    width = raw.shape[2]
    _rotate_rows[(len(table.cos), len(raw))](
        raw, raw.stride(0), table.cos, table.sin, keys, keys.stride(0), start, width,
        table.cos.shape[1], FP8=_fp8(raw), BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip


#: What a kernel is told of what it takes or keeps: it is FP8, which the card knows or does not.
_KNOWN, _BITS = 1, 2


def _fp8(x: Tensor) -> int:
    """Which kind of FP8 rows are in, 0 for none."""
    if x.dtype != torch.uint8:
        return 0
    return (
        _KNOWN if not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 9) else _BITS
    )


def _on_kernels(x: Tensor) -> bool:
    return triton is not None and (x.is_cuda or _INTERPRETED)


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _normed(x, weight, columns, inside, width, eps, NORM: tl.constexpr):
        """RMS norm of rows (LANES, BLOCK) in float32; what lies outside is 0 and stays so."""
        if NORM:
            scale = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
            factor = tl.load(weight + columns, inside, 0.0).to(tl.float32)
            x = x * scale[:, None] * factor[None, :]
        return x

    @triton.jit
    def _rotated(x, cos, sin, rows, valid, half, LANES: tl.constexpr, BLOCK: tl.constexpr):
        """Rows (LANES, BLOCK) rotated by rows of a table, heads side by side."""
        even, odd = tl.split(tl.reshape(x, (LANES, BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2) % half
        at = rows[:, None] * half + pair[None, :]
        c = tl.load(cos + at, valid[:, None], 0.0)
        s = tl.load(sin + at, valid[:, None], 0.0)
        return tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (LANES, BLOCK))

    @triton.jit
    def _rotated_queries(
        queries, stride, weight, cos, sin, slots, out, width, eps, half,
        NORM: tl.constexpr, ROTATE: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
        columns = tl.arange(0, BLOCK)
        inside = columns < width
        mask = (row >= 0)[:, None] & inside[None, :]
        x = tl.load(queries + row[:, None] * stride + columns[None, :], mask, 0.0).to(tl.float32)
        x = _normed(x, weight, columns, inside, width, eps, NORM)
        x = x.to(out.dtype.element_ty)
        if ROTATE:
            at = tl.load(slots + row).to(tl.int64) if SLOTS else row
            x = _rotated(x.to(tl.float32), cos, sin, at, row >= 0, half, 1, BLOCK)
        tl.store(out + row[:, None] * width + columns[None, :], x.to(out.dtype.element_ty), mask)

    @triton.jit
    def _entry(base, at, mask, FP8: tl.constexpr):
        x = tl.load(base + at, mask, 0)
        if FP8 == 1:
            x = x.to(tl.float8e4nv, bitcast=True)
        if FP8 == 2:
            # as a float16 its exponent is 8 too small, also where it has no leading bit
            wide = x.to(tl.uint16)
            wide = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
            return wide.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return x.to(tl.float32)

    @triton.jit
    def _keep(base, at, x, mask, FP8: tl.constexpr):
        if FP8 == 1:
            x = tl.minimum(tl.maximum(x, -448.0), 448.0)
            tl.store(base + at, x.to(tl.float8e4nv).to(tl.uint8, bitcast=True), mask)
        elif FP8 == 2:
            size = tl.minimum(tl.abs(x), 448.0)
            bits = size.to(tl.uint32, bitcast=True)
            # to the nearest number of 3 bits, and of two to the even one; the exponent 120 smaller
            code = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
            # what has no leading bit is a multiple of 2^-9, which the sum with 2^23 rounds to
            small = (size * 512.0 + 8388608.0).to(tl.uint32, bitcast=True) - 0x4B000000
            code = tl.where(size < 0.015625, small, code)
            code = code | ((x.to(tl.uint32, bitcast=True) >> 24) & 0x80)
            tl.store(base + at, code.to(tl.uint8), mask)
        else:
            tl.store(base + at, x.to(base.dtype.element_ty), mask)

    @triton.jit
    def _place(
        key, value, key_stride, value_stride, weight, eps, cos, sin, new, old, out, keys, values,
        from_keys, from_values, from_offset, to_keys, to_values, to_offset, places, width, half,
        NORM: tl.constexpr, TAKE: tl.constexpr, KEEP: tl.constexpr, BOTH: tl.constexpr,
        FP8: tl.constexpr, FRAMES: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        # one program for all frames of a place: entries are exchanged within a place only, so it
        # can read everything before it writes anything
        lane = tl.arange(0, LANES)
        there = lane < FRAMES
        slots = lane.to(tl.int64) * places + tl.program_id(0)
        columns = tl.arange(0, BLOCK)
        inside = columns < width
        row = tl.load(new + slots, there, -1).to(tl.int64)
        entry = tl.load(old + slots, there, -1).to(tl.int64)
        written = row >= 0
        mask = written[:, None] & inside[None, :]
        k = tl.load(key + row[:, None] * key_stride + columns[None, :], mask, 0.0).to(tl.float32)
        v = tl.load(value + row[:, None] * value_stride + columns[None, :], mask, 0.0)
        v = v.to(tl.float32)
        k = _normed(k, weight, columns, inside, width, eps, NORM)
        k = k.to(keys.dtype.element_ty).to(tl.float32)
        if TAKE:
            fill = (row < 0) & (entry >= 0)
            at = (entry + tl.load(from_offset))[:, None] * width + columns[None, :]
            take = fill[:, None] & inside[None, :]
            k = tl.where(mask, k, _entry(from_keys, at, take, FP8))
            v = tl.where(mask, v, _entry(from_values, at, take, FP8))
            written = written | fill
            tl.debug_barrier()
        mask = written[:, None] & inside[None, :]
        if KEEP:
            to = tl.load(out + slots, there, -1).to(tl.int64)
            chosen = (written & (to >= 0))[:, None] & inside[None, :]
            at = (to + tl.load(to_offset))[:, None] * width + columns[None, :]
            _keep(to_keys, at, k, chosen, FP8)
            if BOTH:
                _keep(to_values, at, v, chosen, FP8)
        k = _rotated(k, cos, sin, slots, there, half, LANES, BLOCK)
        at = slots[:, None] * width + columns[None, :]
        tl.store(keys + at, k.to(keys.dtype.element_ty), mask)
        tl.store(values + at, v.to(values.dtype.element_ty), mask)

    @triton.jit
    def _copy_rows(
        from_keys, from_values, offset, rows, to_keys, to_values, width, BLOCK: tl.constexpr
    ):
        slot = tl.program_id(0).to(tl.int64)
        row = tl.load(rows + slot).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        mask = (columns < width) & (row >= 0)
        at = (row + tl.load(offset)) * width + columns
        to = slot * width + columns
        tl.store(to_keys + to, tl.load(from_keys + at, mask, 0), mask)
        tl.store(to_values + to, tl.load(from_values + at, mask, 0), mask)

    @triton.jit
    def _rotate_rows(
        raw, raw_layer, cos, sin, keys, keys_layer, start, width, half,
        FP8: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
        layer = tl.program_id(1).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        mask = (row >= 0)[:, None] & (columns < width)[None, :]
        at = row[:, None] * width + columns[None, :]
        x = _entry(raw + layer * raw_layer, at, mask, FP8)
        x = _rotated(x, cos, sin, row, row >= 0, half, 1, BLOCK)
        at = (row + start)[:, None] * width + columns[None, :]
        tl.store(keys + layer * keys_layer + at, x.to(keys.dtype.element_ty), mask)
