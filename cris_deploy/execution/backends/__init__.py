"""Runtimes that execute a bundle's graphs: a file each, behind one small interface.

A new backend is one file here, with what `interface.Backend` lists, and one line in
`interface.BackendName`, at its place in the order in which `auto` tries them.

    interface.py   names, devices, arithmetic, and what a backend's file has to have
    selection.py   what is asked for, or what `auto` takes, and why

No silent fallback: a backend, device or precision that was asked for and cannot be had is a
BackendError that says what to install. Only `auto` chooses, and says what it chose and why.
"""

from cris_deploy.execution.backends.interface import (
    AUTO,
    CACHE_VARIABLE,
    Backend,
    BackendName,
    BackendStatus,
    Choice,
    Compute,
    Device,
    Graph,
    Runtime,
    Settings,
)
from cris_deploy.execution.backends.selection import (
    close_graphs,
    load_graphs,
    parse_device,
    parse_names,
    status,
)

__all__ = [
    "AUTO",
    "CACHE_VARIABLE",
    "Backend",
    "BackendName",
    "BackendStatus",
    "Choice",
    "Compute",
    "Device",
    "Graph",
    "Runtime",
    "Settings",
    "close_graphs",
    "load_graphs",
    "parse_device",
    "parse_names",
    "status",
]
