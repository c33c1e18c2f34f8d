"""Intervals of medians, and like for like: known cases."""

from typing import Any

import numpy as np
import pytest

from cris_bench.record.intervals import (
    interval,
    median_draws,
    ratio,
    round_ratios,
    times_eager,
)
from cris_bench.record.rows import Role, Scope
from cris_bench.report.like import pairs
from cris_bench.report.summary import terminal
from tests.stand_ins.fake_record import EAGER, ours, record, row


def about(low: float, high: float) -> Any:
    """Ends of an interval; of 4,000 draws each is known to a few thousandths."""
    return pytest.approx((low, high), rel=0.003)


def test_what_never_varies_within_a_run_does_from_run_to_run() -> None:
    found = interval([2.0] * 6)
    assert found is not None
    assert found.middle == 2.0
    # 1.96 standard deviations of 1%.
    assert (found.low, found.high) == about(2 * 0.9804, 2 * 1.0196)


def test_of_five_rounds_nothing_is_said() -> None:
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_it_agrees_with_the_interval_of_order_statistics() -> None:
    # Of 30 values the 10th and the 21st enclose the median with 95.7% (binomial, exact).
    values = np.arange(1.0, 31.0)
    found = interval(values)
    assert found is not None
    assert found.middle == 15.5
    assert found.low == pytest.approx(10, abs=1.5)
    assert found.high == pytest.approx(21, abs=1.5)


def test_it_encloses_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    runs = 300
    inside = 0
    for _ in range(runs):
        found = interval(rng.lognormal(0.0, 0.3, 30))
        assert found is not None
        inside += found.low <= 1.0 <= found.high
    # 95%; the percentile bootstrap of 30 values is known to fall short a little. 300 runs: +- 2.5%.
    assert 0.90 <= inside / runs <= 0.99


def test_draws_are_the_same_for_the_same_seed() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert (median_draws(values, 3) == median_draws(values, 3)).all()
    assert (median_draws(values, 3) != median_draws(values, 4)).any()


def test_ratios_are_of_rounds_and_of_masks() -> None:
    # The machine slows down tenfold; each round still says that eight masks take four times one.
    slow = row(seconds=(0.1, 1.0, 1.0, 1.0, 0.1, 0.1))
    fast = ours(seconds=(0.4, 4.0, 4.0, 4.0, 0.4, 0.4), masks=8, expressions=8)
    assert round_ratios(slow, fast) == pytest.approx([2.0] * 6)
    found = ratio(slow, fast)
    assert found is not None
    assert (found.low, found.high) == about(1.961, 2.039)


def test_a_scope_is_held_against_what_the_baseline_has_to_do() -> None:
    whole = row(seconds=(0.6,) * 6, scope=Scope.END_TO_END)
    known = ours(seconds=(0.1,) * 6, scope=Scope.REPEATED_IMAGE)
    found = times_eager(known, [row(seconds=(0.5,) * 6), whole, known])
    assert found is not None
    assert found.middle == pytest.approx(6.0)
    assert times_eager(ours(scope=Scope.OVERHEAD), [whole]) is None


def test_like_is_held_against_like() -> None:
    def peer(name: str, compute: str, seconds: float, **changes: object):
        return row(name, (seconds,) * 6, None, compute=compute, role=Role.PEER, **changes)

    found = record(
        row(seconds=(0.6,) * 6),
        peer("slow plain", "int8", 0.3),
        peer("NNCF plain", "int8-bf16", 0.15),
        peer("plain fp32", "fp32", 0.45),
        ours("int8", (0.12,) * 6),
        ours("int8-bf16", (0.1,) * 6),
        ours("fp32", (0.3,) * 6),
        ours("bf16", (0.2,) * 6),
        # of eight expressions only the baseline, one by one
        row(seconds=(0.6,) * 6, expressions=8),
        ours("fp32", (1.2,) * 6, expressions=8, masks=8),
    )
    said = {(pair.arithmetic, pair.ours.expressions): pair for pair in pairs(found)}
    int8 = said["int8", 1]
    assert int8.peer is not None
    assert (int8.ours.name, int8.peer.name) == ("openvino int8-bf16", "NNCF plain")
    assert int8.over_peer is not None
    assert int8.over_eager is not None
    assert (int8.over_peer.low, int8.over_peer.high) == about(1.47, 1.53)
    assert int8.over_eager.middle == pytest.approx(6.0)
    assert said["bf16", 1].peer is None  # nobody else computes in it
    fp32 = said["fp32", 1].peer
    assert fp32 is not None
    assert fp32.name == "plain fp32"
    eight = said["fp32", 8]
    assert eight.peer is not None
    assert eight.peer.name == EAGER
    assert eight.over_peer is not None
    assert eight.over_peer.middle == pytest.approx(4.0)
    assert str(int8.over_peer) in terminal(found)
    assert str(int8.over_peer).startswith("1.50 (1.4")
