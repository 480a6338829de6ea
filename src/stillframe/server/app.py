"""The application: a page, a little HTTP about the server, and the socket of live editing.

`create_app` puts together who may come in, what all share (``house``), and a connection a socket.
What a connection does is in ``connection``; on which port this is served, it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
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
from stillframe.server.connection import Connection
from stillframe.server.doorkeeper import KNOWN, Doorkeeper, client_address
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
from stillframe.server.messages import ProtocolError
from stillframe.server.offers import parse_offer
from stillframe.server.supervisor import Keeper, ProcessKeeper, SessionKeeper

if TYPE_CHECKING:
    from stillframe.server.webrtc import Peers

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"


def create_app(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | SessionKeeper,
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
            this process; or what runs it, such as a `ProcessKeeper`.
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
    gate = Gate(host, token, names)
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
    app.add_middleware(Doorkeeper, gate=gate)
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


async def _admitted(house: House, request: Request, said: str | None = None) -> str | None:
    """See that a client's token is right, and take its connection for no stranger's any more.

    Args:
        said: the token, if the request's body has one.

    Returns:
        The token if a header had it.

    Raises:
        HTTPException: it is missing or wrong.
        RefusedError: too many wait for theirs to be looked at.
    """
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = bearer.strip() if scheme.lower() == "bearer" else None
    given = said or shown or token_in(request.cookies)
    if not await house.entry.admits(given, client_address(request.scope)):
        raise HTTPException(401, "the token is missing or wrong")
    _known(request.scope)
    return shown


def _known(scope: Any) -> None:
    known = (scope.get("extensions") or {}).get(KNOWN)
    if known is not None:
        known["known"]()


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
    async def known(request: Request, response: Response) -> None:
        try:
            shown = await _admitted(house, request)
        except RefusedError as error:
            raise HTTPException(429, str(error)) from error
        if house.gate.asks and shown:
            # the page forgets it, and browsers send the cookie along where pages cannot read it
            response.set_cookie(COOKIE, cookie_of(shown), httponly=True, samesite="strict")

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
        host, origin = socket.headers.get("host"), socket.headers.get("origin")
        if house.hall is None or not house.gate.origin_allowed(origin, host):
            await socket.close()  # before it is accepted: an answer of HTTP, 403
            return
        await Connection(socket, house.hall).run()


def _add_offers(app: FastAPI, house: House) -> None:
    def from_here(request: Request) -> None:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if not house.gate.origin_allowed(origin, host):
            raise HTTPException(403, "this server answers to its own page only")

    async def checked(request: Request, said: str | None = None) -> Peers:
        await _admitted(house, request, said)
        if house.peers is None:
            raise HTTPException(404, "there is no WebRTC here: pip install 'stillframe[webrtc]'")
        return house.peers

    own_page = Depends(from_here)

    @app.post("/webrtc/offer", dependencies=[own_page])
    async def offer(request: Request) -> dict[str, str]:
        """Answer a WebRTC offer: ``sdp``, ``type`` and what the socket's hello has."""
        limits = house.limits
        try:
            async with asyncio.timeout(limits.hello_seconds):
                data = await _body(request, limits)
            sdp, hello = parse_offer(data)
            peers = await checked(request, hello.token)
            if house.hall is None:
                raise RefusedError("the server is not ready; try again later")
            with house.sockets.seat():
                name, answer = await peers.answer(house.hall, sdp, hello)
        except TimeoutError as error:
            raise HTTPException(408, "the offer did not come in time") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the offer did not come whole") from error
        except ProtocolError as error:
            raise HTTPException(413 if error.code == 1009 else 400, str(error)) from error
        except (RefusedError, SessionError) as error:
            raise HTTPException(503, str(error)) from error
        return {"type": "answer", "sdp": answer, "name": name}

    @app.delete("/webrtc/{name}", dependencies=[own_page])
    async def leave(name: str, request: Request) -> dict[str, bool]:
        """End a WebRTC connection by the name that came with its answer."""
        try:
            peers = await checked(request)
        except RefusedError as error:
            raise HTTPException(503, str(error)) from error
        if not await peers.close(name):
            raise HTTPException(404, "there is no such connection")
        return {"ok": True}


async def _body(request: Request, limits: Limits) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limits.offer_bytes:
            raise ProtocolError(f"an offer may have {limits.offer_bytes} bytes", 1009)
    return bytes(data)
