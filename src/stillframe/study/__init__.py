"""A blind comparison for people: pairs of videos side by side, votes, and what they come to.

The preference test of the papers on token pruning (51 pairs, win, tie and lose) for anyone with a
folder of videos. Needs ``[serve]``.
"""

__all__: list[str] = []
