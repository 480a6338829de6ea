"""Models from where they lie to a pipeline: recipes, the hub, checkpoints, prompts, memory."""

__all__: list[str] = []
