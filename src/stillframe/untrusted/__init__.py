"""What strangers hand over: strings made fit to be shown, small files and numbers within bounds."""

__all__: list[str] = []
