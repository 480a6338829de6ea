"""Attention of some queries over many keys, cut so that it fills the card.

Attention kernels give a tile of queries and a head to one multiprocessor. A number of tiles just
past a multiple of the multiprocessors costs a whole round more, and few queries leave most of a
card idle for one. So the queries beyond the last full round attend to parts of the keys, one part a
row of a batch; each part's result comes with the logarithm of its softmax denominator, and parts
are joined by those weights, exactly. `Cut` says how, from counts alone: the same lengths are always
cut alike, so results do not depend on measured time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Cut", "attend", "best_cut", "join", "join_reference"]

#: Queries of a head that one multiprocessor works on at a time, in cuDNN's kernel for Hopper.
_TILE = 128
_MOST_PARTS = 8
_FEWEST_KEYS = 512
# what a cut costs, in the time a multiprocessor takes for one key: two more kernels, and joining
_COST, _COST_OF_JOINING = 300.0, 0.14


class Cut(NamedTuple):
    """How queries are divided.

    Attributes:
        whole: the first so many queries attend to all keys at once.
        parts: the others attend to the keys in so many equal parts.
    """

    whole: int
    parts: int


@lru_cache(maxsize=4096)
def best_cut(queries: int, keys: int, heads: int, processors: int) -> Cut:
    """The cheapest cut for a card of so many multiprocessors.

    Args:
        queries, keys: lengths.
        heads: of the attention.
        processors: multiprocessors of the card.
    """

    def rounds(count: int, parts: int) -> int:
        return -(-(-(-count // _TILE) * heads * parts) // processors)

    def cost(cut: Cut) -> float:
        rest = queries - cut.whole
        whole = rounds(cut.whole, 1) * float(keys)
        if not rest:
            return whole
        joining = _COST + _COST_OF_JOINING * rest * cut.parts
        return whole + rounds(rest, cut.parts) * keys / cut.parts + joining

    full = {i * processors // heads * _TILE for i in range(rounds(queries, 1))}
    parts = [p for p in range(2, _MOST_PARTS + 1) if keys % p == 0 and keys // p >= _FEWEST_KEYS]
    cuts = [Cut(queries, 1), *(Cut(whole, p) for whole in sorted(full) for p in parts)]
    return min(cuts, key=cost)


def attend(
    query: Tensor, key: Tensor, value: Tensor, cut: Cut, kernels: list[SDPBackend]
) -> Tensor:
    """Attention of rows (K, H, D) over rows (R, H, D).

    Args:
        query, key, value: rows.
        cut: how to divide it; several parts are for cuDNN, or for a CPU.
        kernels: torch's kernels to allow for what is not divided.

    Returns:
        (K, H*D).
    """
    whole, parts = [], []
    if cut.whole:
        # heads first as a view: the kernels take rows as they lie
        q, k, v = (x.unsqueeze(0).transpose(1, 2) for x in (query[: cut.whole], key, value))
        with sdpa_kernel(kernels):
            out = F.scaled_dot_product_attention(q, k, v)
        whole = [out.transpose(1, 2).flatten(2)[0]]
    if cut.whole < len(query):
        q = query[cut.whole :].transpose(0, 1).expand(cut.parts, -1, -1, -1)
        k, v = (x.unflatten(0, (cut.parts, -1)).transpose(1, 2) for x in (key, value))
        parts = [join(*_with_denominator(q, k, v))]
    both = [*whole, *parts]
    return both[0] if len(both) == 1 else torch.cat(both)


def _with_denominator(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (P, H, K, D) and the log of its denominators (P, H, K), float32."""
    if q.is_cuda and q.dtype != torch.float32:
        aten: Any = torch.ops.aten
        out, log, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        return out, log.reshape(q.shape[:3])
    logits = (q.float() @ k.float().transpose(2, 3)) / q.shape[3] ** 0.5
    return (logits.softmax(3) @ v.float()).type_as(q), logits.logsumexp(3)


def join_reference(parts: Tensor, logs: Tensor) -> Tensor:
    """The slow reference of `join`."""
    weights = logs.float().softmax(0).unsqueeze(-1)
    joined = (weights * parts.float()).sum(0)
    return joined.type_as(parts).transpose(0, 1).flatten(1)


def join(parts: Tensor, logs: Tensor) -> Tensor:
    """Join attention over parts of the keys.

    Args:
        parts: (P, H, K, D).
        logs: logarithms of their denominators, (P, H, K) float32.

    Returns:
        (K, H*D): what attention over all keys at once is.
    """
    if triton is None or not (parts.is_cuda or _INTERPRETED) or parts.stride(3) != 1:
        return join_reference(parts, logs)
    count, heads, rows, dim = parts.shape
    out = torch.empty((rows, heads * dim), device=parts.device, dtype=parts.dtype)
    _join[(rows,)](
        parts,
        logs.contiguous(),
        out,
        parts.stride(0),
        parts.stride(1),
        parts.stride(2),
        rows,
        heads,
        heads * dim,
        dim,
        PARTS=count,
        BLOCK=triton.next_power_of_2(heads * dim),
        num_warps=4,
    )
    return out


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit(do_not_specialize=["rows"])
    def _join(
        parts, logs, out, part_stride, head_stride, row_stride, rows, heads, width, dim,
        PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < width
        head = columns // dim
        at = parts + head * head_stride + row * row_stride + columns % dim
        log_at = logs + head * rows + row
        most = tl.load(log_at, inside, 0.0)
        for part in tl.static_range(1, PARTS):
            most = tl.maximum(most, tl.load(log_at + part * heads * rows, inside, 0.0))
        total = tl.zeros((BLOCK,), tl.float32)
        joined = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(PARTS):
            weight = tl.exp(tl.load(log_at + part * heads * rows, inside, 0.0) - most)
            total += weight
            joined += weight * tl.load(at + part * part_stride, inside, 0.0).to(tl.float32)
        tl.store(out + row * width + columns, (joined / total).to(out.dtype.element_ty), inside)
