"""The methods that experiments compare, as far as this version has them."""

from __future__ import annotations

from collections.abc import Sequence

from stillframe.evaluation.variants import Variant, at_rate, missing_methods

__all__ = ["MERGING", "PRUNING", "RECOVERIES", "at_rates", "by_recovery"]

#: Baselines that leave tokens out.
PRUNING = ("plain", "noisy", "runlength")
#: Baselines that merge tokens.
MERGING = ("tomesd", "tome", "importance", "idm")
#: What may stand in for pruned tokens, from nothing to ours.
RECOVERIES = ("none", "noisy", "clean", "aligned")

_OURS = ("aligned", "clean")
# experiments that compare with the papers take the papers' mask, and decode what was reused
_DETECTOR = "latent"
_MASKED = ("plain", "noisy")


def at_rates(
    rates: Sequence[float], *, leave_out: Sequence[str] = ()
) -> tuple[list[Variant], list[str]]:
    """Pruning with recovery and all baselines at some rates.

    Args:
        rates: shares of tokens to prune or merge.
        leave_out: baselines that are not wanted.

    Returns:
        the variants, method by method; and a sentence for each method that is missing.
    """
    names = [name for name in (*PRUNING, *MERGING) if name not in leave_out]
    missing = missing_methods(["prune", *names], rate=True)
    found = []
    if "prune" not in missing:
        found += [
            at_rate("prune", rate, recovery=r, detector=_DETECTOR) for r in _OURS for rate in rates
        ]
    for name in (name for name in names if name not in missing):
        given = {"detector": _DETECTOR} if name in _MASKED else {}
        found += [at_rate(name, rate, **given) for rate in rates]
    return found, list(missing.values())


def by_recovery(recoveries: Sequence[str] = RECOVERIES) -> list[Variant]:
    """Pruning by the papers' thresholds with each recovery: the mask is the same for all."""
    return [Variant.of("prune", recovery=r, detector=_DETECTOR) for r in recoveries]
