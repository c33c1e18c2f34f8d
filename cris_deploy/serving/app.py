"""The routes of `cris-serve`, and a worker process from start to end."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from cris_deploy.errors import CrisError
from cris_deploy.serving import memory, traces, v2
from cris_deploy.serving.answers import (
    GONE,
    Form,
    Refused,
    described,
    png,
    problem,
    refusal,
    zipped,
)
from cris_deploy.serving.guard import Guard
from cris_deploy.serving.metrics import CONTENT_TYPE, Metrics
from cris_deploy.serving.openapi import SEGMENT
from cris_deploy.serving.options import ServeOptions, from_environment
from cris_deploy.serving.page import add_page
from cris_deploy.serving.requests import check_expressions, read_upload
from cris_deploy.serving.service import Service

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_Name = Annotated[str, Path(max_length=64)]


def worker() -> FastAPI:
    """Make the application of a worker process, as `cris-serve` asked for it."""
    memory.give_back()
    options, token = from_environment()
    app = create_app(options, token)
    if os.environ.get(traces.VARIABLE):
        traces.instrument(app)
    return app


def create_app(
    options: ServeOptions, token: str | None = None, *, tells_id: bool = True
) -> FastAPI:
    """Make an application; its lifespan loads the bundle.

    Args:
        options: What it serves, and its limits.
        token: That clients have to send, or None.
        tells_id: As of `Guard`.
    """
    metrics = Metrics()
    service = Service(options, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A worker accepts no connection before this is done, so nobody is told to wait by one that
        # has just taken another's place.
        await service.start()
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []

        def reload() -> None:
            tasks.append(loop.create_task(service.replace()))

        # Not the main thread (uvloop's error and asyncio's), or not Unix.
        with suppress(ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGHUP, reload)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.stop()

    app = FastAPI(
        title="cris-serve",
        version="1",
        description="Masks of what expressions refer to in an image.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(
        Guard,
        token=token,
        max_body=options.max_body,
        read_timeout=options.read_timeout,
        metrics=metrics,
        tells_id=tells_id,
    )
    _answer_errors(app)
    _add_probes(app, service, metrics)
    _add_segment(app, service)
    _add_v2(app, service)
    if token is None:  # a browser that opens a page sends none
        add_page(app, options)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return JSONResponse(problem(error), error.status, dict(error.headers or {}))

    @app.exception_handler(CrisError)
    async def failed(request: Request, error: CrisError) -> Response:
        told = refusal(error)
        if told.status == 503:
            _log.error("%s", error)
        return await refused(request, told)

    @app.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> Response:
        # A form that is not one is 400 there; what a route does not have stays 404 or 405.
        status = 422 if error.status_code == 400 else error.status_code
        return await refused(request, Refused(status, str(error.detail)))


def _add_probes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    async def live() -> Response:
        """Run the network once. 200, or 503 or 504 if it does not answer."""
        await service.infers()
        return JSONResponse({"live": True})

    async def ready() -> Response:
        """200 once the bundle is loaded, warm and tested."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    for prefix in ("", "/v2/health"):
        app.add_api_route(f"{prefix}/live", live, tags=["health"], name=f"{prefix}live")
        app.add_api_route(f"{prefix}/ready", ready, tags=["health"], name=f"{prefix}ready")

    @app.get("/metrics", tags=["health"])
    async def prometheus() -> Response:
        """Give the metrics in Prometheus' text format."""
        return Response(await asyncio.to_thread(metrics.exposition), media_type=CONTENT_TYPE)


def _add_segment(app: FastAPI, service: Service) -> None:
    options = service.options

    @app.post("/v1/segment", tags=["masks"], openapi_extra=SEGMENT)
    async def segment(request: Request) -> Response:
        """Find what expressions refer to in an image."""
        upload = await read_upload(request, options)
        answered = await _unless_gone(
            request,
            service.segment(upload.image, upload.image_id, upload.expressions, upload.threshold),
        )
        if upload.form is Form.PNG:
            return Response(png(answered.results[0]), media_type="image/png")
        if upload.form is Form.ZIP:
            body = await asyncio.to_thread(zipped, answered.results)
            return Response(body, media_type="application/zip")
        return JSONResponse(
            {
                "image": {
                    "id": answered.image_id,
                    "width": answered.picture.width,
                    "height": answered.picture.height,
                    "kept_seconds": options.kept_seconds if options.kept_images else 0,
                },
                "results": [described(result) for result in answered.results],
            }
        )


def _add_v2(app: FastAPI, service: Service) -> None:
    @app.get("/v2", tags=["open inference protocol"])
    async def server() -> Response:
        """Give the server's metadata."""
        return JSONResponse(v2.SERVER)

    def known(name: str, version: str = "1") -> None:
        if name != v2.MODEL or version != "1":
            raise Refused(404, f"the only model is {v2.MODEL!r}, version 1")

    async def metadata(name: _Name, version: str = "1") -> Response:
        """Give the model's inputs and outputs."""
        known(name, version)
        return JSONResponse(v2.METADATA)

    async def model_ready(name: _Name, version: str = "1") -> Response:
        """200 once the model can be asked."""
        known(name, version)
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    async def infer(request: Request, name: _Name, version: str = "1") -> Response:
        """Segment; JSON, or JSON and binary tensors, in both directions."""
        known(name, version)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "compressed bodies are not read: send it as it is")
        body = await request.body()
        asked = await asyncio.to_thread(
            v2.read_inference, body, request.headers.get(v2.HEADER_LENGTH)
        )
        check_expressions(asked.expressions, service.options)
        if isinstance(asked.image, bytes):
            work = service.segment(asked.image, None, asked.expressions)
            results = (await _unless_gone(request, work)).results
        else:
            pixels = service.segment_pixels(asked.image, asked.expressions)
            results = await _unless_gone(request, pixels)
        answer, length = await asyncio.to_thread(v2.write_inference, asked, results)
        if length is None:
            return Response(answer, media_type="application/json")
        headers = {v2.HEADER_LENGTH: str(length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)

    for place in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        common: dict[str, Any] = {"tags": ["open inference protocol"]}
        app.add_api_route(place, metadata, name=f"metadata {place}", **common)
        app.add_api_route(f"{place}/ready", model_ready, name=f"ready {place}", **common)
        app.add_api_route(
            f"{place}/infer", infer, methods=["POST"], name=f"infer {place}", **common
        )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await; if the client goes away meanwhile, give the work up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise Refused(GONE, "the client went away")
    finally:
        for task in tasks:
            task.cancel()


def openapi_text(options: ServeOptions) -> str:
    """Give the OpenAPI document of such a server, without starting it."""
    return json.dumps(create_app(options).openapi(), indent=2)
