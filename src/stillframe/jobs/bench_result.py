"""What ``bench`` found, as a line of JSON and back, and how two runs of the same compare.

It does not know how anything is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stillframe.untrusted.small_files import decode, parse_json, read_bounded

__all__ = ["BenchResult", "Row", "read_result"]

# of a file with a result
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Row:
    """One share of kept tokens; times are medians over rounds, in milliseconds.

    Attributes:
        share: of tokens to keep.
        tokens: kept tokens of a block.
        pass_ms, context_ms: one denoising pass, the context pass.
        pass_spread_ms: between the quartiles of ``pass_ms``.
        stages: of a block, by stage.
        block_ms: all stages together.
        fps: pixel frames a second of the stages that were run.
        speedup: against the largest share, median of the rounds' ratios.
        of_ceiling: arithmetic of a denoising pass / its time / the measured ceiling; None on CPUs.
        peak_bytes: most memory in use; 0 where it is not counted.
    """

    share: float
    tokens: int
    pass_ms: float
    pass_spread_ms: float
    context_ms: float
    stages: dict[str, float]
    block_ms: float
    fps: float
    speedup: float
    of_ceiling: float | None
    peak_bytes: int

    @property
    def figures(self) -> dict[str, float | None]:
        """All of them by name, stages among them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_FIGURES}
        return own | {f"{name}_ms": ms for name, ms in self.stages.items()}


#: What is given, stages, which are figures themselves, and how sure one of the others is.
_NO_FIGURES = {"share", "tokens", "stages", "pass_spread_ms"}


@dataclass(frozen=True)
class BenchResult:
    """What a run found.

    Attributes:
        device: its name; of a CPU also its threads.
        settings: what was run, see `bench_settings`.
        repeats: rounds, of a block a share.
        warm_up_seconds: until every share had been run once.
        ceiling_tflops: measured matrix product, None on CPUs.
        pearson: correlation of a block's denoising time with its kept tokens; None below 3 shares,
            or where either does not vary.
        graphs: captured during warm-up, and after it.
        rows: one a share.
    """

    device: str
    settings: dict[str, Any]
    repeats: int
    warm_up_seconds: float
    ceiling_tflops: float | None
    pearson: float | None
    graphs: tuple[int, int]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is not known is None."""
        return asdict(self)

    def check_same(self, device: str, settings: Mapping[str, Any]) -> None:
        """Refuse to be compared with a run of anything else.

        Raises:
            ValueError: it is of another device, model, size or of other settings.
        """
        if self.device != device:
            raise ValueError(
                f"the earlier run was on {self.device!r}, and this one is on {device!r}"
            )
        for name in [*settings, *(self.settings.keys() - settings.keys())]:
            before, now = self.settings.get(name), settings.get(name)
            if before != now:
                raise ValueError(
                    f"the earlier run had {name} = {before!r}, and this one has {now!r}"
                )

    def changes(self, before: BenchResult) -> dict[str, Any]:
        """How every figure has changed, as a share of what it was: .1 is a tenth more.

        None where there is nothing to compare with.
        """
        pairs = zip(self.rows, before.rows, strict=True)
        return {
            "warm_up_seconds": _change(self.warm_up_seconds, before.warm_up_seconds),
            "ceiling_tflops": _change(self.ceiling_tflops, before.ceiling_tflops),
            "rows": [
                {"share": now.share}
                | {name: _change(x, then.figures.get(name)) for name, x in now.figures.items()}
                for now, then in pairs
            ],
        }


def _change(now: float | None, before: float | None) -> float | None:
    return None if now is None or not before else now / before - 1


def read_result(path: Path) -> BenchResult:
    """The result in a file that holds what ``stillframe bench`` printed; its last line counts.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        lines = decode(read_bounded(path, _MOST_BYTES)).strip().splitlines()
        values = parse_json(lines[-1] if lines else "")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no result of `stillframe bench`: {error}") from error
    try:
        found: BenchResult = _read("BenchResult", values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is no result of `stillframe bench`: {error.args[0]}") from error
    if [row.share for row in found.rows] != found.settings.get("shares"):
        raise ValueError(f"{path} is no result of `stillframe bench`: its rows are of other shares")
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("it has something else where a number belongs")
    return value


def _read(kind: str, value: Any) -> Any:
    """A value of JSON as a field of some type.

    Raises:
        TypeError: it is of another.
        KeyError: a field is missing.
    """
    if kind in ("int", "float"):
        return _number(value)
    if kind == "float | None":
        return None if value is None else _number(value)
    if kind == "tuple[int, int]" and isinstance(value, list) and len(value) == 2:
        return tuple(map(_number, value))
    if kind == "tuple[Row, ...]" and isinstance(value, list):
        return tuple(_read("Row", row) for row in value)
    if kind in ("BenchResult", "Row") and isinstance(value, dict):
        made = BenchResult if kind == "BenchResult" else Row
        missing = [f.name for f in fields(made) if f.name not in value]
        if missing:
            raise KeyError(f"it has no {missing[0]}")
        return made(**{f.name: _read(str(f.type), value[f.name]) for f in fields(made)})
    if kind == "dict[str, float]" and isinstance(value, dict):
        return {name: _number(entry) for name, entry in value.items()}
    if (kind, type(value)) in (("str", str), ("dict[str, Any]", dict)):
        return value
    raise TypeError("it has a field of the wrong kind")
