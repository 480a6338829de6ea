"""How huggingface_hub is called: in silence, with its errors in one sentence, progress as numbers.

Knows the exceptions of huggingface_hub and of what it is built on; imports it when it is used. Does
not know which files are wanted, or why.
"""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stillframe.errors import ModelError

__all__ = ["Progress", "one_sentence_hub_errors", "silent_bar"]

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, its bytes so far, and all its bytes (None: not known)."""


def silent_bar(name: str = "", progress: Progress | None = None) -> type[Any]:
    """A class in place of huggingface_hub's progress bar: shows nothing, and tells ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **{**given, "disable": True})
            self._done = given.get("initial") or 0
            self.update(0)

        def update(self, n: float | None = 1) -> None:
            self._done += n or 0
            if progress is not None:
                progress(name, int(self._done), self.total)

        # bytes on the wire, which huggingface_hub would give a second bar otherwise
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_transfer_postfix_str(self, *args: Any, **given: Any) -> None:
            pass

    return Bar


@contextmanager
def one_sentence_hub_errors(repo: str, file: str | None = None) -> Iterator[None]:
    """No log lines and warnings of huggingface_hub within the block, and its errors as ours."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the network, two transports and a disk fail in every way there is
        what = repo if file is None else f"{file} of {repo}"
        raise ModelError(_explain(error, repo, what)) from error
    finally:
        set_verbosity(before)


def _explain(error: BaseException, repo: str, what: str) -> str:
    """One sentence about why ``what`` cannot be had: the first cause that is understood."""
    cause: BaseException | None = error
    while cause is not None:
        if (sentence := _sentence(cause, repo, what)) is not None:
            return sentence
        cause = cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines()
    return f"{what} cannot be had: {lines[0] if lines else type(error).__name__}"


def _sentence(error: BaseException, repo: str, what: str) -> str | None:
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    repo, _, revision = repo.partition("@")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub}/{repo} has no revision {revision}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is neither a folder nor a hub id (owner/name)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"offline mode is on (HF_HUB_OFFLINE), and {what} is not on disk"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{hub}/{repo} does not have {what}"
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error.response.status_code, isinstance(error, errors.GatedRepoError), repo)
    # by name, since huggingface_hub has changed from httpx to httpx2
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("httpx")}
    if kinds & {"ConnectError", "ConnectTimeout", "ProxyError"}:
        return f"there is no connection to {hub}, which is asked for {what}: {error}"
    if kinds:
        return f"the connection to {hub} broke while {what} was being fetched: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {constants.HF_HUB_CACHE} has no room for {what}"
    if isinstance(error, OSError) and error.errno is not None:
        place = error.filename or constants.HF_HUB_CACHE
        return f"{place} cannot be used for {what}: {error.strerror}"
    return None


def _refusal(status: int, gated: bool, repo: str) -> str:
    """What an HTTP status of the hub means for who asks for ``repo``."""
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{repo}"
    if gated or status == 403:
        return (
            f"{repo} is not open to everyone (status {status}): ask for access at {page}, then "
            "sign in with `hf auth login`"
        )
    if status == 401:  # also what strangers are told about repositories that do not exist
        return (
            f"{repo} does not exist or is private (status 401): check the name, or ask for access "
            f"at {page} and sign in with `hf auth login`"
        )
    if status == 404:
        return f"there is no model {repo}: {page} does not exist (status 404)"
    return f"{constants.ENDPOINT} answers with status {status} when asked for {repo}; try later"
