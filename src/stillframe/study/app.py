"""The study as a web application: a page, what comes next, the videos, and votes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from stillframe.errors import OutputError
from stillframe.server.access import AccessPolicy
from stillframe.server.admission import Admission, bounded_body, from_here, token_needed
from stillframe.server.limits import Limits
from stillframe.server.middleware import HostCheck
from stillframe.server.pages import STATIC, add_page
from stillframe.study.media import media_type, padded, padded_size
from stillframe.study.participants import LONGEST_NAME, OutdatedError, Participants, named
from stillframe.study.votes import Answer

__all__ = ["create_study_app"]

_log = logging.getLogger(__name__)
_STATIC = Path(__file__).parent / "static"
# of a name with every letter escaped, and what stands around it
_MOST_BYTES = 4096


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Join(_Message):
    name: str = Field("", max_length=10 * LONGEST_NAME)


class _Undo(_Message):
    participant: str = Field(min_length=1, max_length=10 * LONGEST_NAME)


class _Vote(_Undo):
    trial: str = Field(max_length=64)
    vote: Answer
    seconds: float = Field(0.0, ge=0)
    loops: int = Field(0, ge=0)


_M = TypeVar("_M", bound=_Message)


def create_study_app(
    participants: Participants,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The study as an ASGI application, for `stillframe.server.serving.make_server`.

    Args:
        token: that participants must know; needed unless ``host`` is this computer's own.
        host: where it will listen.
        names: other names by which it may be called, where others can reach it.
        limits: of what a client may send.

    Raises:
        ValueError: a token is missing, too short or too long.
    """
    admission = Admission(AccessPolicy(host, token, names), limits or Limits())
    app = FastAPI(title="stillframe study", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = admission
    app.add_middleware(HostCheck, policy=admission.policy)
    add_page(app, _STATIC, STATIC)
    needs_token = token_needed(admission)
    _add_questions(app, participants, needs_token)
    _add_answers(app, participants, [from_here(admission), needs_token])
    return app


def _add_questions(app: FastAPI, participants: Participants, needs_token: Any) -> None:
    @app.get("/api/status", dependencies=[needs_token])
    def status() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/api/state", dependencies=[needs_token])
    def state(participant: str) -> dict[str, Any]:
        return participants.state(_known(participant))

    @app.get("/media/{participant}/{trial}/{side}", dependencies=[needs_token])
    def media(participant: str, trial: str, side: str) -> Response:
        try:
            path, largest = participants.file(_known(participant), trial, side)
            size = padded_size(path, largest)
        except (KeyError, OSError) as error:
            raise HTTPException(404, "there is no such video") from error
        return StreamingResponse(
            padded(path, size),
            media_type=media_type(path),
            headers={"Content-Length": str(size)},
        )


def _add_answers(app: FastAPI, participants: Participants, needed: list[Any]) -> None:
    @app.post("/api/join", dependencies=needed)
    async def join(request: Request) -> dict[str, Any]:
        message = await _message(request, _Join)
        return await _state_after(participants, _known(message.name), None)

    @app.post("/api/vote", dependencies=needed)
    async def vote(request: Request) -> dict[str, Any]:
        message = await _message(request, _Vote)
        who = _known(message.participant)
        given = message.trial, message.vote, message.seconds, message.loops
        return await _state_after(participants, who, partial(participants.vote, who, *given))

    @app.post("/api/undo", dependencies=needed)
    async def undo(request: Request) -> dict[str, Any]:
        who = _known((await _message(request, _Undo)).participant)
        return await _state_after(participants, who, partial(participants.take_back, who))


async def _state_after(
    participants: Participants, who: str, change: Callable[[], None] | None
) -> dict[str, Any]:
    """What comes next, once a change is on the disk, which is waited for on another thread."""

    def changed() -> dict[str, Any]:
        if change is not None:
            change()
        return participants.state(who)

    try:
        return await run_in_threadpool(changed)
    except OutdatedError as error:
        raise HTTPException(409, str(error)) from error
    except OutputError as error:
        _log.warning("%s", error)
        # where it lies is nobody else's business
        raise HTTPException(507, "the vote could not be written") from error


def _known(name: str) -> str:
    try:
        return named(name)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


async def _message(request: Request, kind: type[_M]) -> _M:
    """A request's body as a message, within bounds."""
    told = f"a message may have {_MOST_BYTES} bytes"
    try:
        data = await bounded_body(request, _MOST_BYTES, lambda: HTTPException(413, told))
        return kind.model_validate_json(data)
    except ClientDisconnect as error:
        raise HTTPException(400, "the message did not come whole") from error
    except ValidationError as error:
        raise HTTPException(400, "this is no message of the page") from error
