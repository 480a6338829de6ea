"""Throughput: frames a second of every method, whole pipeline, at equal shares of work left out."""

from __future__ import annotations

from stillframe.evaluation.baselines import at_rates
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.findings import Findings
from stillframe.evaluation.summaries import by_label, failures, over_clips, speed_table

__all__ = ["Throughput"]


@register("throughput")
class Throughput(Experiment):
    """Every method at every rate beside the dense edit, alternating block by block."""

    summary = "frames a second of every method at 10, 20 and 32%"
    title = "Throughput"
    place = 6
    question = (
        "How many frames a second does each method edit, autoencoder and writing included, when it "
        "prunes or merges the same share of tokens?"
    )
    papers = (
        "480x832 on an A6000: 8.4 FPS dense; merging 8.2–9.2, no faster than dense; pruning with "
        "recovery 9.8, 10.9 and 12.2 at 10, 20 and 32%."
    )
    bundled_caveat = (
        "The bundled model is so small that the autoencoder and fixed costs weigh more than the "
        "tokens; a larger model gains more from leaving tokens out."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        variants, missing = at_rates(bench.scale.rates)
        clips = bench.larger(bench.scale.paired_clips)
        count = len(clips)
        cells = bench.cells(variants, clips, paired=True)
        rows = bench.matrix.run(cells, self.name)
        table = speed_table(
            rows,
            "Each line alternates with a dense edit of the same clip block by block, so that both "
            "see the same load: read the speedups, with their 95% intervals over clips. The first "
            "block of a stream is whole, so “computed” lies above what the rate alone would leave; "
            "for methods that merge it counts the rows that self-attention ran over.",
        )
        speed = {
            label: over_clips(group, lambda row: row.speedup("total")).mean
            for label, group in by_label(rows).items()
        }
        words = ["No method could be run."]
        if speed:
            best, worst = max(speed, key=speed.__getitem__), min(speed, key=speed.__getitem__)
            words = [
                f"Fastest was {best}, {speed[best]:.2f}x dense over the whole pipeline; slowest "
                f"{worst}, {speed[worst]:.2f}x."
            ]
        return self.findings(
            words[0],
            caveats=[
                f"{count} {'clip' if count == 1 else 'clips'}; reading the clip is not counted.",
                *self.limits(bench),
            ],
            missing=[*missing, *failures(rows)],
            tables=[table],
        )
