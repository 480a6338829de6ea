"""The test that would settle it: does pruning alone fall below dense where recovery does not?

Needs no judge: metrics that do not compare with the dense edit (warp error, flicker, ...) are
compared with the dense edit's own, pair by pair; those that do are compared with what another seed
gives. Clips are what is drawn; the margin is fixed before anything is looked at: the seed-to-seed
variation of the dense edit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from stillframe.evaluation.baselines import by_recovery
from stillframe.evaluation.cells import Row
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.experiments.seeds import spread_of_seeds
from stillframe.evaluation.findings import Findings, Table, number, span
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    by_group,
    paired_difference,
)
from stillframe.evaluation.summaries import (
    difference,
    digits,
    failures,
    metric_value,
    signed,
    video_groups,
)
from stillframe.evaluation.variants import FULL, Variant
from stillframe.metrics import Metric

__all__ = ["Settle", "Verdict", "judge"]

_RECOVERIES = ("none", "clean", "aligned")
_NAMES = {"none": "pruning alone", "default": "the default"}
_LEAST_PRUNED = 0.05  # share of a clip that must be pruned for it to tell anything
_FEWEST = 5  # clips below which a bootstrap interval is too narrow to decide anything


def _variants() -> list[Variant]:
    """The papers' mask with each recovery, and what this program does by default: its own mask, and
    pictures held where nothing is computed."""
    return [*by_recovery(_RECOVERIES), Variant("prune")]


class Verdict(NamedTuple):
    """What a metric says of pruning with one recovery.

    Attributes:
        metric: its name.
        recovery: what stands in for pruned tokens, or "default".
        gap: to dense (or to another seed), more is better.
        margin: a gap above minus this is not below.
        word: "below", "not below" or "undecided".
    """

    metric: str
    recovery: str
    gap: Interval
    margin: float
    word: str


def judge(gap: Interval, margin: float) -> str:
    """ "below" if the whole interval is under ``-margin``, "not below" if it is all above, else
    "undecided"; of fewer than five clips always.

    Args:
        gap: a difference of which more is better.
        margin: not negative.
    """
    if gap.size < _FEWEST or math.isnan(gap.low) or math.isnan(margin):
        return "undecided"
    if gap.high < -margin:
        return "below"
    return "not below" if gap.low > -margin else "undecided"


@register("settle")
class Settle(Experiment):
    """Pruning alone, with clean and with aligned recovery against dense, SDEdit."""

    summary = "does pruning alone fall below dense where pruning with recovery does not?"
    title = "The test that would settle it"
    place = 1
    question = (
        "On held-out clips and under one mask, does pruning alone fall below the dense edit where "
        "pruning with recovery does not?"
    )
    papers = (
        "Pruning with recovery is as good as dense (warp error 64.0 against 75.0; 51 clip-prompt "
        "pairs judged by people: 18.4% better, 68.3% equal, 13.3% worse). Pruning alone is shown "
        "in pictures only and not measured."
    )
    caveats = (
        "Several metrics are asked and none is corrected for: one verdict in twenty may be chance.",
    )
    bundled_caveat = (
        "The bundled model is small and blurry in SDEdit mode. Whatever falls below dense here, or "
        "does not, says nothing about a 1.3B model."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        cells = bench.cells([FULL, *_variants()], bench.clips, conditioning="sdedit")
        rows = bench.matrix.run(cells, self.name)
        telling, still = _telling(rows)
        clips = tuple(clip for clip in bench.clips if clip.name in telling)
        missing = failures(rows)
        missing += [f"{name} was left out: less than 5% of it is pruned" for name in still]
        if not clips:
            return self.findings(
                f"It cannot be settled on these clips: none has {_LEAST_PRUNED:.0%} to prune.",
                missing=missing,
            )
        mine = [row for row in rows if row.cell.clip in telling and row.error is None]
        verdicts = [
            v for metric in bench.matrix.metrics for v in _verdicts(bench, metric, mine, clips)
        ]
        return self.findings(
            conclusion(verdicts, bench.bundled),
            words=_words(verdicts),
            caveats=[
                f"{len(clips)} clips. An interval over few clips is wide, and “undecided” says no "
                "more than that.",
                *self.limits(bench),
            ],
            missing=missing,
            tables=[_table(verdicts), _stale(mine)],
            videos=video_groups(bench.matrix, mine),
            rows=[
                {**v._asdict(), "gap": v.gap.mean, "low": v.gap.low, "high": v.gap.high}
                for v in verdicts
            ],
        )


def _telling(rows: Sequence[Row]) -> tuple[set[str], list[str]]:
    """Names of clips of which enough is pruned, and of the others."""
    shares = by_group((row.cell.clip, row.kept_share) for row in rows if row.cell.variant != FULL)
    enough = {str(clip) for clip, share in shares.items() if share <= 1 - _LEAST_PRUNED}
    return enough, sorted(str(clip) for clip in shares if clip not in enough)


def _verdicts(
    bench: Bench, metric: Metric, rows: Sequence[Row], clips: tuple[Clip, ...]
) -> list[Verdict]:
    """What a metric says of each recovery."""
    value, found = metric_value(metric.name), []
    apart = spread_of_seeds(bench, metric, clips, "sdedit")
    for variant in _variants():
        own = [row for row in rows if row.cell.variant == variant]
        if metric.reference == "dense":
            # nothing is as much like the dense edit as itself: another seed is as good as dense
            likeness = by_group((row.cell.clip, value(row)) for row in own)
            gap, margin = paired_difference(likeness, apart), 0.0
        else:
            dense = [row for row in rows if row.cell.variant == FULL]
            margin = bootstrap_mean(apart.values()).mean
            gap = difference(own, dense, value)
        gap = signed(metric, gap)
        word = judge(gap, margin)
        found.append(Verdict(metric.name, variant.recovery, gap, margin, word))
    return found


def _table(verdicts: Sequence[Verdict]) -> Table:
    body = [
        [
            v.metric,
            v.recovery,
            span(v.gap, digits(v.metric)),
            number(v.margin, digits(v.metric)),
            v.word,
        ]
        for v in verdicts
    ]
    return Table(
        "The gap to dense with its 95% interval over clips, more is better; for metrics that "
        "compare with the dense edit, the gap to what another seed of it gives. “Below” means that "
        "the whole interval lies under minus the margin, which is the difference between two seeds "
        "of the dense edit; with fewer than five clips everything is undecided.",
        ("metric", "recovery", "gap", "margin", "verdict"),
        body,
    )


def _stale(rows: Sequence[Row]) -> Table:
    """How far what each variant reused was from its source: of the worst clip."""
    body = []
    for variant in _variants():
        own = [row.staleness for row in rows if row.cell.variant == variant and row.staleness]
        worst = [max((s[name] for s in own), default=math.nan) for name in ("p50", "p99", "max")]
        body.append([variant.recovery, *(number(value, 1) for value in worst)])
    return Table(
        "Staleness: root mean square difference between a reused patch's source now and the one it "
        "was computed from, in grey levels, of the worst clip. It needs no model, and shows what "
        "a mean over pictures hides.",
        ("recovery", "p50", "p99", "maximum"),
        body,
    )


def _by_metric(verdicts: Sequence[Verdict]) -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = {}
    for verdict in verdicts:
        words.setdefault(verdict.metric, {})[verdict.recovery] = verdict.word
    return words


def conclusion(verdicts: Sequence[Verdict], bundled: bool) -> str:
    """The verdict in words.

    Args:
        verdicts: of all metrics and recoveries.
        bundled: whether the model is the bundled one, which cannot settle it either way.
    """
    words = _by_metric(verdicts)
    alone = [m for m, w in words.items() if w.get("none") == "below"]
    good = [m for m in alone if "not below" in (words[m].get("clean"), words[m].get("aligned"))]
    if good:
        said = f"pruning alone falls below dense in {', '.join(good)} where recovery does not"
    elif alone:
        said = (
            f"pruning alone falls below dense in {', '.join(alone)}, and recovery is not shown to "
            "do better"
        )
    else:
        said = "pruning alone is not shown to fall below dense in any metric"
    if bundled:
        return (
            f"The bundled model cannot settle it. For what it is worth, {said}. The claim is about "
            "models that rely on self-attention, of a hundred times the size; the same command "
            "answers it for them."
        )
    return f"{said[0].upper()}{said[1:]}."


def _words(verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each group of metrics that say the same."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for metric, words in _by_metric(verdicts).items():
        groups.setdefault(tuple(words.items()), []).append(metric)
    sentences = []
    for said, names in groups.items():
        parts = [
            f"{_NAMES.get(name, f'with {name} recovery it')} is {word}"
            f"{'' if word == 'undecided' else ' dense'}"
            for name, word in said
        ]
        sentences.append(f"{', '.join(names)}: {'; '.join(parts)}.")
    return sentences
