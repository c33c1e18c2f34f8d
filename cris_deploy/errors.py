"""The errors this project raises on purpose.

Every one derives from `CrisError`: a caller can catch that one type, and every console turns it
into one line on stderr and exit code 2.
"""


class CrisError(Exception):
    """Base of all deliberate errors; the message names the argument and the remedy."""


def one_line(error: BaseException) -> str:
    """Give an error's message without its line breaks."""
    return " ".join(str(error).split())


class InputError(CrisError, ValueError):
    """An argument of a call or a command is unusable (wrong type, range, path, shape)."""


class ImageError(CrisError):
    """An image cannot be read: missing, empty, corrupt, not an image, or over the pixel limit."""


class ExpressionError(CrisError):
    """A referring expression is not usable: not a string, or empty after cleaning."""


class BundleError(CrisError):
    """A bundle cannot be used: missing or changed files, or a newer format."""


class BackendError(CrisError):
    """A runtime, device or precision that was asked for cannot be had; says what to install."""


class EngineTimeoutError(CrisError, TimeoutError):
    """A wait took longer than the engine's `timeout`; what was waited for may still come."""


class BusyError(CrisError):
    """More is asked for than can be answered soon; nothing was begun, so try again later."""


class KernelError(CrisError):
    """The compiled extension is present but cannot be loaded: it was built wrongly."""


class DataError(CrisError):
    """A data set is missing, incomplete, or not in the format it claims."""
