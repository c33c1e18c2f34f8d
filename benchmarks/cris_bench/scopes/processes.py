"""Processes of others, as /proc shows them."""

from contextlib import suppress
from pathlib import Path


def below(parent: int, title: str) -> list[int]:
    """Give the processes below `parent` whose title begins so, such as `ray::ServeReplica`."""
    found, pids = [], [parent]
    while pids:
        folder = Path(f"/proc/{pids.pop()}")
        with suppress(OSError):  # it has ended meanwhile
            if folder.joinpath("cmdline").read_text().startswith(title):
                found.append(int(folder.name))
            for children in folder.glob("task/*/children"):
                pids += map(int, children.read_text().split())
    return found
