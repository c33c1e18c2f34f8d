"""cris-bench compare: what it pairs, what it judges, what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cris_bench.record.file import write_record
from cris_bench.record.rows import Scope
from cris_bench.record.schema import BundleFacts, Parity, Record
from cris_bench.report.compare import compare, main
from cris_deploy.errors import InputError
from tests.stand_ins.fake_record import EAGER, MODEL, machine, ours, record, row


def _run(tmp_path: Path, before: Record, after: Record, *flags: str) -> int:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, entry in zip(paths, (before, after), strict=True):
        write_record(path, entry)
    return main([*map(str, paths), *flags])


def test_ratios_are_compared_where_both_have_one() -> None:
    # Twice the time on a machine at half its speed: nothing changed.
    before = record(row(seconds=(0.5,) * 6), ours(seconds=(0.1,) * 6, ratio=5.0))
    after = record(row(seconds=(1.0,) * 6), ours(seconds=(0.2,) * 6, ratio=5.0))
    change = compare(before, after).changes[1]
    assert change.by_ratio
    assert change.slower == pytest.approx(0.0)


def test_without_ratios_milliseconds_are_compared() -> None:
    before, after = (
        record(ours(seconds=(seconds,), ratio=None, scope=Scope.EXPRESSION))
        for seconds in (0.1, 0.12)
    )
    (change,) = compare(before, after).changes
    assert not change.by_ratio
    assert change.slower == pytest.approx(0.2)


def run_of(seconds: float, spread: float = 0.0, rounds: int = 8) -> Record:
    """A record whose engine takes so long, half of its rounds faster and half slower by a share."""
    times = tuple(seconds * (1 + spread * (-1) ** n) for n in range(rounds))
    return record(row(seconds=(0.5,) * rounds), ours(seconds=times, ratio=0.5 / seconds))


@pytest.mark.parametrize(
    ("after", "limit", "code"),
    [
        (run_of(0.1), "5%", 0),
        (run_of(0.104), "5%", 0),
        (run_of(0.107), "5%", 0),  # two runs of the same may differ by 2.8% (95%)
        (run_of(0.109), "5%", 1),
        (run_of(0.109), "10 %", 0),
        (run_of(0.08), "0%", 0),  # faster
        (run_of(0.107, spread=0.04), "5%", 0),  # by 3% to 11%: it may be less than 5%
        (run_of(0.12, spread=0.04), "5%", 1),  # by 15% to 25%
    ],
)
def test_a_limit_is_held_against_the_whole_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: Record, limit: str, code: int
) -> None:
    assert _run(tmp_path, run_of(0.1), after, "--max-regression", limit) == code
    printed = capsys.readouterr().out
    assert ("TOO SLOW" in printed) == (code == 1)
    assert f"{code} of 2 rows are slower by more than" in printed


def test_the_interval_of_a_change_is_that_of_both_runs() -> None:
    change = compare(run_of(0.1, spread=0.1), run_of(0.1, spread=0.1)).changes[1]
    assert change.interval is not None
    # Extremes: 0.11 / 0.09 - 1, and 0.09 / 0.11 - 1; and what differs between runs.
    assert change.interval.low == pytest.approx(0.09 / 0.11 - 1, abs=0.03)
    assert change.interval.high == pytest.approx(0.11 / 0.09 - 1, abs=0.03)


def test_too_few_rounds_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = run_of(0.2, rounds=5)
    assert _run(tmp_path, run_of(0.1), few) == 0
    assert "fewer than 6 rounds: not judged" in capsys.readouterr().out
    assert _run(tmp_path, run_of(0.1), few, "--max-regression", "5%") == 2
    assert "measure longer" in capsys.readouterr().err


def test_without_a_limit_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, run_of(0.1), run_of(0.2)) == 0
    assert "+100.0% (+94.8% to +105.7%)" in capsys.readouterr().out


def test_an_overhead_is_shown_but_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = (
        record(row(), ours(seconds=(seconds,) * 6, ratio=None, scope=Scope.OVERHEAD))
        for seconds in (-0.0001, 0.0003)
    )
    assert _run(tmp_path, before, after) == 0
    printed = capsys.readouterr().out
    assert "-0.100" in printed
    assert "not judged" in printed


def test_rows_are_paired_by_scope_name_batch_and_expressions() -> None:
    before = record(row(), ours(), ours(batch=8, masks=8))
    after = record(row(), ours(expressions=8, masks=8), ours(scope=Scope.END_TO_END))
    found = compare(before, after)
    assert [change.before.name for change in found.changes] == [EAGER]
    assert [(entry.batch, entry.expressions) for entry in found.gone] == [(1, 1), (8, 1)]
    assert [entry.scope for entry in found.new] == [Scope.NETWORK, Scope.END_TO_END]


def test_missing_rows_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, record(row(), ours()), record(row(), ours("bf16"))) == 0
    printed = capsys.readouterr().out
    assert "Only in A: network only, openvino int8 (images 1, expressions 1)." in printed
    assert "Only in B: network only, openvino bf16" in printed


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(InputError, match="no row in common"):
        compare(record(row()), record(ours()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": dataclasses.replace(MODEL, architecture="RN101")},
            "architecture RN50 and RN101",
        ),
        ({"model": dataclasses.replace(MODEL, weights="ab" * 32)}, "weights random and abab"),
        ({"machine": machine(cpu="Other")}, "cpu Example CPU 9000 and Other"),
        ({"machine": machine(cores=4)}, "cores 2 and 4"),
        ({"machine": machine(gpu="GPU")}, "gpu none and GPU"),
        ({"threads": 1}, "threads all and 1"),
        ({"image_width": 640}, "image size 1920 x 1080 and 640 x 1080"),
    ],
)
def test_unlike_records_take_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    other = record(**changes)
    assert _run(tmp_path, record(), other) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--force" in error
    assert _run(tmp_path, record(), other, "--force") == 0
    assert f"Not like with like: {said}" in capsys.readouterr().out


def test_other_versions_are_said_but_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = record(machine=machine(versions={"torch": "2.16.0"}, system="Linux 6.2 x86_64"))
    assert _run(tmp_path, record(), newer) == 0
    printed = capsys.readouterr().out
    assert "torch 2.15.0 and 2.16.0" in printed
    assert "openvino 2026.4.1 and none" in printed
    assert "system Linux 6.1 x86_64 and Linux 6.2 x86_64" in printed


def test_records_may_lack_what_a_machine_need_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_record(new, record())
    document = json.loads(new.read_text())
    del document["machine"]["gpu"], document["machine"]["clock_mhz"]
    old.write_text(json.dumps(document))
    for before, after in ((old, new), (new, old)):
        assert main([str(before), str(after)]) == 0
        assert "clock_mhz" in capsys.readouterr().out


def test_noise_and_failed_parity_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = record(
        row(seconds=(0.2, 0.5, 0.5, 0.9)),
        ours(),
        bundles={"int8": BundleFacts("int8", "ab" * 32, 1, Parity.FAILED, 0.5)},
    )
    assert _run(tmp_path, record(), after) == 0
    printed = capsys.readouterr().out
    assert "noisy in B" in printed
    assert "PARITY GATE FAILED in B" in printed


@pytest.mark.parametrize("limit", ["5", "-5%", "five%", "%", ""])
def test_a_limit_is_a_percentage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    assert _run(tmp_path, record(), record(), f"--max-regression={limit}") == 2
    assert "--max-regression" in capsys.readouterr().err


def test_a_missing_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json"), str(tmp_path / "b.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
