"""Large buffers of a server go back to the system when they are freed."""

import ctypes
import subprocess
import sys

import pytest

from cris_deploy.serving import memory

# malloc takes 8 MB from the heap when it has seen 16 MB freed, unless it is told otherwise.
MAPPED = """
import ctypes
from cris_deploy.serving.memory import give_back
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.free.argtypes = libc.malloc.argtypes = (ctypes.c_void_p,)
told = give_back()
libc.free(libc.malloc(2**24))
before = libc.mallinfo2().hblkhd
libc.malloc(2**23)
print(told, libc.mallinfo2().hblkhd - before >= 2**23)
"""


def mapped(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", MAPPED], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_large_buffers_are_mapped_unless_the_user_decided_otherwise() -> None:
    assert mapped() == "True True"
    assert mapped(MALLOC_ARENA_MAX="4") == "False False"
    assert mapped(GLIBC_TUNABLES="glibc.malloc.arena_max=4") == "False False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert memory.give_back() is False
