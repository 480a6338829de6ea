"""Ablation: the same mask, with each recovery."""

from __future__ import annotations

from collections.abc import Sequence

from stillframe.evaluation.baselines import by_recovery
from stillframe.evaluation.cells import Row
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.findings import Findings, Table, number
from stillframe.evaluation.summaries import (
    failures,
    gap_table,
    measured,
    metric_mean,
    quality_table,
    video_groups,
)
from stillframe.evaluation.variants import FULL

__all__ = ["Ablation"]


@register("ablation")
class Ablation(Experiment):
    """Recovery none, noisy, clean and aligned under one mask, in each conditioning."""

    summary = "the same mask with recovery none, noisy, clean and aligned"
    title = "Ablation of recovery"
    place = 3
    question = (
        "Where the same patches are pruned, what difference does it make what stands in for them?"
    )
    papers = (
        "At 33.8% pruned: pruning alone shows structural artefacts, recovery from noisy tokens "
        "high-frequency noise, from clean tokens neither. A study with a 13 M model (two static "
        "clips, SDEdit) found aligned 1–3 dB closer to dense than clean or none."
    )
    bundled_caveat = (
        "The bundled model is small, and with its source in view it has little need of "
        "self-attention: that recoveries hardly differ on it does not mean that they hardly differ "
        "on the 1.3B models on which the papers report artefacts."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        tables, shown, words, rows = [], [], [], []
        for conditioning in bench.conditionings():
            cells = bench.cells([FULL, *by_recovery()], bench.larger(), conditioning=conditioning)
            found = bench.matrix.run(cells, f"{self.name}, {conditioning}")
            rows += found
            tables += [
                quality_table(
                    found,
                    f"Conditioning {conditioning}: mean and 95% interval over clips. Clips of "
                    "which nothing is pruned are the dense edit itself, whose PSNR is infinite and "
                    "left out.",
                ),
                _against_none(found, conditioning),
            ]
            shown += video_groups(bench.matrix, found, most=1)
            words.append(_sentence(found, conditioning))
        return self.findings(
            words[0],
            words=words[1:],
            caveats=self.limits(bench),
            missing=failures(rows),
            tables=tables,
            videos=shown,
        )


def _of(rows: Sequence[Row], recovery: str) -> list[Row]:
    given = by_recovery([recovery])[0]
    return [row for row in rows if row.error is None and row.cell.variant == given]


def _against_none(rows: Sequence[Row], conditioning: str) -> Table:
    """Paired differences to pruning alone."""
    kinds = [kind for kind in measured(rows) if _of(rows, "none")]
    names = [variant.recovery for variant in by_recovery() if variant.recovery != "none"]
    return gap_table(
        f"Conditioning {conditioning}: recovery minus pruning alone, pair by pair; above zero is "
        "better than pruning alone.",
        "recovery",
        kinds,
        {name: (_of(rows, name), _of(rows, "none")) for name in names},
    )


def _sentence(rows: Sequence[Row], conditioning: str) -> str:
    """PSNR to dense of each recovery, or of which there is none."""
    parts = []
    for variant in by_recovery():
        name = variant.recovery
        mean = metric_mean(_of(rows, name), "psnr").mean
        if mean == mean:
            parts.append(f"{name} {number(mean, 1)} dB")
    if not parts:
        return f"With {conditioning} conditioning, nothing was pruned on these clips."
    return f"With {conditioning} conditioning, likeness to dense was {', '.join(parts)}."
