"""Which versions of packages are installed."""

import importlib.metadata
from collections.abc import Iterable


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = ((name, version_of(name)) for name in distributions)
    return {name: version for name, version in found if version is not None}
