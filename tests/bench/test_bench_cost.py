"""`cris-bench cost`: machines and money from a record's whole calls, worked out by hand."""

import dataclasses
from pathlib import Path

import pytest

from cris_bench.cli import main
from cris_bench.record.file import read_record, write_record
from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Record
from cris_bench.report.cost import find_costs, images_per_second
from cris_deploy.errors import InputError

COMMITTED = Path(__file__).parents[2] / "benchmarks/results/cpu-rn50.json"


def row(expressions: int, seconds: float, *, batch: int = 1, **fields: object) -> Row:
    values: dict[str, object] = {
        "scope": Scope.END_TO_END,
        "name": "ours",
        "role": Role.ENGINE,
        "device": "cpu",
        "compute": "fp32",
        "batch": batch,
        "expressions": expressions,
        "masks": batch * expressions,
        "seconds": (seconds,) * 4,
    }
    return Row(**{**values, **fields})  # type: ignore[arg-type]


def record_of(*rows: Row) -> Record:
    return dataclasses.replace(read_record(COMMITTED), rows=rows)


def test_three_expressions_between_one_and_eight() -> None:
    record = record_of(row(1, 0.2), row(8, 0.9))
    (cost,) = find_costs(record, price=2.5, images=images_per_second("1e6/h"), expressions=3)
    # An image 0.2 s, each further expression 0.1 s: 2.5 images a second, 27,000 masks an hour.
    assert cost.images_per_second.middle == pytest.approx(2.5)
    assert cost.machines.middle == pytest.approx(1e6 / 3600 / 2.5)
    assert cost.dollars_per_million.middle == pytest.approx(2.5 / 27_000 * 1e6)
    assert cost.machines.low == cost.machines.high  # every pass took as long
    (half,) = find_costs(record, 2.5, 1.0, expressions=3, load=0.5)
    assert half.images_per_second.middle == pytest.approx(1.25)
    (more,) = find_costs(record, 2.5, 1.0, expressions=10)
    assert more.images_per_second.middle == pytest.approx(1 / 1.1)


def test_who_takes_expressions_one_by_one_pays_for_each() -> None:
    eager = row(8, 0.5, name="eager", role=Role.BASELINE, masks=1)
    (cost,) = find_costs(record_of(eager), 1.0, 1.0, expressions=8)
    assert cost.images_per_second.middle == pytest.approx(1 / 4.0)


def test_the_cheapest_batch_and_the_fullest_scope_count() -> None:
    rows = (
        row(1, 0.2),
        row(1, 0.4, batch=4),
        row(1, 0.3, scope=Scope.FROM_BYTES),
        row(1, 0.01, scope=Scope.NETWORK),
        row(1, 0.2, name="other"),
        row(1, 0.4, name="other", batch=4),
    )
    other, ours = find_costs(record_of(*rows), 1.0, 1.0, expressions=1)
    assert (ours.scope, ours.batch) == (Scope.FROM_BYTES, 1)
    assert (other.name, other.batch) == ("other", 4)
    assert other.images_per_second.middle == pytest.approx(10)


def test_intervals_hold_the_passes() -> None:
    noisy = dataclasses.replace(row(1, 0.2), seconds=(0.1, 0.2, 0.3, 0.2, 0.2, 0.25, 0.15))
    (cost,) = find_costs(record_of(noisy), 1.0, 1.0, expressions=1)
    assert cost.machines.low < cost.machines.middle < cost.machines.high


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", str(COMMITTED), "--price", "2.50", "--images", "1e6/h", "--expressions", "3"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.index("openvino int8-bf16") < shown.index("PyTorch eager fp32 (not this engine)")
    path = tmp_path / "one.json"
    write_record(path, record_of(row(1, 0.2)))
    for options, message in (
        (["--price", "0"], "--price is 0"),
        (["--price", "1", "--load", "1.5"], "--load is 1.5"),
        (["--price", "1", "--images", "many"], "such as 1e6/h"),
        (["--price", "1", "--expressions", "0"], "--expressions is 0"),
        (["--price", "1", "--expressions", "3"], "--expressions 1,3"),
    ):
        assert main(["cost", str(path), *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rate"), [("1e6/h", 1e6 / 3600), ("20/s", 20.0), ("86400/day", 1.0), ("60/min", 1.0)]
)
def test_rates(text: str, rate: float) -> None:
    assert images_per_second(text) == pytest.approx(rate)
    for bad in ("", "5", "0/s", "1/year", "e/s", "-1/s", "1e999/s"):
        with pytest.raises(InputError, match="--images"):
            images_per_second(bad)
