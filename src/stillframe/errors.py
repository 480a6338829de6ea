"""The error tree: what a caller of stillframe may want to catch.

    StillframeError
    ├── InputError              a file or frame that cannot be used: missing, not a video, corrupt
    ├── OutputError             a result that cannot be written: no permission, disk full
    │   └── OutputClosedError   nobody reads the result any more
    ├── ModelError              a model that cannot be loaded or is not of a supported kind
    └── WorkerError             a process that works for this one has gone

Wrong *arguments* raise ``ValueError`` (or ``TypeError``), as everywhere in Python. Every message is
one sentence with the numbers in it; the command line prints it and exits with code 2.
"""

from __future__ import annotations

__all__ = [
    "InputError",
    "ModelError",
    "OutputClosedError",
    "OutputError",
    "StillframeError",
    "WorkerError",
]


class StillframeError(Exception):
    """Base of all errors that stillframe raises on purpose."""


class InputError(StillframeError):
    """A video, frame or file that cannot be used."""


class OutputError(StillframeError):
    """A result that cannot be written."""


class OutputClosedError(OutputError):
    """A pipe or connection whose other end has been closed, or takes nothing any more."""


class ModelError(StillframeError):
    """A model that cannot be loaded, or that this engine does not support."""


class WorkerError(StillframeError):
    """A process that works for this one, and has gone."""
