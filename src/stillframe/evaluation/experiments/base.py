"""An experiment: a question, the runs that answer it, and what came out, in tables and words.

It is given a `Bench` - a model, clips, a matrix that remembers, a scale - and returns `Findings`.
Whatever takes time goes through the matrix, so that a run goes on where it ended. Adding one: a
file in this package with a subclass under `register`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar, NamedTuple

from stillframe.errors import InputError, ModelError
from stillframe.evaluation.cells import Cell
from stillframe.evaluation.findings import Findings
from stillframe.evaluation.matrix import Matrix
from stillframe.evaluation.sources import Clip, spread
from stillframe.evaluation.variants import Variant
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.registry import Registry

__all__ = [
    "Bench",
    "Experiment",
    "Job",
    "Record",
    "Scale",
    "experiments",
    "find_experiment",
    "pick",
    "register",
]

#: Plain values by name, of which many make a table.
Record = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        frames: most frames of a clip.
        height, width: working size in pixels; None as `fit.fit_to_grid` chooses.
        clips: clips of the larger experiments, None for all; spread evenly over those there are.
        paired_clips: how many of them are timed beside the dense edit.
        probed_clips: how many of them are looked at layer by layer.
        prompts: each clip gets the next one, round and round.
        styles: prompts of which every clip gets each, where that is asked for.
        seeds: draws of noise where they are what is asked about.
        rates: shares of tokens to prune or merge.

    Raises:
        ValueError: for no prompt, fewer than 2 seeds, or sizes and rates out of range.
    """

    frames: int
    height: int | None
    width: int | None
    clips: int | None
    paired_clips: int
    probed_clips: int
    prompts: tuple[str, ...]
    styles: tuple[str, ...] = ("photo", "oil painting")
    seeds: int = 2
    rates: tuple[float, ...] = (0.1, 0.2, 0.32)

    def __post_init__(self) -> None:
        if not self.prompts or self.seeds < 2:
            raise ValueError(
                f"a scale has 1 or more prompts and 2 or more seeds, got {len(self.prompts)} and "
                f"{self.seeds}"
            )
        if min(self.frames, self.paired_clips, self.probed_clips) < 1:
            raise ValueError(
                "frames, paired and probed clips are positive, got "
                f"{self.frames}, {self.paired_clips} and {self.probed_clips}"
            )
        if not all(0 < rate < 1 for rate in self.rates):
            raise ValueError(f"rates are between 0 and 1, got {list(self.rates)}")


@dataclass(frozen=True)
class Bench:
    """What an experiment works with.

    Attributes:
        pipe: the model.
        matrix: runs edits and remembers.
        clips: all of them.
        scale: how much to run.
        bundled: whether the model is the one that comes with the package.
    """

    pipe: CausalWanPipeline
    matrix: Matrix
    clips: tuple[Clip, ...]
    scale: Scale
    bundled: bool

    def some(self, most: int | None) -> tuple[Clip, ...]:
        """At most so many of the clips, spread evenly."""
        return spread(self.clips, most)

    def larger(self, most: int | None = None) -> tuple[Clip, ...]:
        """The clips of the larger experiments, or at most so many of them."""
        return spread(self.some(self.scale.clips), most)

    def prompt(self, clip: Clip) -> str:
        """The prompt that a clip gets, the same in every experiment."""
        return dict(zip(self.clips, cycle(self.scale.prompts), strict=False))[clip]

    def cells(self, variants: Iterable[Variant], clips: Iterable[Clip], **more: Any) -> list[Cell]:
        """A cell of every variant on every clip; ``more`` as in `Cell`."""
        chosen = list(variants)
        return [
            Cell(variant, clip.name, self.prompt(clip), **more)
            for clip in clips
            for variant in chosen
        ]

    def conditionings(self) -> tuple[str, ...]:
        """The ways in which this model may be given its source."""
        return ("sdedit", "source") if self.pipe.denoiser.takes_source else ("sdedit",)

    def each(self, what: str, jobs: Sequence[Job]) -> tuple[list[tuple[Clip, Any]], list[str]]:
        """What jobs give, each computed once, and a sentence for each clip that was left out."""
        found, missing = [], []
        for clip, given, compute in self.matrix.progress.steps(what, jobs):
            try:
                values = self.matrix.once(what, {"clip": clip.name, **given}, compute)
                found.append((clip, values))
            except (InputError, ModelError, ValueError) as error:
                missing.append(f"{clip.name} was left out: {error}")
        return found, list(dict.fromkeys(missing))

    def records(self, what: str, jobs: Sequence[Job]) -> tuple[list[Record], list[str]]:
        """The records of jobs that give lists of them, each with its clip's name; see `each`."""
        found, missing = self.each(what, jobs)
        return [{"clip": clip.name, **record} for clip, own in found for record in own], missing


class Job(NamedTuple):
    """A computation on one clip.

    Attributes:
        clip: the clip.
        given: plain values on which the result depends, besides clip, model and conditions.
        compute: gives plain values.
    """

    clip: Clip
    given: dict[str, Any]
    compute: Callable[[], Any]


def pick(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records that have some values."""
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


class Experiment(ABC):
    """Base of all experiments.

    Class attributes:
        name: what ``stillframe reproduce`` takes.
        summary: one line for listings.
        title: a few words.
        question: what it asks.
        papers: what the papers report of the same; empty if nothing.
        caveats: what it cannot show; ``bundled_caveat``: nor the bundled model.
        place: on a page of several, lowest first.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    papers: ClassVar[str] = ""
    caveats: ClassVar[tuple[str, ...]] = ()
    bundled_caveat: ClassVar[str] = ""
    place: ClassVar[int]

    @abstractmethod
    def run(self, bench: Bench) -> Findings:
        """Do it.

        Raises:
            KeyboardInterrupt: the run was to end; what was done is kept.
        """

    def limits(self, bench: Bench) -> list[str]:
        """Its caveats with this bench's model."""
        bundled = bench.bundled and self.bundled_caveat
        return [*self.caveats, self.bundled_caveat] if bundled else [*self.caveats]

    def findings(self, headline: str, **rest: Any) -> Findings:
        """Findings with this experiment's own words filled in."""
        return Findings(
            name=self.name,
            title=self.title,
            question=self.question,
            papers=self.papers,
            headline=headline,
            **rest,
        )


_REGISTRY: Registry[Experiment] = Registry("experiment")

#: Class decorator: makes an experiment known under a name.
register = _REGISTRY.register

#: All registered experiments by name.
experiments = _REGISTRY.all

#: The experiment of a name; ValueError if there is none.
find_experiment = _REGISTRY.find
