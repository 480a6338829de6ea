"""Curves of share pruned over error to the dense edit, compared at equal error, and a choice.

A detector's curve goes through (0, 0) - what prunes nothing errs nowhere - and through the means
over clips at each scale of its thresholds. Its *gain* is the share it prunes at the error of the
default at scale 1, minus the share that the default prunes there. Intervals are percentiles over
clips drawn anew, the same for all.

The rule: of the shapes whose flicker at that error is at most 1% above the default's, the one of
largest gain; and it replaces the default only if shapes so chosen on four fifths of the clips gain
at least one point in a hundred on the remaining fifth, on average over the fifths, and if the
winner's 95% interval lies above zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curves", "Gain", "choose", "compared", "curves", "held_out", "report"]

DEFAULT = "default"
_FOLDS = 5
_DRAWS = 2000
_LEAST_GAIN = 0.01
_MOST_FLICKER = 1.01

Numbers = NDArray[np.float64]
Row = Mapping[str, Any]


class Curves(NamedTuple):
    """Numbers of every clip.

    Attributes:
        shapes, scales, clips: what they are of; a clip edited in two ways counts as one.
        pruned, error, flicker: (shapes, scales, clips).
    """

    shapes: list[str]
    scales: list[float]
    clips: list[str]
    pruned: Numbers
    error: Numbers
    flicker: Numbers


class Gain(NamedTuple):
    """A shape at the default's error.

    Attributes:
        scale: of its thresholds there.
        pruned: share it prunes.
        gain: more than the default.
        flicker: over the default's.
    """

    scale: float
    pruned: float
    gain: float
    flicker: float


def curves(rows: Sequence[Row]) -> Curves:
    """The clips of which all is there; conditionings are averaged.

    Raises:
        ValueError: there is no such clip, or no default at scale 1.
    """
    shapes = sorted({r["shape"] for r in rows}, key=lambda s: (s != DEFAULT, s))
    scales = sorted({r["scale"] for r in rows})
    ways = {r["conditioning"] for r in rows}
    found: dict[str, dict[tuple[str, float], list[Row]]] = {}
    for r in rows:
        found.setdefault(r["clip"], {}).setdefault((r["shape"], r["scale"]), []).append(r)
    cells = [(shape, scale) for shape in shapes for scale in scales]
    whole = sorted(
        clip for clip, own in found.items() if all(len(own.get(c, ())) == len(ways) for c in cells)
    )
    if not whole or DEFAULT not in shapes or 1.0 not in scales:
        raise ValueError(
            f"a comparison takes clips with every shape and scale, the default's at 1 among them; "
            f"got {len(whole)} whole clips of {len(found)}"
        )

    def mean(name: str) -> Numbers:
        values = [
            [
                [np.mean([r[name] for r in found[clip][shape, scale]]) for clip in whole]
                for scale in scales
            ]
            for shape in shapes
        ]
        return np.array(values, dtype=np.float64)

    # where nothing of a clip stands still, there is no flicker
    flicker = np.nan_to_num(mean("flicker"))
    return Curves(shapes, scales, whole, mean("pruned"), mean("error"), flicker)


def compared(data: Curves, clips: Sequence[int] | NDArray[np.int64] | None = None) -> list[Gain]:
    """Every shape at the default's error at scale 1, means over some of the clips (None: all)."""
    chosen = np.arange(len(data.clips)) if clips is None else np.asarray(clips, dtype=np.int64)
    pruned, error, flicker = (
        x[:, :, chosen].mean(2) for x in (data.pruned, data.error, data.flicker)
    )
    at = data.scales.index(1.0)
    level, share, before = error[0, at], pruned[0, at], flicker[0, at]
    found = []
    for i in range(len(data.shapes)):
        order = np.argsort(error[i], kind="stable")
        x = np.concatenate([[0.0], error[i][order]])
        own = float(np.interp(level, x, np.concatenate([[0.0], pruned[i][order]])))
        scale = float(np.interp(level, x, np.concatenate([[0.0], np.array(data.scales)[order]])))
        # nothing pruned flickers as the dense edit does, which is not in the rows
        glow = float(np.interp(level, error[i][order], flicker[i][order]))
        found.append(Gain(scale, own, own - float(share), glow / before if before else 1.0))
    return found


def _best(found: Sequence[Gain]) -> int:
    """Number of the one of largest gain that flickers no more; the default, 0, is among them."""
    allowed = [i for i, gain in enumerate(found) if gain.flicker <= _MOST_FLICKER]
    return max(allowed, key=lambda i: found[i].gain)


def held_out(data: Curves, folds: int = _FOLDS) -> tuple[float, list[str]]:
    """Mean gain on clips that the shape was not chosen on, and the shapes chosen."""
    count = len(data.clips)
    folds = min(folds, count)
    gains, names = [], []
    for fold in range(folds):
        outside = [i for i in range(count) if i % folds == fold]
        inside = [i for i in range(count) if i % folds != fold] or outside
        best = _best(compared(data, inside))
        gains.append(compared(data, outside)[best].gain)
        names.append(data.shapes[best])
    return float(np.mean(gains)), names


def _intervals(data: Curves, draws: int = _DRAWS) -> Numbers:
    """Ends of each shape's gain, (2, shapes)."""
    generator = np.random.default_rng(0)
    count = len(data.clips)
    gains = [
        [gain.gain for gain in compared(data, generator.integers(0, count, count))]
        for _ in range(draws)
    ]
    return np.quantile(np.array(gains), [0.025, 0.975], axis=0)


def _table(data: Curves) -> tuple[list[str], list[Gain], Numbers]:
    found, ends = compared(data), _intervals(data)
    level = data.error[0, data.scales.index(1.0)].mean()
    lines = [
        f"{len(data.clips)} clips; at the default's error of {level:.2f} grey levels:",
        f"{'shape':<20}{'scale':>7}{'pruned':>9}{'gain':>9}  {'95% interval':<20}{'flicker':>8}",
    ]
    for i in sorted(range(len(found)), key=lambda i: -found[i].gain):
        own = found[i]
        lines.append(
            f"{data.shapes[i]:<20}{own.scale:>7.2f}{own.pruned:>9.3f}{own.gain:>+9.3f}  "
            f"[{ends[0, i]:+.3f}, {ends[1, i]:+.3f}]    {own.flicker:>8.3f}"
        )
    return lines, found, ends


def choose(rows: Sequence[Row]) -> str:
    """The table, what the rule says, and one line of JSON."""
    data = curves(rows)
    lines, found, ends = _table(data)
    best = _best(found)
    gain, names = held_out(data)
    better = bool(gain >= _LEAST_GAIN and ends[0, best] > 0)
    lines.append(f"chosen in the folds: {', '.join(names)}; gain where held out {gain:+.3f}")
    verdict = "replaces" if better else "does not replace"
    at = found[best].scale
    lines.append(
        "no shape replaces the default"
        if best == 0
        else f"{data.shapes[best]} at scale {at:.2f} {verdict} the default"
    )
    result = {
        "best": data.shapes[best],
        "replaces": better,
        "held_out": gain,
        **found[best]._asdict(),
    }
    return "\n".join([*lines, json.dumps(result)])


def report(rows: Sequence[Row]) -> str:
    """The table alone, for clips on which nothing is chosen, and one line of JSON."""
    data = curves(rows)
    lines, found, ends = _table(data)
    result = {
        shape: {**gain._asdict(), "low": float(low), "high": float(high)}
        for shape, gain, low, high in zip(data.shapes, found, *ends, strict=True)
    }
    return "\n".join([*lines, json.dumps(result)])
