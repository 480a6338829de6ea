"""What a participant is shown, in which order, and what is on the left: drawn from a seed.

Of every two methods each is on the left in half of a participant's pairs, or in one more. The same
seed and participant give the same plan.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

__all__ = ["Trial", "make_plan", "trial_id"]


class Trial(NamedTuple):
    """Two videos side by side.

    Attributes:
        clip: its name.
        left, right: the methods; one twice where it is a check that both sides are the same file.
    """

    clip: str
    left: str
    right: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What is compared, whatever is on the left."""
        first, second = sorted((self.left, self.right))
        return self.clip, first, second

    @property
    def is_check(self) -> bool:
        """Whether both sides are the same file."""
        return self.left == self.right


def make_plan(
    clips: Sequence[str], methods: Sequence[str], participant: str, seed: int, checks: int = 0
) -> list[Trial]:
    """All trials of a participant in their order.

    Args:
        checks: trials among them that show one file on both sides, each of another clip.

    Raises:
        ValueError: there are fewer clips than checks.
    """
    if not 0 <= checks <= len(clips):
        raise ValueError(f"there are {len(clips)} clips for checks, got {checks} checks")
    draw = random.Random(f"{seed}/{participant}")
    plan: list[Trial] = []
    for pair in combinations(methods, 2):
        odd_one = draw.randrange(2)
        swapped = [(number + odd_one) % 2 == 0 for number in range(len(clips))]
        draw.shuffle(swapped)
        plan += [
            Trial(clip, *(reversed(pair) if swap else pair))
            for clip, swap in zip(clips, swapped, strict=True)
        ]
    plan += [Trial(clip, *[draw.choice(methods)] * 2) for clip in draw.sample(list(clips), checks)]
    draw.shuffle(plan)
    return plan


def trial_id(trial: Trial, participant: str, seed: int) -> str:
    """A name that tells nothing of the trial to who does not know the seed."""
    told = "\0".join((str(seed), participant, *trial))
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:20]
