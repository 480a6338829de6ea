"""``python -m stillframe`` is the ``stillframe`` command."""

from stillframe.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
