"""The processor, as Linux describes it, and what that means for int8.

Without VNNI an x86 processor multiplies bytes by `vpmaddubsw`: 0 to 255 by -128 to 127, two
neighbouring products added in 16 bits, which saturate. Weights of 7 bits (-64 to 64) cannot reach
that, weights of 8 bits do, and the masks are worse without a word. With VNNI sums have 32 bits.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

EXACT_LEVELS: Final = 64
"""Steps to either side of zero in weights that no processor saturates on: 2 * 255 * 64 < 2^15."""

# What decides speed -> its names in /proc/cpuinfo.
_FEATURES: Final[Mapping[str, tuple[str, ...]]] = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_tile",),
}
_X86: Final = ("x86_64", "AMD64", "i686")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor; `usable` counts the logical cores this process may use.

    `features` are the vector extensions that decide speed, none where Linux tells of none.
    """

    name: str
    machine: str
    cores: int
    usable: int
    features: tuple[str, ...]

    @property
    def is_x86(self) -> bool:
        """True for x86, of 32 or 64 bits."""
        return self.machine in _X86

    @property
    def saturates(self) -> bool:
        """True if int8 products are added in 16 bits: x86 that is not known to have VNNI."""
        return self.is_x86 and "VNNI" not in self.features

    @property
    def instructions(self) -> str:
        """The vector extensions as one word for records: `avx2+avx512+vnni+bf16`."""
        words = [name.replace("-", "").lower() for name in self.features]
        return "+".join(words) or self.machine


def describe(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str | None = None) -> Cpu:
    """Describe the processor from a file in the format of /proc/cpuinfo; it need not exist."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    # "Features" is what 64-bit ARM calls its flags.
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return Cpu(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        machine=machine or platform.machine(),
        cores=os.cpu_count() or 1,
        usable=len(os.sched_getaffinity(0)),
        features=tuple(name for name, names in _FEATURES.items() if flags & set(names)),
    )


@cache
def this_cpu() -> Cpu:
    """The processor this process runs on."""
    return describe()


def saturates(weight_levels: int) -> bool:
    """True if int8 products of weights of so many levels saturate on this processor."""
    return weight_levels > EXACT_LEVELS and this_cpu().saturates
