"""Before the application: refuses foreign host names, and adds security headers to answers.

Plain ASGI: where a client goes in the midst of a request, there is nothing here to end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi.responses import PlainTextResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from stillframe.server.access import AccessPolicy, host_and_port

__all__ = ["HostCheck", "client_address", "content_security_policy"]

_NAME = re.compile(r"[a-z0-9.-]+")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # an address is nobody else's business
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def content_security_policy(host: str | None) -> str:
    """What the page may load, and whom it may call: the server's own, under the name it was called.

    Args:
        host: that name and port, as in a request.
    """
    called = host_and_port(host or "")
    own = "'self'"
    # a policy has no form for IPv6 addresses (CSP3, 2.3.1), and to most browsers 'self' says all
    if called is not None and _NAME.fullmatch(called[0]):
        name = called[0] if called[1] is None else f"{called[0]}:{called[1]}"
        own = f"'self' ws://{name} wss://{name}"
    return (
        f"default-src 'self'; connect-src {own}; img-src 'self' blob: data:; "
        "media-src 'self' blob: mediastream:; worker-src 'self' blob:; "
        "style-src 'self'; object-src 'none'; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    )


def client_address(scope: Any) -> str:
    """Where a request comes from, "" if that is not known."""
    client = scope.get("client")
    return client[0] if client else ""


class HostCheck:
    """Refuses requests and sockets under foreign names, and adds headers."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, a socket, or the application's own life."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host")
        allowed = self._policy.host_allowed(host)
        if scope["type"] == "websocket":
            # before it is accepted: an answer of HTTP, 403
            await (self._app if allowed else WebSocketClose())(scope, receive, send)
            return
        answers = _with_headers(send, host if allowed else None)
        refusal = PlainTextResponse("this server does not answer to that name", 403)
        await (self._app if allowed else refusal)(scope, receive, answers)


def _with_headers(send: Send, host: str | None) -> Callable[[Message], Any]:
    async def answers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = content_security_policy(host)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return answers
