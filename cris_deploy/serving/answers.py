"""Answers: masks as JSON, PNG or ZIP, and errors as a status with one sentence."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import cv2
import numpy as np

from cris_deploy.errors import (
    BusyError,
    CrisError,
    EngineTimeoutError,
    ExpressionError,
    ImageError,
    InputError,
)
from cris_deploy.results.segmentation import Segmentation
from cris_deploy.serving.logs import request_id

GONE: Final = 499
"""Status of a client that went away, as nginx has it: for the log, since nobody reads it."""


class Form(StrEnum):
    """What an answer holds: run lengths, one mask as PNG, or a ZIP of such."""

    JSON = "json"
    PNG = "png"
    ZIP = "zip"


class Refused(Exception):
    """A request is not answered: HTTP status, a sentence, and what headers go with it."""

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


_STATUS: Final[tuple[tuple[type[CrisError], int], ...]] = (
    (BusyError, 429),
    (EngineTimeoutError, 504),
    (ImageError, 422),
    (ExpressionError, 422),
    (InputError, 422),
)


def refusal(error: CrisError) -> Refused:
    """What an error of the engine is over HTTP.

    What concerns the server's own files and devices is logged and not told.
    """
    for kind, status in _STATUS:
        if isinstance(error, kind):
            headers = {"retry-after": "1"} if status == 429 else None
            return Refused(status, str(error), headers)
    return Refused(503, "the engine cannot answer now", {"retry-after": "1"})


def problem(refused: Refused) -> dict[str, Any]:
    """Give the body of a refusal."""
    return {"error": refused.sentence, "request_id": request_id.get()}


def described(result: Segmentation) -> dict[str, Any]:
    """Give a result as JSON values, with its confidence."""
    return {**result.to_json(), "confidence": round(result.confidence, 6)}


def png(result: Segmentation) -> bytes:
    """Give a mask as PNG, 0 and 255."""
    done, data = cv2.imencode(".png", result.mask.astype(np.uint8) * 255)
    assert done  # OpenCV has PNG built in
    return data.tobytes()


def zipped(results: Sequence[Segmentation]) -> bytes:
    """Give masks as 1.png, 2.png, ... in the order of the expressions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, result in enumerate(results, start=1):
            archive.writestr(f"{number}.png", png(result))
    return buffer.getvalue()
