"""What changed in the source: in latents, in pixels, and how far what is reused has gone stale."""

__all__: list[str] = []
