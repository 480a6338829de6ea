"""A page and its files, out of folders that come with the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse

__all__ = ["STATIC", "add_page", "packaged_file"]

#: The live page's folder, whose look other pages share.
STATIC = Path(__file__).parent / "static"


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


def add_page(app: FastAPI, *folders: Path) -> None:
    """Add ``/``, which is ``index.html``, and ``/static``; of two files of a name the first counts.

    Args:
        folders: of the files.
    """

    def file(name: str) -> Response:
        path = next((found for each in folders if (found := packaged_file(each, name))), None)
        if path is None:
            return PlainTextResponse("the server has no such file", 404)
        return FileResponse(path)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return file("index.html")

    @app.get("/static/{name:path}", include_in_schema=False)
    def static_file(name: str) -> Response:
        return file(name)
