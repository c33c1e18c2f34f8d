"""Memory that runs out is told, whoever says it; nothing else is taken for it."""

import pytest

from cris_deploy.errors import BackendError, ImageError
from cris_deploy.machine.memory import enough_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        RuntimeError("Failed to allocate memory for requested buffer of size 7"),
        RuntimeError("OpenCV(5.0.0) alloc.cpp: error: (-4:Insufficient memory) Failed to allocate"),
    ],
)
def test_whoever_tells_it(error: Exception) -> None:
    with (
        pytest.raises(BackendError, match=r"memory ran out while it ran.*: free memory"),
        enough_memory("it ran"),
    ):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("wrong shape"), ImageError("bad allocation")])
def test_what_is_none(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), enough_memory("it ran"):
        raise error
