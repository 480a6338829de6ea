"""Clean duplicates: a pruned token takes the key and value of the last committed frame.

Committed frames are clean (their context pass ran at sigma 0), so no noise is duplicated. Keys are
cached before rotation and rotated to where they are used; what moved is followed back to its place
in that frame. Source: arXiv 2603.05811, noise-aware duplication; the papers' method.
"""

from __future__ import annotations

from stillframe.recovery.base import Recovery, register

__all__ = ["CleanRecovery"]


@register("clean")
class CleanRecovery(Recovery):
    """What `Recovery` does by itself."""

    summary = "keys and values of the last committed, noise-free frame (the papers)"
