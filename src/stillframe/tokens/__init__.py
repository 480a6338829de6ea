"""Pure tensor maths on a block's tokens: grid, plan, merging, restoring, noise schedules."""

__all__: list[str] = []
