"""The application: a page, a little HTTP about the server, and the connections of live editing.

What a connection does is in ``client_session``; ``serving`` puts the application on a port.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from stillframe.live import SessionError
from stillframe.loading.load import bundled_models
from stillframe.loading.recipes import load_recipes
from stillframe.loading.styles import Style
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.server import messages
from stillframe.server.access import COOKIE, AccessPolicy, cookie_of, token_in
from stillframe.server.client_session import ClientSession
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.middleware import HostCheck, client_address
from stillframe.server.protocol import TOO_LARGE, ProtocolError
from stillframe.server.state import ServerState
from stillframe.server.supervisor import ModelSupervisor, ProcessSupervisor, ThreadSupervisor
from stillframe.server.websocket import WebSocketTransport, authenticated

if TYPE_CHECKING:
    from stillframe.server.webrtc import WebRtcConnections

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"


def create_app(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | ModelSupervisor,
    *,
    max_sessions: int = 4,
    token: str | None = None,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    model: str = "",
    styles: Sequence[Style] = (),
    height: int | None = None,
    width: int | None = None,
    limits: Limits | None = None,
    defaults: Mapping[str, Any] | None = None,
    static: Path = _STATIC,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model_of: the model, or what loads it when the application starts, to run on a thread of
            this process; or what runs it, such as a `ProcessSupervisor`.
        max_sessions: that may be open at a time.
        token: that clients must know; needed unless ``host`` is this computer's own.
        host: where it will listen.
        names: other names by which clients may call it, where others can reach it.
        model: its name, for the listing.
        styles: that it knows.
        height, width: of the edited frames of clients that ask for none; by default the model's
            own height, and 16:9.
        limits: of what a client may send.
        defaults: values of options (`stillframe.config.edit_options`) for sessions whose clients do
            not say otherwise.
        static: the folder of the page.

    Raises:
        ValueError: a number is out of range, or a token is missing or too short.
    """
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be 1 or more, got {max_sessions}")
    policy = AccessPolicy(host, token, names)
    state = ServerState(
        _supervisor(model_of), policy, max_sessions, limits or Limits(), (height, width), styles,
        defaults,
    )  # fmt: skip
    webrtc = _webrtc(state)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with state.running():
            try:
                yield
            finally:
                if webrtc is not None:
                    await webrtc.close()

    # no page of documentation: it would come from elsewhere
    app = FastAPI(
        title="stillframe", version=version("stillframe"), docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.server, app.state.webrtc = state, webrtc
    app.add_middleware(HostCheck, policy=policy)
    _add_page(app, static)
    _add_listings(app, state, model)
    _add_websocket(app, state)
    _add_webrtc(app, state, webrtc)
    return app


def _supervisor(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | ModelSupervisor,
) -> ModelSupervisor:
    if isinstance(model_of, ThreadSupervisor | ProcessSupervisor):
        return model_of
    return ThreadSupervisor(cast("CausalWanPipeline | Callable[[], CausalWanPipeline]", model_of))


def _webrtc(state: ServerState) -> WebRtcConnections | None:
    """WebRTC connections, if the package for them is installed."""
    if importlib.util.find_spec("aiortc") is None:
        return None
    from stillframe.server.webrtc import WebRtcConnections

    state.transports.append("webrtc")
    return WebRtcConnections(state)


async def _authenticate(
    state: ServerState, request: Request, token: str | None = None
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
    if not await state.tokens.accepts(given, client_address(request.scope)):
        raise HTTPException(401, "the token is missing or wrong")
    authenticated(request.scope)
    return shown


def packaged_file(folder: Path, name: str) -> Path | None:
    """A file below a folder, None if there is none; hidden ones and links do not count.

    Args:
        name: parts with slashes between them, as in a URL.
    """
    parts = name.split("/")
    if any(not part or part[0] == "." or not part.isprintable() or "\\" in part for part in parts):
        return None
    try:
        root = folder.resolve()
        path = root.joinpath(*parts).resolve()
        return path if path.is_file() and path == root.joinpath(*parts) else None
    except (OSError, ValueError):
        return None


def _add_page(app: FastAPI, static: Path) -> None:
    def file(name: str) -> Response:
        path = packaged_file(static, name)
        if path is None:
            return PlainTextResponse("the server has no such file", 404)
        return FileResponse(path)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return file("index.html")

    @app.get("/static/{name:path}", include_in_schema=False)
    def static_file(name: str) -> Response:
        return file(name)


def _add_listings(app: FastAPI, state: ServerState, model: str) -> None:
    async def known(request: Request, response: Response) -> None:
        try:
            shown = await _authenticate(state, request)
        except RefusedError as error:
            raise HTTPException(429, str(error)) from error
        if state.policy.needs_token and shown:
            # the page forgets it, and browsers send the cookie along where pages cannot read it
            response.set_cookie(COOKIE, cookie_of(shown), httponly=True, samesite="strict")

    needs_token = Depends(known)

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        """Whether the server can serve."""
        return {"ok": state.ready}

    @app.get("/api/models", dependencies=[needs_token])
    def models() -> dict[str, Any]:
        """The model that is loaded, and the names of those that could be."""
        # of a folder only its name: its place is nobody's business
        return {
            "loaded": Path(model).name if Path(model).is_dir() else model,
            "known": [*bundled_models(), *load_recipes()],
        }

    @app.get("/api/styles", dependencies=[needs_token])
    def list_styles() -> list[dict[str, str]]:
        """The styles that the model knows; none for a model that takes any prompt."""
        return state.styles()

    @app.get("/api/status", dependencies=[needs_token])
    def status() -> dict[str, Any]:
        """Sessions, limits, and what the sessions have measured lately."""
        return state.status()


def _add_websocket(app: FastAPI, state: ServerState) -> None:
    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        host, origin = socket.headers.get("host"), socket.headers.get("origin")
        if not state.ready or not state.policy.origin_allowed(origin, host):
            await socket.close()  # before it is accepted: an answer of HTTP, 403
            return
        await socket.accept()
        await ClientSession(WebSocketTransport(socket, state), state).run()


def _add_webrtc(app: FastAPI, state: ServerState, webrtc: WebRtcConnections | None) -> None:
    def from_here(request: Request) -> None:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if not state.policy.origin_allowed(origin, host):
            raise HTTPException(403, "this server answers to its own page only")

    async def checked(request: Request, token: str | None = None) -> WebRtcConnections:
        await _authenticate(state, request, token)
        if webrtc is None:
            raise HTTPException(404, "there is no WebRTC here: pip install 'stillframe[webrtc]'")
        return webrtc

    own_page = Depends(from_here)

    @app.post("/webrtc/offer", dependencies=[own_page])
    async def offer(request: Request) -> dict[str, str]:
        """Answer a WebRTC offer: ``sdp``, ``type`` and what the socket's hello has."""
        limits = state.limits
        try:
            async with asyncio.timeout(limits.hello_seconds):
                data = await _body(request, limits)
            sdp, hello = messages.parse_offer(data)
            connections = await checked(request, hello.token)
            if not state.ready:
                raise RefusedError("the server is not ready; try again later")
            with state.connections.one():
                name, answer = await connections.answer(sdp, hello)
        except TimeoutError as error:
            raise HTTPException(408, "the offer did not come in time") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the offer did not come whole") from error
        except ProtocolError as error:
            raise HTTPException(413 if error.code == TOO_LARGE else 400, str(error)) from error
        except (RefusedError, SessionError) as error:
            raise HTTPException(503, str(error)) from error
        return {"type": "answer", "sdp": answer, "name": name}

    @app.delete("/webrtc/{name}", dependencies=[own_page])
    async def leave(name: str, request: Request) -> dict[str, bool]:
        """End a WebRTC connection by the name that came with its answer."""
        try:
            connections = await checked(request)
        except RefusedError as error:
            raise HTTPException(503, str(error)) from error
        if not await connections.close(name):
            raise HTTPException(404, "there is no such connection")
        return {"ok": True}


async def _body(request: Request, limits: Limits) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limits.offer_bytes:
            raise ProtocolError(f"an offer may have {limits.offer_bytes} bytes", TOO_LARGE)
    return bytes(data)
