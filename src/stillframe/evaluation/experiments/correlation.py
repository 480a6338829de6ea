"""Correlation of change in pixels with change in latents, by patches of (2, 2, 2) latents."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.evaluation.experiments.base import Bench, Experiment, Job, register
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, number, span
from stillframe.evaluation.latents import encode, frame_fit
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import bootstrap_mean, pearson

__all__ = ["Correlation", "changes"]

_PATCH = 2
_SHOWN = 600  # points of a plot


def changes(latents: Tensor, pixels: Tensor, spatial: int, temporal: int) -> NDArray[np.float64]:
    """Change of each patch against the patch before it at the same place, in latents and pixels.

    A patch is 2 latent frames by 2 by 2 latents, and the pixels that they stand for; its change is
    the mean absolute difference over all its numbers. The papers leave open how a patch of two
    frames is compared; here neighbours in time do not overlap.

    Args:
        latents: (C, F, h, w).
        pixels: (T, 3, H, W), the frames that the latent frames stand for, ``F * temporal`` or more;
            0 to 1.
        spatial, temporal: pixels and pixel frames of a latent.

    Returns:
        (2, n): of latents in their standard deviations, and of pixels.

    Raises:
        ValueError: there are not two patches in time.
    """
    frames = latents.shape[1] // _PATCH * _PATCH
    if frames < 2 * _PATCH:
        raise ValueError(f"{latents.shape[1]} latent frames are too few: a change takes 4")
    video = pixels[: frames * temporal].transpose(0, 1)
    sides = (temporal * _PATCH, spatial * _PATCH, spatial * _PATCH)
    both = [_change(latents[:, :frames], (_PATCH,) * 3), _change(video, sides)]
    return np.stack([x.flatten().double().cpu().numpy() for x in both])


def _change(x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(C, T, H, W) in patches of some sides: mean absolute difference of neighbours in time."""
    t, h, w = (size // side for size, side in zip(x.shape[1:], sides, strict=True))
    x = x[:, : t * sides[0], : h * sides[1], : w * sides[2]].float()
    cut = x.reshape(x.shape[0], t, sides[0], h, sides[1], w, sides[2])
    patches = cut.permute(1, 3, 5, 0, 2, 4, 6).flatten(3)
    return (patches[1:] - patches[:-1]).abs().mean(-1)


def _of_clip(bench: Bench, clip: Clip) -> list[list[float]]:
    frames = bench.matrix.source(clip.name).frames
    coded = encode(bench.pipe, frames)
    latents, timeline = coded.whole[0], coded.timeline
    # the first latent frame may stand for fewer frames than the others: those are compared
    skipped = 1 if timeline.pad else 0
    start = timeline.source_frames(skipped).start
    fit = frame_fit(bench.pipe, frames)
    padded = fit.to_grid(torch.from_numpy(np.array(frames[start:])))
    found = changes(latents[:, skipped:].cpu(), padded, timeline.spatial, timeline.temporal)
    return [row.tolist() for row in found.round(6)]


@register("correlation")
class Correlation(Experiment):
    """Pearson's r over all patches of all clips, and of each clip."""

    summary = "change in pixels against change in latents, (2, 2, 2) patches"
    title = "Change in pixels and in latents"
    place = 8
    question = "Does a patch of latents change where, and as much as, its pixels do?"
    papers = "DAVIS 2017: Pearson r = 0.69 for Wan 2.1's autoencoder, 0.77 for Wan 2.2's."
    caveats = (
        "One r over all clips also counts that some clips move more than others; the clips' own "
        "do not.",
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        jobs = [Job(clip, {}, partial(_of_clip, bench, clip)) for clip in bench.clips]
        values, missing = bench.each(self.name, jobs)
        found = {clip.name: np.array(each) for clip, each in values}
        if not found:
            return self.findings("No clip is long enough.", missing=missing)
        both = np.concatenate(list(found.values()), axis=1)
        single = {name: pearson(x, y) for name, (x, y) in found.items()}
        mean = bootstrap_mean(single.values())
        return self.findings(
            f"Pearson r = {number(pearson(*both))} over {both.shape[1]} patches of {len(found)} "
            f"clips; mean of the clips' own {span(mean)}.",
            caveats=self.limits(bench),
            missing=missing,
            tables=[_table(found, single)],
            plots=[_plot(both)],
            rows=[
                {"clip": name, "patches": x.shape[1], "r": single[name]}
                for name, x in found.items()
            ],
        )


def _table(found: dict[str, Any], single: dict[str, float]) -> Table:
    body = [[name, str(found[name].shape[1]), number(r)] for name, r in single.items()]
    return Table("Each clip's own correlation.", ("clip", "patches", "r"), body)


def _plot(both: NDArray[np.float64]) -> Plot:
    chosen = np.random.default_rng(0).permutation(both.shape[1])[:_SHOWN]
    points = [Point(float(x), float(y)) for y, x in both[:, chosen].T]
    return Plot(
        f"Each point is a patch ({len(points)} of {both.shape[1]}, drawn at random). Where latents "
        "change and pixels do not, or the other way round, a mask from latents errs.",
        "mean absolute change of pixels, 0 to 1",
        "of latents, standard deviations",
        [Series("patches", points)],
    )
