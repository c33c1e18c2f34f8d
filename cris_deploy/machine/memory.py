"""Memory of this computer that runs out: an error that says so and what helps."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cris_deploy.errors import BackendError, CrisError, one_line

# ONNX Runtime, OpenVINO and OpenCV tell it as errors of their own.
_SAID: Final = re.compile(
    r"bad_?\s?alloc|alloc\w* memory|out of memory|insufficient memory|cannot allocate|map segment",
    re.IGNORECASE,
)


@contextmanager
def enough_memory(doing: str) -> Iterator[None]:
    """Raise BackendError if memory runs out within, whoever tells it; `doing` says at what."""
    try:
        yield
    except CrisError:
        raise
    except Exception as error:
        if not isinstance(error, MemoryError) and not _SAID.search(str(error)):
            raise
        told = f" ({one_line(error)})" if str(error) else ""
        raise BackendError(
            f"memory ran out while {doing}{told}: free memory or raise the process's limit, or ask "
            f"for less at once (smaller pictures, fewer expressions)"
        ) from None
