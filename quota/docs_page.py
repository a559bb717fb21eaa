"""The API's documentation page from files of an installed package, so that it works without internet."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import RedirectResponse

_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}


def install(app: FastAPI) -> None:
    """Serve `/docs` and what it loads; `/` leads there."""

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
            swagger_ui_parameters={
                "persistAuthorization": True,
                "filter": True,
                "displayRequestDuration": True,
            },
        )

    for name, media_type in _FILES.items():
        _serve(app, name, media_type)


def _serve(app: FastAPI, name: str, media_type: str) -> None:
    @app.get(f"/docs/{name}", include_in_schema=False)
    def asset() -> Response:
        content = files("fastapi_swagger").joinpath("resources", name).read_bytes()
        return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=86400"})
