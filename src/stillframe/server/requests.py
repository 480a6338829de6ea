"""What offers over HTTP have in common: bounded bodies, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from stillframe.live import SessionError
from stillframe.server.admission import bounded_body
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.protocol import TOO_LARGE, ProtocolError

__all__ = ["body", "refusals"]


@contextmanager
def refusals() -> Iterator[None]:
    """What an offer can come to, as HTTP says it."""
    try:
        yield
    except TimeoutError as error:
        raise HTTPException(408, "the offer did not come in time") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the offer did not come whole") from error
    except ProtocolError as error:
        raise HTTPException(413 if error.code == TOO_LARGE else 400, str(error)) from error
    except (RefusedError, SessionError) as error:
        raise HTTPException(503, str(error)) from error


async def body(request: Request, limits: Limits) -> bytes:
    """A request's body.

    Raises:
        ProtocolError: it has more bytes than an offer may have.
    """
    most = limits.offer_bytes
    told = f"an offer may have {most} bytes"
    return await bounded_body(request, most, lambda: ProtocolError(told, TOO_LARGE))
