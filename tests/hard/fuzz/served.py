"""`cris-serve`'s application without a network: a request in, what a client would see out.

Every mask that is answered is compared with that of an engine of its own.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import cv2
import numpy as np

from cris_deploy import Engine, Segmentation
from cris_deploy.errors import InputError
from cris_deploy.serving.app import create_app
from cris_deploy.serving.options import ServeOptions
from tests.helpers.tiny_bundle import write_bundle

STATUSES: Final = frozenset({200, 401, 403, 404, 405, 408, 413, 415, 422, 429, 504})
"""What a client may see. 500 and 503 say that something failed in here."""


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """As it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Kept(logging.Handler):
    """The exceptions that were logged and not told."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])


class _Inline(asyncio.SelectorEventLoop):
    """Runs in place what would go to a thread: to wait for one takes longer than the case."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # the caller's, as a thread's would be
            future.set_exception(error)
        return future


class Served:
    """An application that serves the small bundle, in this thread's own loop."""

    def __init__(self, folder: Path) -> None:
        cv2.setNumThreads(1)
        path = folder / "tiny.bundle"
        shutil.rmtree(path, ignore_errors=True)
        write_bundle(path)
        options = ServeOptions(
            str(path),
            backend="onnxruntime",
            threads=1,
            batch_delay=0.0,
            max_body=100_000,
            max_pixels=100_000,
            max_expressions=4,
            max_characters=200,
            kept_images=2,
            self_test=False,
        )
        self._engine = Engine(path, backend="onnxruntime", threads=1, max_pixels=100_000)
        self._loop = _Inline()
        self._app = create_app(options)
        self._service: Any = self._app.state.service
        self._loop.run_until_complete(self._service.start())
        self._images: dict[str, bytes] = {}
        self._known: dict[Any, list[Segmentation]] = {}
        self._asked: list[tuple[Any, list[Any]]] = []
        self._watch()
        self._log = _Kept()
        logging.getLogger("cris_deploy").addHandler(self._log)
        logging.getLogger("cris_deploy").propagate = False

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        chunks: Sequence[bytes] = (b"",),
    ) -> Answer:
        """Send a request. Raises InputError if it is refused, and what failed if something did."""
        self._log.errors.clear()
        self._asked.clear()
        answer = self._exchange(method, path, query=query, headers=headers, chunks=chunks)
        if self._log.errors:
            raise self._log.errors[0]
        assert answer.status in STATUSES, answer
        assert answer.headers.get("x-content-type-options") == "nosniff", answer
        if answer.status != 200:
            problem = json.loads(answer.body)
            assert set(problem) == {"error", "request_id"}, problem
            raise InputError(problem["error"])
        self._compare()
        return answer

    def _exchange(self, method: str, path: str, **options: Any) -> Answer:
        sent = self.run(exchange(self._app, method, path, **options))
        names = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in sent[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], names, body)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run something in the application's loop."""
        return self._loop.run_until_complete(coroutine)

    def _watch(self) -> None:
        """Note what the engine behind it was asked and said."""
        segment, segment_pixels = self._service.segment, self._service.segment_pixels

        async def of_file(image: Any, identity: Any, words: Any, threshold: Any = None) -> Any:
            answered = await segment(image, identity, words, threshold)
            if image is not None:
                self._images[answered.image_id] = image
            known = self._images[answered.image_id]
            self._asked.append(((known, list(words), threshold), answered.results))
            return answered

        async def of_pixels(pixels: Any, words: Any) -> Any:
            results = await segment_pixels(pixels, words)
            self._asked.append(((np.array(pixels), list(words), None), results))
            return results

        self._service.segment, self._service.segment_pixels = of_file, of_pixels

    def _compare(self) -> None:
        for (image, words, threshold), results in self._asked:
            for found, right in zip(results, self._right(image, words, threshold), strict=True):
                np.testing.assert_array_equal(found.mask, right.mask)
                assert found.truncated == right.truncated

    def _right(self, image: Any, words: list[str], threshold: float | None) -> list[Segmentation]:
        """What the engine of its own says, which is asked once of what is the same."""
        content = image if isinstance(image, bytes) else (image.shape, image.tobytes())
        key = (content, tuple(words), threshold)
        if key not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[key] = self._engine.segment(image, words, threshold=threshold)
        return self._known[key]


async def exchange(
    app: Any,
    method: str,
    path: str,
    *,
    kind: str = "http",
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    chunks: Sequence[bytes] = (b"",),
    end: str = "waits",
) -> list[dict[str, Any]]:
    """Send a request to an ASGI application and give what it sends.

    The client `waits` for an answer behind its last chunk; or it announces more and `leaves`, or
    `stalls`.
    """
    unended = end != "waits"
    messages = [
        {"type": "http.request", "body": chunk, "more_body": unended or number + 1 < len(chunks)}
        for number, chunk in enumerate(chunks)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if end == "leaves":
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    await app(scope, receive, send)
    return sent
