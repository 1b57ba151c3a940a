"""The pages at `/` and `/docs` and their files, which load nothing from anywhere else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parents[1] / "web"
SWAGGER_UI = ("fastapi_swagger", "resources")  # a package that carries its files
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page where a dropped photograph shows its attention."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/docs", include_in_schema=False)
async def documentation() -> FileResponse:
    """The page where the OpenAPI document can be read and tried out."""
    return FileResponse(FOLDER / "docs.html", headers=HEADERS)


class PageFiles(StaticFiles):
    """The files beside the pages, under the same headers."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, packages=[SWAGGER_UI])

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file with the page's headers."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
