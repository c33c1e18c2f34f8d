"""A run's time: who is left out, what is cut off, when a race ends; on a clock set by hand."""

import contextlib
import signal
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from cris_bench.budget import Budget, Cost, OutOfTime, who_fits
from cris_bench.contestants.contestant import Bound, Identity
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record.rows import Role, Scope
from cris_bench.scopes.entries import Field, Shape
from cris_bench.scopes.races import Results, race
from cris_bench.scopes.timing import Clocked, interleave
from cris_deploy.execution.backends import Device


class Clock:
    """Seconds that go on when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_and_its_parts() -> None:
    clock = Clock()
    budget = Budget(60, clock)
    clock.now += 20
    assert (budget.elapsed, budget.left) == (20, 40)
    part = budget.part(0.5)
    clock.now += 15
    assert part.left == pytest.approx(5)
    assert budget.left == pytest.approx(25)
    clock.now += 100
    assert (part.left, budget.left) == (0, 0)


def test_without_an_end_there_is_always_time() -> None:
    budget = Budget(None, Clock())
    assert budget.part(0.1).left == float("inf")
    with budget.cut():
        pass


def test_what_takes_too_long_is_cut_off() -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()

    def library() -> None:
        while True:
            with contextlib.suppress(Exception):  # what a library catches does not keep it
                time.sleep(1)

    with pytest.raises(OutOfTime), Budget(0.05).cut():
        library()
    assert time.monotonic() - began < 30
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_is_in_time_goes_through_and_nothing_begins_too_late() -> None:
    clock = Clock()
    budget = Budget(60, clock)
    with budget.cut():
        done = True
    assert done
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    clock.now += 60
    with pytest.raises(OutOfTime), budget.cut():
        pytest.fail("nothing is begun")


def costs() -> list[Cost]:
    return [
        Cost("eager", 1.0, 1, "baseline", stays=True),
        Cost("compiled", 0.9, 1, "peers in fp32"),
        Cost("plain", 0.7, 1, "peers in fp32"),
        Cost("ours fp32", 0.5, 1, "ours in fp32"),
        Cost("ours int8", 0.8, 8, "ours in int8"),  # 0.1 a mask
        Cost("ours int8, slow", 0.3, 1, "ours in int8"),
    ]


@pytest.mark.parametrize(
    ("seconds", "left_out"),
    [
        (4.2, set()),
        (4.0, {"compiled"}),
        (3.2, {"compiled", "ours int8, slow"}),
        (2.9, {"compiled", "ours int8, slow", "plain"}),
        (2.2, {"compiled", "ours int8, slow", "plain", "ours fp32"}),
        (0.1, {"compiled", "ours int8, slow", "plain", "ours fp32"}),
    ],
)
def test_the_slowest_go_first_and_the_fastest_of_a_group_last(
    seconds: float, left_out: set[str]
) -> None:
    kept = who_fits(costs(), seconds)
    assert {cost.key for cost in costs()} - {*kept} == left_out
    assert kept == [cost.key for cost in costs() if cost.key in kept]


def test_the_order_of_rounds_comes_of_the_seed() -> None:
    def orders(seed: int) -> list[str]:
        calls: list[str] = []
        names = "abcd"
        interleave(
            {name: (lambda name=name: calls.append(name)) for name in names},
            warmup=1,
            iterations=30,
            seed=seed,
        )
        rounds = ["".join(calls[n : n + 4]) for n in range(0, len(calls), 4)]
        assert {"".join(sorted(round_)) for round_ in rounds} == {names}
        return rounds

    assert orders(7) == orders(7) != orders(8)
    # Everyone runs behind everyone else.
    behind = Counter(pair for round_ in orders(7) for pair in pairwise(round_))
    assert len(behind) == 12


def test_a_race_ends_when_it_has_enough() -> None:
    seen: list[int] = []

    def enough(seconds: dict[str, list[float]]) -> bool:
        seen.append(len(seconds["a"]))
        return len(seconds["a"]) == 4

    timings = interleave(
        {"a": lambda: None, "b": lambda: None}, warmup=3, iterations=9, enough=enough
    )
    assert [len(timing.seconds) for timing in timings] == [4, 4]
    assert seen == [1, 2, 3, 4]


class Contestant:
    """Who takes so long on the clock, each second pass longer by a share."""

    single = False

    def __init__(self, clock: Clock, name: str, role: Role, seconds: float, swing: float = 0.0):
        self.identity = Identity(name, role, Place(Device.CPU), "fp32")
        self._clock, self._seconds, self._swing, self._passes = clock, seconds, swing, 0

    def bind(self, image: np.ndarray, tokens: np.ndarray) -> Bound:
        def run() -> Clocked:
            self._passes += 1
            seconds = self._seconds * (1 + self._swing * (self._passes % 2))
            self._clock.now += seconds
            return Clocked(seconds)

        return Bound(run, lambda: np.zeros((1, 1, 2, 2), np.float32))


def raced(
    seconds: float | None, swing: float = 0.0, iterations: int | None = None
) -> tuple[dict[str, int], list[str], float]:
    """Rounds of each contestant, who was left out, and what the race took."""
    clock = Clock()
    eager = Contestant(clock, "eager", Role.BASELINE, 1.0)
    others = [
        Contestant(clock, "fast", Role.PEER, 0.5, swing),
        Contestant(clock, "slow", Role.PEER, 3.0),
    ]
    field, results = Field(eager, others, [], 32, 5, 9), Results()
    options = BenchOptions(scopes=(Scope.NETWORK,), iterations=iterations)
    race(field, Shape(1, 1), options, results, lambda: None, Budget(seconds, clock))
    rounds = {row.name: len(row.seconds) for row in results.rows}
    return rounds, [entry.name for entry in field.absent], clock.now - 100


def test_what_never_varies_is_known_after_six_rounds() -> None:
    assert raced(None) == ({"eager": 6, "fast": 6, "slow": 6}, [], 8 * 4.5)


def test_rounds_that_are_asked_for_are_made() -> None:
    rounds, _, took = raced(None, iterations=9)
    assert rounds == {"eager": 9, "fast": 9, "slow": 9}
    assert took == 11 * 4.5


def test_who_does_not_fit_is_left_out_and_named() -> None:
    # Two rounds of 4.5 seconds leave 21: not enough for six more of them, but for six of 1.5.
    rounds, absent, took = raced(30)
    assert rounds == {"eager": 6, "fast": 6}
    assert absent == ["network: slow, 1 images x 1 expressions"]
    assert took == 2 * 4.5 + 6 * 1.5


@pytest.mark.parametrize("seconds", [30, 45, 60])
def test_what_varies_is_timed_until_the_time_is_up(seconds: float) -> None:
    rounds, _, took = raced(seconds, swing=0.5)
    assert 6 < rounds["fast"] < 30
    assert seconds - 4.75 < took <= seconds


def test_no_race_goes_on_for_ever() -> None:
    assert raced(None, swing=0.5)[0]["fast"] == 30


def test_a_round_that_comes_too_late_is_given_up() -> None:
    clock = Clock()

    def work() -> Clocked:
        clock.now += 1
        return Clocked(1.0)

    timings = interleave(
        {"a": work, "b": work}, warmup=0, iterations=9, late=lambda: clock.now >= 105
    )
    assert [len(timing.seconds) for timing in timings] == [2, 2]  # of five passes
    assert clock.now == 105
    first = interleave({"a": work, "b": work}, warmup=0, iterations=9, late=lambda: True)
    assert [len(timing.seconds) for timing in first] == [1, 1]
