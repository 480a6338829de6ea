"""The application: a page, a little HTTP about the server, and the socket of live editing.

`create_app` puts together who may come in, what all share (``house``), and a connection a socket.
What a connection does is in ``connection``; on which port this is served, it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse

from stillframe.live import SessionError
from stillframe.loading.load import bundled_models
from stillframe.loading.recipes import load_recipes
from stillframe.loading.styles import Style
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.server.connection import Connection
from stillframe.server.guard import (
    COOKIE,
    Gate,
    RefusedError,
    cookie_of,
    packaged_file,
    token_in,
)
from stillframe.server.house import House
from stillframe.server.limits import Limits
from stillframe.server.messages import ProtocolError, encode
from stillframe.server.sdp import parse_offer
from stillframe.server.supervisor import Keeper, ProcessKeeper, SessionKeeper

if TYPE_CHECKING:
    from stillframe.server.webrtc import Peers

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' blob: data:; "
        "media-src 'self' blob: mediastream:; worker-src 'self' blob:; "
        "style-src 'self'; object-src 'none'; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    # the page's address may hold the token
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def create_app(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | SessionKeeper,
    *,
    max_sessions: int = 4,
    token: str | None = None,
    host: str = "127.0.0.1",
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
            this process; or what runs it, such as a `ProcessKeeper`.
        max_sessions: that may be open at a time.
        token: that clients must know; needed unless ``host`` is this computer's own.
        host: where it will listen.
        model: its name, for the listing.
        styles: that it knows.
        height, width: of the edited frames of clients that ask for none; by default the model's
            own height, and 16:9.
        limits: of what a client may send.
        defaults: values of options (`stillframe.config.edit_options`) for sessions whose clients do
            not say otherwise.
        static: the folder of the page.

    Raises:
        ValueError: a number is out of range, or a token is missing.
    """
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be 1 or more, got {max_sessions}")
    gate = Gate(host, token)
    keeper = _keeper(model_of)
    house = House(
        keeper, gate, max_sessions, limits or Limits(), (height, width), styles,
        defaults or {},
    )  # fmt: skip
    # no page of documentation: it would come from elsewhere
    app = FastAPI(
        title="stillframe", version=version("stillframe"), docs_url=None, redoc_url=None,
        lifespan=house.open,
    )  # fmt: skip
    app.state.house = house
    app.middleware("http")(_Doorkeeper(gate))
    _add_page(app, static)
    _add_listings(app, house, model)
    _add_socket(app, house)
    _add_offers(app, house)
    return app


def _keeper(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | SessionKeeper,
) -> SessionKeeper:
    if isinstance(model_of, Keeper | ProcessKeeper):
        return model_of
    return Keeper(cast("CausalWanPipeline | Callable[[], CausalWanPipeline]", model_of))


class _Doorkeeper:
    """Turns away requests under foreign names, keeps a right token, adds headers."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(
        self, request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response: Response
        if not self._gate.host_allowed(request.headers.get("host")):
            response = PlainTextResponse("this server answers to local names only", 403)
        else:
            response = await go_on(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        given = request.query_params.get("token")
        if self._gate.asks and given and self._gate.knows(given):
            response.set_cookie(COOKIE, cookie_of(given), httponly=True, samesite="strict")
        return response


def _token_of(headers: Mapping[str, str], query: Mapping[str, str], cookies: Any) -> str | None:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer
    return query.get("token") or token_in(cookies)


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


def _add_listings(app: FastAPI, house: House, model: str) -> None:
    def known(request: Request) -> None:
        given = _token_of(request.headers, request.query_params, request.cookies)
        if not house.gate.knows(given):
            raise HTTPException(401, "the token is missing or wrong")

    needs_token = Depends(known)

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        """Whether the server can serve."""
        return {"ok": house.hall is not None}

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
        return house.styles()

    @app.get("/api/status", dependencies=[needs_token])
    def status() -> dict[str, Any]:
        """Sessions, limits, and what the sessions have measured lately."""
        return house.status()


def _add_socket(app: FastAPI, house: House) -> None:
    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        host = socket.headers.get("host")
        allowed = house.gate.host_allowed(host)
        if not allowed or not house.gate.origin_allowed(socket.headers.get("origin"), host):
            await socket.close()  # before it is accepted: an answer of HTTP, 403
            return
        assert house.hall is not None
        try:
            with house.sockets.seat():
                await Connection(socket, house.hall).run()
        except RefusedError as error:
            await socket.accept()
            await socket.send_text(encode("refused", reason=str(error)))
            await socket.close(1013)


def _add_offers(app: FastAPI, house: House) -> None:
    def checked(request: Request, token: str | None = None) -> Peers:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if not house.gate.origin_allowed(origin, host):
            raise HTTPException(403, "this server answers to its own page only")
        given = token or _token_of(request.headers, request.query_params, request.cookies)
        if not house.gate.knows(given):
            raise HTTPException(401, "the token is missing or wrong")
        if house.peers is None:
            raise HTTPException(404, "there is no WebRTC here: pip install 'stillframe[webrtc]'")
        return house.peers

    @app.post("/webrtc/offer")
    async def offer(request: Request) -> dict[str, str]:
        """Answer a WebRTC offer: ``sdp``, ``type`` and what the socket's hello has."""
        assert house.hall is not None
        try:
            with house.sockets.seat():
                limits = house.limits
                async with asyncio.timeout(limits.hello_seconds):
                    data = await _body(request, limits)
                sdp, hello = parse_offer(data, limits.text_bytes)
                peers = checked(request, hello.token)
                name, answer = await peers.answer(house.hall, sdp, hello)
        except TimeoutError as error:
            raise HTTPException(408, "the offer did not come in time") from error
        except ProtocolError as error:
            raise HTTPException(413 if error.code == 1009 else 400, str(error)) from error
        except (RefusedError, SessionError) as error:
            raise HTTPException(503, str(error)) from error
        return {"type": "answer", "sdp": answer, "name": name}

    @app.delete("/webrtc/{name}")
    async def leave(name: str, request: Request) -> dict[str, bool]:
        """End a WebRTC connection by the name that came with its answer."""
        if not await checked(request).close(name):
            raise HTTPException(404, "there is no such connection")
        return {"ok": True}


async def _body(request: Request, limits: Limits) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limits.offer_bytes:
            raise ProtocolError(f"an offer may have {limits.offer_bytes} bytes", 1009)
    return bytes(data)
