"""Live editing over the network: HTTP for a page, a WebSocket for frames; needs ``[serve]``."""

__all__: list[str] = []
