"""The page at /: a picture, words, and masks drawn by the server or by the browser itself."""

import asyncio
from collections.abc import MutableMapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from cris_deploy import documents
from cris_deploy.errors import InputError
from cris_deploy.serving.options import ServeOptions

_SERVER: Final = "server"
_FIRST: Final = "scene/first"
_EXAMPLES: Final = 6


class _Isolated(StaticFiles):
    """Files of a page whose threads may share memory, checked for changes at every visit."""

    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cross-origin-opener-policy"] = "same-origin"
        response.headers["cross-origin-embedder-policy"] = "require-corp"
        response.headers["cache-control"] = "no-cache"
        return response


def add_page(app: FastAPI, options: ServeOptions) -> None:
    """Serve the page at /, behind all other routes.

    Raises InputError if `options.page` is no folder of `cris-export web`.
    """
    folder = str(files("cris_deploy.web") / "page") if options.page is None else options.page
    given = None if options.page is None else _read_page(Path(options.page))

    @app.get("/page.json", include_in_schema=False)
    async def page() -> Response:
        """Give what the page shows at first, and who may compute."""
        if given is not None:
            return JSONResponse(given)
        return JSONResponse(await asyncio.to_thread(_of_bundle, options))

    if given is None:

        @app.get(f"/{_FIRST}", include_in_schema=False)
        async def first() -> Response:
            """Give the image of the bundle's first sample."""
            bundle = await asyncio.to_thread(options.open_bundle, verify=False)
            return FileResponse(bundle.sample_image(bundle.manifest.samples[0]))

    app.mount("/", _Isolated(directory=folder, html=True))


def _read_page(folder: Path) -> dict[str, Any]:
    path = folder / "page.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"page {folder} is not what cris-export web writes: {error}") from error
    page = documents.read(dict[str, Any], text, str(path), error=InputError)
    return {**page, "engines": [*page.get("engines", ()), _SERVER]}


def _of_bundle(options: ServeOptions) -> dict[str, Any]:
    manifest = options.open_bundle(verify=False).manifest
    samples = manifest.samples
    shown = [sample.expression for sample in samples if sample.image == samples[0].image]
    return {
        "title": manifest.model.architecture,
        "about": "",
        "threshold": manifest.model.threshold,
        "engines": [_SERVER],
        "backgrounds": [_FIRST] if samples else [],
        "things": [],
        "arranged": [],
        "examples": list(dict.fromkeys(shown))[:_EXAMPLES],
    }
