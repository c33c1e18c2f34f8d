"""What `cris-serve` is asked to do; handed to worker processes through the environment."""

import os
from dataclasses import dataclass
from typing import Final

from cris_deploy import arguments, documents
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO
from cris_deploy.pixels.image import MAX_PIXELS

VARIABLE: Final = "CRIS_SERVE_OPTIONS"
TOKEN_VARIABLE: Final = "CRIS_SERVE_TOKEN"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """A server's settings.

    Attributes:
        bundle: Folder that cris-export wrote.
        backend: As of `Engine`, and so are the next four.
        device: Of it.
        precision: Of it.
        threads: Of it; None for all cores.
        streams: Of it.
        batch_images: Images that differ in one batch.
        batch_pairs: Pairs of image and expression in one batch.
        batch_delay: Seconds that a batch waits for company.
        waiting: Requests that may be unanswered in a worker; more are refused with 429.
        timeout: Seconds within which a request is answered, or 504.
        read_timeout: Seconds within which a request has to be sent, or 408.
        max_body: Bytes of a request.
        max_pixels: Of an image.
        max_expressions: Of a request.
        max_characters: Of an expression.
        kept_images: Images that can be asked again without sending them.
        kept_seconds: For how long.
        self_test: Whether the bundle's samples are run before the worker is ready.
    """

    bundle: str
    backend: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    threads: int | None = None
    streams: int = 1
    batch_images: int = 4
    batch_pairs: int = 16
    batch_delay: float = 0.0
    waiting: int = 128
    timeout: float = 30.0
    read_timeout: float = 10.0
    max_body: int = 20 * 2**20
    max_pixels: int = MAX_PIXELS
    max_expressions: int = 64
    max_characters: int = 1000
    kept_images: int = 64
    kept_seconds: float = 300.0
    self_test: bool = True

    def __post_init__(self) -> None:
        for name in (
            *("batch_images", "batch_pairs", "waiting", "max_body", "max_pixels"),
            *("max_expressions", "max_characters"),
        ):
            arguments.whole(name, getattr(self, name), 1)
        arguments.whole("kept_images", self.kept_images, 0)
        for name in ("timeout", "read_timeout", "kept_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}: give seconds above 0")


def to_environment(options: ServeOptions, token: str | None) -> None:
    """Leave the options where worker processes find them."""
    os.environ[VARIABLE] = documents.to_json(options)
    if token is None:
        os.environ.pop(TOKEN_VARIABLE, None)
    else:
        os.environ[TOKEN_VARIABLE] = token


def from_environment() -> tuple[ServeOptions, str | None]:
    """Read what `to_environment` left: the options and the token.

    Raises InputError if nothing was left.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        raise InputError(f"{VARIABLE} is not set: start the server by cris-serve")
    options = documents.read(ServeOptions, text, VARIABLE, error=InputError, known_only=True)
    return options, os.environ.get(TOKEN_VARIABLE) or None
