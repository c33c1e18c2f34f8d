"""HTTP/1.1 by uvicorn and h11; slow headers have an end, and an answer is one write."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""From the connection, or the end of the last answer, to the end of a request's headers."""


class BoundedProtocol(H11Protocol):
    """Closes a connection whose next request does not come; uvicorn would wait for the first.

    uvicorn writes an answer's head and body apart. A worker that is killed between the two leaves
    half an answer, which no proxy may send again: they leave together.
    """

    _headers_end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._await_headers()

    def handle_events(self) -> None:
        """Wait for headers only while no request is being answered."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self._headers_end is not None:
            self._headers_end.cancel()
            self._headers_end = None

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, if one has begun to come."""
        super().on_response_complete()
        if self._headers_end is None and not self.transport.is_closing():
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._headers_end is not None:
            self._headers_end.cancel()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._headers_end = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _OneWrite:
    """A transport that writes at the end of the loop's turn what was written to it in that turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            data, self._waiting = b"".join(self._waiting), []
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
