"""How much of what the device is capable of each stage reached."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cris_bench.record.rows import arithmetic
from cris_bench.record.schema import Ceiling, Record, StageWork


@dataclass(frozen=True)
class Reached:
    """A stage against its ceiling.

    Attributes:
        work: The stage, and who ran it.
        ceiling: Of the arithmetic that most of its multiply-adds are in, the highest rates that
            were seen; None if none was measured.
    """

    work: StageWork
    ceiling: Ceiling | None

    @property
    def operations_per_s(self) -> float:
        """Operations (2 x multiply-adds) per second."""
        return self.work.operations / self.work.seconds

    @property
    def bytes_per_s(self) -> float:
        """Bytes of weights read per second."""
        return self.work.weight_bytes / self.work.seconds

    @property
    def matrix_share(self) -> float | None:
        """Share of the highest rate, at most 1; None where fewer products do the work."""
        if self.ceiling is None or self.work.fewer:
            return None
        return self.operations_per_s / self.ceiling.matrix_ops_per_s

    @property
    def copy_share(self) -> float:
        """Share of the highest bandwidth that reading the weights once takes, at most 1."""
        return 0.0 if self.ceiling is None else self.bytes_per_s / self.ceiling.copy_bytes_per_s


def reached(record: Record) -> tuple[Reached, ...]:
    """Every stage of a record against its ceiling, in the record's order."""
    rows = {row.name: (row.device, arithmetic(row.compute)) for row in record.rows}
    places = [rows.get(work.name) for work in record.work]
    ceilings: dict[tuple[str, str] | None, Ceiling] = {
        (ceiling.device, ceiling.compute): ceiling for ceiling in record.ceilings
    }
    for place, work in zip(places, record.work, strict=True):
        # What a stage reaches can be reached: a ceiling is no lower.
        stage, ceiling = Reached(work, None), ceilings.get(place)
        if ceiling is not None:
            rate = 0.0 if work.fewer else stage.operations_per_s
            ceilings[place] = dataclasses.replace(
                ceiling,
                matrix_ops_per_s=max(ceiling.matrix_ops_per_s, rate),
                copy_bytes_per_s=max(ceiling.copy_bytes_per_s, stage.bytes_per_s),
            )
    return tuple(
        Reached(work, ceilings.get(place)) for place, work in zip(places, record.work, strict=True)
    )
