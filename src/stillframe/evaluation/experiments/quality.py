"""Quality at 10, 20 and 32%: pruning with recovery against pruning and merging baselines."""

from __future__ import annotations

from collections.abc import Sequence

from stillframe.evaluation.baselines import at_rates
from stillframe.evaluation.cells import Row
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.findings import Findings, Table
from stillframe.evaluation.summaries import (
    by_label,
    failures,
    gap_table,
    measured,
    metric_mean,
    metric_plots,
    quality_table,
    split,
    video_groups,
)
from stillframe.evaluation.variants import FULL

__all__ = ["Quality", "against_dense"]


@register("quality")
class Quality(Experiment):
    """Every method at every rate, measured against source and dense edit."""

    summary = "quality at 10, 20 and 32% against pruning and merging baselines"
    title = "Quality"
    place = 4
    question = "What does each method cost in quality when it prunes or merges the same share?"
    papers = (
        "Warp error at 32%: dense 75.0, pruning with recovery 64.0, merging 84–86; at 20 and 10%: "
        "67.1 and 71.7 against 77–82. VBench subject consistency at 32%: dense .921, recovery "
        ".923, merging .843–.856."
    )
    caveats = (
        "Rates are forced on every clip, moving ones included: what has changed is pruned, too, "
        "once nothing unchanged is left. Thresholds would not do that; the ablation has them.",
        "Likeness to the dense edit says how little a method disturbs, not how good a picture is.",
    )
    bundled_caveat = (
        "With its source in view, the bundled model has little need of self-attention: merging "
        "and missing neighbours hurt it less than they hurt a model that relies on it."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        # plain and noisy pruning are the ablation's; here it is methods that are compared
        variants, missing = at_rates(bench.scale.rates, leave_out=["noisy"])
        clips = bench.larger()
        timed = bench.larger(bench.scale.paired_clips)
        cells = bench.cells([FULL], clips) + bench.cells(variants, timed, paired=True)
        # timed clips beside the dense edit at once: throughput asks for the same cells
        cells += bench.cells(variants, [clip for clip in clips if clip not in timed])
        rows = bench.matrix.run(cells, self.name)
        dense, others = split(rows)
        table = quality_table(
            rows, "Mean and 95% interval over clips. Arrows say which direction is better."
        )
        highest = max(bench.scale.rates, default=0)
        shown = [r for r in rows if dict(r.cell.variant.params).get("rate") in (None, highest)]
        return self.findings(
            _headline(others, highest),
            caveats=self.limits(bench),
            missing=[*missing, *failures(rows)],
            tables=[table, against_dense(others, dense)],
            plots=metric_plots(others, dense),
            videos=video_groups(bench.matrix, shown),
        )


def against_dense(rows: Sequence[Row], dense: Sequence[Row]) -> Table:
    """Paired differences to the dense edit, in metrics that do not compare with it."""
    kinds = [kind for kind in measured(dense) if kind.reference != "dense"]
    pairs = {label: (group, dense) for label, group in by_label(rows).items()}
    return gap_table(
        "Against the dense edit of the same clip, prompt and seed, pair by pair: above zero is "
        "better than dense, and where the interval holds zero, nothing is shown.",
        "method",
        kinds,
        pairs,
    )


def _headline(rows: Sequence[Row], rate: float) -> str:
    at = [row for row in rows if dict(row.cell.variant.params).get("rate") == rate]
    likeness = {label: metric_mean(group, "psnr").mean for label, group in by_label(at).items()}
    known = {label: mean for label, mean in likeness.items() if mean == mean}
    if not known:
        return "Nothing could be measured against the dense edit."
    best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    return (
        f"At {rate:.0%}, closest to the dense edit was {best} ({known[best]:.1f} dB), furthest "
        f"{worst} ({known[worst]:.1f} dB)."
    )
