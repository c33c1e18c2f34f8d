"""What `cris-serve` is asked to do; handed to worker processes through the environment."""

import os
from dataclasses import dataclass
from typing import Final

from cris_deploy import arguments, documents
from cris_deploy.batcher import BatchLimits
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO, Device
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
        batch_images: Images that differ in one batch; None for what suits the device, as in
            `BatchLimits.of`.
        batch_pairs: Pairs of image and expression in one batch; None likewise.
        batch_delay: Seconds that a batch waits for company; None likewise.
        waiting: Requests that may be unanswered in a worker; more are refused with 429.
        timeout: Seconds within which a request is answered, or 504.
        read_timeout: Seconds within which a request has to be sent, or 408.
        max_body: Bytes of a request.
        max_pixels: Of an image.
        max_expressions: Of a request.
        max_characters: Of an expression.
        kept_images: Images that can be asked again without sending them.
        kept_seconds: For how long.
        manifest_sha256: As of `Engine`; a bundle that is loaded again is held to it, too.
        require_signature: Likewise.
        page: Folder that `cris-export web` wrote, whose page then computes in the browser, too.
        self_test: Whether the bundle's samples are run before the worker is ready.
    """

    bundle: str
    backend: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    threads: int | None = None
    streams: int = 1
    batch_images: int | None = None
    batch_pairs: int | None = None
    batch_delay: float | None = None
    waiting: int = 128
    timeout: float = 30.0
    read_timeout: float = 10.0
    max_body: int = 20 * 2**20
    max_pixels: int = MAX_PIXELS
    max_expressions: int = 64
    max_characters: int = 1000
    kept_images: int = 64
    kept_seconds: float = 300.0
    manifest_sha256: str | None = None
    require_signature: str | None = None
    page: str | None = None
    self_test: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_images", "batch_pairs"):
            if getattr(self, name) is not None:
                arguments.whole(name, getattr(self, name), 1)
        for name in ("waiting", "max_body", "max_pixels", "max_expressions", "max_characters"):
            arguments.whole(name, getattr(self, name), 1)
        arguments.whole("kept_images", self.kept_images, 0)
        if self.batch_delay is not None and not 0 <= self.batch_delay < float("inf"):
            raise InputError(f"batch_delay is {self.batch_delay}: give seconds, 0 or more")
        for name in ("timeout", "read_timeout", "kept_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}: give seconds above 0")

    def open_bundle(self, *, verify: bool = True) -> Bundle:
        """Open the bundle, if it is the one that is meant; errors as of `Bundle.open`."""
        return Bundle.open(self.bundle, verify, self.manifest_sha256, self.require_signature)

    def batch_limits(self, device: Device, reserved: int = 0) -> BatchLimits:
        """Give the limits of batches: what was asked for, else what suits the device.

        `reserved` requests beyond those of clients may wait.
        """
        suits = BatchLimits.of(device)
        return BatchLimits(
            images=suits.images if self.batch_images is None else self.batch_images,
            pairs=suits.pairs if self.batch_pairs is None else self.batch_pairs,
            delay=suits.delay if self.batch_delay is None else self.batch_delay,
            waiting=self.waiting + reserved,
        )


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
