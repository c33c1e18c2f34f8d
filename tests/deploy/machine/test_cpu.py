"""Which processors add int8 products in 16 bits."""

import numpy as np
import pytest

from cris_deploy.machine import cpu
from cris_deploy.machine.cpu import EXACT_LEVELS, Cpu, describe, saturates
from tests.helpers.saturating import convolve, multiply

EPYC_2017 = "model name : AMD EPYC 7571\nflags : fpu sse4_2 avx avx2 fma\n"
ICE_LAKE = "model name : Xeon\nflags : avx2 avx512f avx512_vnni\n"
ALDER_LAKE = "model name : Core\nflags : avx2 avx_vnni\n"
GRAVITON = "Features : fp asimd asimddp bf16\n"


@pytest.mark.parametrize(
    ("text", "machine", "expected", "instructions"),
    [
        (EPYC_2017, "x86_64", True, "avx2"),
        (ICE_LAKE, "x86_64", False, "avx2+avx512+vnni"),
        (ALDER_LAKE, "x86_64", False, "avx2+vnni"),
        (GRAVITON, "aarch64", False, "bf16"),
        ("", "x86_64", True, "x86_64"),
    ],
)
def test_who_saturates(tmp_path, text, machine, expected, instructions):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    found = describe(path, machine)
    assert (found.saturates, found.instructions) == (expected, instructions)


def test_seven_bits_never_saturate(monkeypatch):
    monkeypatch.setattr(cpu, "this_cpu", lambda: Cpu("old", "x86_64", 2, 2, ("AVX2",)))
    assert not saturates(0)
    assert not saturates(EXACT_LEVELS)
    assert saturates(EXACT_LEVELS + 1)
    # The largest sums there are: one level more, and they leave 16 bits.
    for sign in (1, -1):
        activation = np.full((1, 2), 127, np.int8)
        for levels, exact in ((EXACT_LEVELS, True), (EXACT_LEVELS + 1, False)):
            weight = np.full((2, 1), sign * levels, np.int8)
            assert (multiply(activation, weight)[0, 0] == 2 * 127 * sign * levels) is np.bool_(
                exact
            )


def test_emulation_is_exact_where_nothing_saturates():
    random = np.random.default_rng(0)
    picture = random.integers(-128, 128, (2, 5, 7, 6)).astype(np.int8)
    weight = random.integers(-EXACT_LEVELS, EXACT_LEVELS + 1, (4, 5, 3, 3)).astype(np.int8)
    padded = np.pad(picture.astype(int), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    expected = np.einsum("nchwij,mcij->nmhw", windows, weight.astype(int))
    np.testing.assert_array_equal(convolve(picture, weight, (2, 2), (1, 1, 1, 1)), expected)
