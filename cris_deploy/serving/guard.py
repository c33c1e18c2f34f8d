"""Before a request is understood: its id, the token, how long it may be and take to arrive."""

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cris_deploy.serving.answers import GONE, Refused, problem
from cris_deploy.serving.logs import request_id
from cris_deploy.serving.metrics import Metrics

_log = logging.getLogger(__name__)
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN: Final = frozenset({"/live", "/ready", "/v2/health/live", "/v2/health/ready"})
"""What is answered without a token: probes have none."""


class Guard:
    """ASGI middleware around everything.

    Args:
        app: What it guards.
        token: That a client has to send (`Authorization: Bearer TOKEN`), or None.
        max_body: Bytes of a request's body.
        read_timeout: Seconds for all of a body to arrive.
        metrics: Where requests are counted.
        tells_id: Whether answers have `x-request-id`; not if the proxy before it adds one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        max_body: int,
        read_timeout: float,
        metrics: Metrics,
        tells_id: bool = True,
    ) -> None:
        self._app = app
        self._token = token
        self._max_body = max_body
        self._read_timeout = read_timeout
        self._metrics = metrics
        self._tells_id = tells_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = headers.get("x-request-id", "")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex
        request_id.set(identity)
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-content-type-options", b"nosniff")]
                if self._tells_id:
                    own.append((b"x-request-id", identity.encode()))
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            try:
                self._check(scope["path"], headers)
                await self._app(scope, self._bounded(receive), answer)
            except Refused as refused:
                await _answer(refused, answer)
            except ClientDisconnect:
                status = GONE
            except Exception:
                _log.exception("a request failed")
                if status == 0:
                    await _answer(Refused(500, "the server failed: see its log"), answer)
        finally:
            seconds = time.perf_counter() - began
            # A route's template: paths that clients invent must not become labels.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            _log.info(
                "%s %s %d",
                scope["method"],
                route,
                status,
                extra={"seconds": round(seconds, 6), "status": status, "route": route},
            )

    def _check(self, path: str, headers: dict[str, str]) -> None:
        if self._token is not None and path not in OPEN:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Refused(
                    401, "send Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"}
                )
            if not hmac.compare_digest(token.strip().encode(), self._token.encode()):
                raise Refused(403, "the token is not this server's")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._max_body:
            raise self._too_long()

    def _too_long(self) -> Refused:
        return Refused(
            413, f"the body is longer than {self._max_body:,} bytes", {"connection": "close"}
        )

    def _bounded(self, receive: Receive) -> Receive:
        """Receive no more than may be, and no later."""
        end = asyncio.get_running_loop().time() + self._read_timeout
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is that the client has gone away
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise Refused(
                    408,
                    f"the request did not arrive in {self._read_timeout:g} s",
                    {"connection": "close"},
                ) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._max_body:
                raise self._too_long()
            return message

        return bounded


async def _answer(refused: Refused, send: Send) -> None:
    body = json.dumps(problem(refused), ensure_ascii=False).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(refused.headers or {}),
    }
    await send(
        {
            "type": "http.response.start",
            "status": refused.status,
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
