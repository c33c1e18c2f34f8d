"""What the processors take, as Linux tells it (RAPL, in /sys/class/powercap)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")
_MICRO: Final = 1e-6


@dataclass(frozen=True)
class Meter:
    """Counters of the processors' packages, memory not included.

    Attributes:
        packages: Counter of micro-joules -> where it starts again from 0.
        absent: Why there are none; "" if there are.
    """

    packages: dict[Path, int]
    absent: str

    @classmethod
    def open(cls, folder: Path = POWERCAP) -> Meter:
        """Look for counters that can be read."""
        # intel-rapl:0 is a package, AMD's too; intel-rapl:0:0 is a part of it.
        zones = sorted(folder.glob("*rapl:*"))
        packages: dict[Path, int] = {}
        for zone in zones:
            if zone.name.count(":") != 1:
                continue
            try:
                if not (zone / "name").read_text().startswith("package"):
                    continue
                counter = zone / "energy_uj"
                int(counter.read_text())
                packages[counter] = int((zone / "max_energy_range_uj").read_text())
            except OSError as error:
                return cls({}, f"{error.filename} cannot be read: {error.strerror}")
        if not packages:
            return cls({}, f"this machine does not tell: no package in {folder}")
        return cls(packages, "")

    def read(self) -> tuple[int, ...]:
        """The counters now, micro-joules."""
        return tuple(int(counter.read_text()) for counter in self.packages)

    def since(self, before: tuple[int, ...]) -> float | None:
        """Joules since then; None without counters. Counters that started again are seen once."""
        if not self.packages:
            return None
        ranges = self.packages.values()
        used = (
            (now - then) % (most + 1)
            for now, then, most in zip(self.read(), before, ranges, strict=True)
        )
        return sum(used) * _MICRO or None
