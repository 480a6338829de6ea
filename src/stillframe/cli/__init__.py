"""The command line: one file a command."""

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``stillframe`` command."""
    from stillframe.cli.interruption import interruptible

    with interruptible():
        from stillframe.cli.app import app

        app()
