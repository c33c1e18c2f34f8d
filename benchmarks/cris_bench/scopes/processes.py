"""Processes of others: who is below whom, and how much memory they have."""

from contextlib import suppress

import psutil


def below(parent: int, words: str = "") -> list[int]:
    """Give the processes below `parent` whose command has `words`, such as `ray::ServeReplica`."""
    found: list[int] = []
    if not psutil.pid_exists(parent):
        return found
    for child in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if words in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def memory(parent: int) -> int:
    """Bytes of a process and all below it, what they share counted once."""
    total = psutil.Process(parent).memory_full_info().pss
    for child in below(parent):
        with suppress(psutil.NoSuchProcess):
            total += psutil.Process(child).memory_full_info().pss
    return int(total)
