"""Who is let in, whatever is served: token, origin, and limits.

Knows HTTP, not what is served: a live server's state and a study's are an `Admission` each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, HTTPException, Request, Response

from stillframe.server.access import (
    COOKIE,
    AccessPolicy,
    TokenCheck,
    UnauthenticatedConnections,
    cookie_of,
    token_in,
)
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.middleware import client_address

__all__ = [
    "ABORT",
    "AUTHENTICATED",
    "Admission",
    "authenticate",
    "authenticated",
    "bounded_body",
    "call_extension",
    "from_here",
    "token_needed",
]

#: The ASGI extension by which a server lets an application cut a connection off.
ABORT = "stillframe.abort"
#: The ASGI extension by which an application says that a connection has shown its token.
AUTHENTICATED = "stillframe.authenticated"


class Admission:
    """What decides about a server's connections before what is served does.

    Args:
        policy: who may use the server.
        limits: of what a client may send.

    Attributes:
        tokens, unauthenticated: see ``access``.
    """

    def __init__(self, policy: AccessPolicy, limits: Limits) -> None:
        self.policy, self.limits = policy, limits
        self.tokens = TokenCheck(policy)
        self.unauthenticated = UnauthenticatedConnections(
            limits.unauthenticated, limits.unauthenticated_each
        )


def call_extension(scope: Any, name: str) -> None:
    """Call an extension of the server's, if it has it."""
    found = (scope.get("extensions") or {}).get(name)
    if found is not None:
        found["call"]()


def authenticated(scope: Any) -> None:
    """A connection has shown its token."""
    call_extension(scope, AUTHENTICATED)


async def authenticate(
    admission: Admission, request: Request, token: str | None = None
) -> str | None:
    """Check a client's token, and count its connection as unauthenticated no more.

    Args:
        token: that the request's body has, if it has one.

    Returns:
        The token if a header had it.

    Raises:
        HTTPException: it is missing or wrong.
        RefusedError: too many wait for theirs to be looked at.
    """
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = bearer.strip() if scheme.lower() == "bearer" else None
    given = token or shown or token_in(request.cookies)
    if not await admission.tokens.accepts(given, client_address(request.scope)):
        raise HTTPException(401, "the token is missing or wrong")
    authenticated(request.scope)
    return shown


def token_needed(admission: Admission) -> Any:
    """What refuses requests without the token, and gives who showed it the cookie that keeps it."""

    async def check(request: Request, response: Response) -> None:
        try:
            shown = await authenticate(admission, request)
        except RefusedError as error:
            raise HTTPException(429, str(error)) from error
        if admission.policy.needs_token and shown:
            # the page forgets it, and browsers send the cookie along where pages cannot read it
            response.set_cookie(
                COOKIE,
                cookie_of(shown),
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )

    return Depends(check)


def from_here(admission: Admission) -> Any:
    """What refuses requests of other pages than the server's own."""

    def check(request: Request) -> None:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if not admission.policy.origin_allowed(origin, host):
            raise HTTPException(403, "this server answers to its own page only")

    return Depends(check)


async def bounded_body(request: Request, most: int, refusal: Callable[[], Exception]) -> bytes:
    """A request's body, of at most so many bytes.

    Raises:
        Exception: what ``refusal`` makes, where it has more.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise refusal()
    return bytes(data)
