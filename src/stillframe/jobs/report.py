"""What an edit did and what it cost, as numbers: the report.

Every field is described in ``docs/report.md``.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from stillframe.video.targets import check_file
from stillframe.whole_file import write_whole

__all__ = [
    "DENOISING_STAGES",
    "STAGES",
    "Report",
    "RunReport",
    "write_json",
]

#: What ``seconds["total"]`` is the sum of, in the order of the work.
STAGES = ("decode_video", "encode", "mask", "denoise", "context", "decode", "write")
#: The stages that pruning makes shorter.
DENOISING_STAGES = ("denoise", "context")


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One way of editing a clip: with ``--compare`` there are two in a report.

    Attributes:
        method: name of the method.
        recovery: what stood in for pruned tokens; "none" for a method that prunes nothing.
        tolerance: what patches may differ from their source by, in grey levels; None where the
            method has none.
        tau1, tau2: thresholds in latent standard deviations; None where the method has none.
        motion: what could be reused from another place: "off", "global" or "full".
        kept_share: computed tokens / all tokens, 0 to 1.
        kept_share_blocks: the same for each block.
        moved_share: tokens reused from another place / all tokens, 0 to 1.
        moved_share_blocks: the same for each block.
        seconds: wall time by stage (`STAGES`), ``total`` their sum.
        fps: frames out / total seconds.
        cache_bytes: keys and values of committed frames.
        recovery_bytes: what the recovery stores beyond those.
        staleness: what was reused against its source now, quantiles in grey levels
            (`staleness.Staleness`); None if nothing was reused.
        flicker: of static regions, grey levels (`measures.StaticFlicker`); None if not measured.
    """

    method: str
    recovery: str
    tolerance: float | None
    motion: str
    tau1: float | None
    tau2: float | None
    kept_share: float
    kept_share_blocks: tuple[float, ...]
    moved_share: float
    moved_share_blocks: tuple[float, ...]
    seconds: dict[str, float]
    fps: float
    cache_bytes: int
    recovery_bytes: int
    staleness: dict[str, float] | None = None
    flicker: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report(RunReport):
    """An edit. See ``docs/report.md`` for every field.

    ``full``, the speedups, ``psnr_vs_full_db``, the worst patches and the flickers are None without
    a comparison.
    ``psnr_vs_full_db`` is ``math.inf`` for identical results.
    """

    stillframe: str
    source: str
    output: str
    frames_in: int
    frames_out: int
    fps_source: float
    width: int
    height: int
    source_width: int
    source_height: int
    model: str
    prompt: str
    device: str
    dtype: str
    seed: int
    sigmas: tuple[float, ...]
    conditioning: str
    store: str
    peak_memory_bytes: int | None
    damage: str | None = None
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    full: RunReport | None = None
    speedup_total: float | None = None
    speedup_denoise: float | None = None
    psnr_vs_full_db: float | None = None
    worst_patch: dict[str, float] | None = None
    worst_patch_seed: dict[str, float] | None = None
    flicker_source: float | None = None
    static_share: float | None = None
    style: str | None = None
    style_score: float | None = None
    control: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: an infinite figure becomes "inf"."""
        values = asdict(self)
        if self.psnr_vs_full_db == math.inf:
            values["psnr_vs_full_db"] = "inf"
        return values

    def write(self, path: str | PathLike[str]) -> None:
        """Write the report as JSON; the file is complete or not there.

        Raises:
            OutputError: it cannot be written.
        """
        write_json(self.as_dict(), path)


def write_json(values: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write plain values as JSON; the file is complete or not there.

    Raises:
        OutputError: it cannot be written.
    """
    check_file(path)
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # a name in bytes that are not UTF-8 is kept as JSON's escapes
    write_whole(path, (text.encode(errors="backslashreplace"),))
