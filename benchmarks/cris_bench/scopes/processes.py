"""Processes of others: who is below whom, and how much memory they have."""

from contextlib import suppress

import psutil


def below(parent: int, words: str = "") -> list[int]:
    """Give the processes below `parent` whose command has `words`, such as `ray::ServeReplica`."""
    try:
        children = psutil.Process(parent).children(recursive=True)
    except psutil.NoSuchProcess:  # one that has ended has nobody below it
        return []
    found = []
    for child in children:
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
