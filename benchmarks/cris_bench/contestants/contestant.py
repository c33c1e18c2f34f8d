"""Who takes part, as the scopes see it: a name, and a network that can be bound to its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from cris_bench.place import Place
from cris_bench.record.rows import Role


@dataclass(frozen=True)
class Identity:
    """A contestant as the record names it.

    Attributes:
        name: Such as "openvino int8-bf16".
        role: Of the contestant.
        place: Where it runs.
        compute: Arithmetic it runs in.
        bundle: The bundle it runs, by its name in the record; None for those without one.
    """

    name: str
    role: Role
    place: Place
    compute: str
    bundle: str | None = None


@dataclass(frozen=True)
class Bound:
    """A network with its inputs where it wants them.

    Attributes:
        run: One pass, or several on a GPU; returns when it is done, with a `Clocked` there.
        logits: One pass, and its logits (n, 1, S/4, S/4) on the host.
    """

    run: Callable[[], object]
    logits: Callable[[], NDArray[Any]]


class Network(Protocol):
    """What takes part in scope NETWORK."""

    @property
    def identity(self) -> Identity:
        """Who it is."""

    @property
    def single(self) -> bool:
        """Whether it takes one image and one expression at a time."""

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Take an image (B, 3, S, S) float32 and tokens (n, L) int64; n is B, or B is 1."""
