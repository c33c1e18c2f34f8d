"""How much of what the device is capable of each stage reached."""

from __future__ import annotations

from dataclasses import dataclass

from cris_bench.record.schema import Ceiling, Record, StageWork


@dataclass(frozen=True)
class Reached:
    """A stage against its ceiling.

    Attributes:
        work: The stage, and who ran it.
        ceiling: Of the arithmetic that most of its multiply-adds are in; None if not measured.
    """

    work: StageWork
    ceiling: Ceiling | None

    @property
    def operations_per_s(self) -> float:
        """Operations (2 x multiply-adds) per second."""
        return self.work.operations / self.work.seconds

    @property
    def matrix_share(self) -> float | None:
        """Share of the measured matrix rate, 1 for all of it."""
        if self.ceiling is None:
            return None
        return self.operations_per_s / self.ceiling.matrix_ops_per_s

    @property
    def copy_share(self) -> float | None:
        """Share of the measured bandwidth that reading the weights once takes."""
        if self.ceiling is None:
            return None
        return self.work.weight_bytes / self.work.seconds / self.ceiling.copy_bytes_per_s


def reached(record: Record) -> tuple[Reached, ...]:
    """Every stage of a record against its ceiling, in the record's order."""
    ceilings = {(ceiling.device, ceiling.compute): ceiling for ceiling in record.ceilings}
    runs = {row.name: row for row in record.rows}
    found = []
    for work in record.work:
        row = runs.get(work.name)
        ceiling = None
        if row is not None:
            # A mixed arithmetic such as int8-bf16 has its products in the first.
            names = (row.compute, row.compute.partition("-")[0])
            ceiling = next((c for n in names if (c := ceilings.get((row.device, n)))), None)
        found.append(Reached(work, ceiling))
    return tuple(found)
