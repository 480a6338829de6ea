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

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse

from stillframe.loading.load import bundled_models
from stillframe.loading.recipes import load_recipes
from stillframe.loading.styles import Style
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.server import messages
from stillframe.server.access import AccessPolicy
from stillframe.server.admission import authenticate, from_here, token_needed
from stillframe.server.client_session import ClientSession
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.middleware import HostCheck
from stillframe.server.pages import STATIC, add_page
from stillframe.server.pool import WorkerPool
from stillframe.server.requests import body, refusals
from stillframe.server.speed import SpeedProbe
from stillframe.server.state import ServerState
from stillframe.server.supervisor import ModelSupervisor, ProcessSupervisor, ThreadSupervisor
from stillframe.server.viewing import add_view
from stillframe.server.websocket import WebSocketTransport

if TYPE_CHECKING:
    from stillframe.server.webrtc import WebRtcConnections
    from stillframe.server.whip import WhepConnections

__all__ = ["create_app"]


def create_app(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | ModelSupervisor,
    *,
    max_sessions: int = 4,
    token: str | None = None,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    model: str = "",
    styles: Sequence[Style] = (),
    style_pictures: Path | None = None,
    height: int | None = None,
    width: int | None = None,
    limits: Limits | None = None,
    defaults: Mapping[str, Any] | None = None,
    blend: int = 0,
    static: Path = STATIC,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model_of: the model, or what loads it when the application starts, to run on a thread of
            this process; or what runs it, such as a `ProcessSupervisor` or a `WorkerPool`.
        max_sessions: that may be open at a time.
        token: that clients must know; needed unless ``host`` is this computer's own.
        host: where it will listen.
        names: other names by which clients may call it, where others can reach it.
        model: its name, for the listing.
        styles: that it knows.
        style_pictures: file with pictures of them, see ``loading.styles.PICTURES_FILE``.
        height, width: of the edited frames of clients that ask for none; by default the model's
            own height, and 16:9.
        limits: of what a client may send.
        defaults: values of options (`stillframe.config.edit_options`) for sessions whose clients do
            not say otherwise.
        blend: blocks that another prompt takes to come in, for such sessions.
        static: the folder of the page.

    Raises:
        ValueError: a number is out of range, or a token is missing or too short.
    """
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be 1 or more, got {max_sessions}")
    policy = AccessPolicy(host, token, names)
    state = ServerState(
        _supervisor(model_of), policy, max_sessions, limits or Limits(), (height, width), styles,
        defaults, blend,
    )  # fmt: skip
    webrtc, whep = _webrtc(state)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with state.running():
            try:
                yield
            finally:
                if webrtc is not None and whep is not None:
                    await whep.close()
                    await webrtc.close()

    # no page of documentation: it would come from elsewhere
    app = FastAPI(
        title="stillframe", version=version("stillframe"), docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.server, app.state.webrtc, app.state.whep = state, webrtc, whep
    app.add_middleware(HostCheck, policy=policy)
    add_page(app, static)
    _add_listings(app, state, model, style_pictures)
    _add_websocket(app, state)
    _add_webrtc(app, state, webrtc)
    if webrtc is not None and whep is not None:
        from stillframe.server.whip import add_whip

        add_whip(app, state, webrtc, whep)
    add_view(app, state, static)
    return app


def _supervisor(
    model_of: CausalWanPipeline | Callable[[], CausalWanPipeline] | ModelSupervisor,
) -> ModelSupervisor:
    if isinstance(model_of, ThreadSupervisor | ProcessSupervisor | WorkerPool):
        return model_of
    return ThreadSupervisor(cast("CausalWanPipeline | Callable[[], CausalWanPipeline]", model_of))


def _webrtc(state: ServerState) -> tuple[WebRtcConnections, WhepConnections] | tuple[None, None]:
    """WebRTC connections, and those of who only watches, if the package for them is installed."""
    if importlib.util.find_spec("aiortc") is None:
        return None, None
    from stillframe.server.webrtc import WebRtcConnections
    from stillframe.server.whip import WhepConnections

    state.transports += ["webrtc", "whip", "whep"]
    return WebRtcConnections(state), WhepConnections(state)


def _add_listings(
    app: FastAPI, state: ServerState, model: str, style_pictures: Path | None
) -> None:
    needs_token = token_needed(state)

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

    @app.get("/api/styles/pictures", dependencies=[needs_token])
    def pictures() -> Response:
        """Pictures of the styles in their order, below each other and of one size; WebP."""
        if style_pictures is None:
            return PlainTextResponse("the model has no pictures of its styles", 404)
        return FileResponse(style_pictures, media_type="image/webp")

    probe = SpeedProbe(state)

    @app.get("/api/speed", dependencies=[needs_token])
    async def speed() -> dict[str, Any]:
        """Sizes and how fast this machine edits them if all is computed; takes a while once."""
        return await probe.answer()

    @app.get("/api/status", dependencies=[needs_token])
    def status() -> dict[str, Any]:
        """Sessions, workers, limits, and what the sessions have measured lately."""
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
    async def checked(request: Request, token: str | None = None) -> WebRtcConnections:
        await authenticate(state, request, token)
        if webrtc is None:
            raise HTTPException(404, "there is no WebRTC here: pip install 'stillframe[webrtc]'")
        return webrtc

    own_page = from_here(state)

    @app.post("/webrtc/offer", dependencies=[own_page])
    async def offer(request: Request) -> dict[str, str]:
        """Answer a WebRTC offer: ``sdp``, ``type`` and what the socket's hello has."""
        limits = state.limits
        with refusals():
            async with asyncio.timeout(limits.hello_seconds):
                data = await body(request, limits)
            sdp, hello = messages.parse_offer(data)
            connections = await checked(request, hello.token)
            if not state.ready:
                raise RefusedError("the server is not ready; try again later")
            with state.connections.one():
                name, answer = await connections.answer(sdp, hello)
        return {"type": "answer", "sdp": answer, "name": name}

    @app.delete("/webrtc/{name}", dependencies=[own_page])
    async def leave(name: str, request: Request) -> dict[str, bool]:
        """End a WebRTC connection by the name that came with its answer."""
        with refusals():
            connections = await checked(request)
        if not await connections.close(name):
            raise HTTPException(404, "there is no such connection")
        return {"ok": True}
