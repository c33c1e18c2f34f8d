"""Records of cris-bench: what they compute, and that reading one is strict."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cris_bench.record.file import read_record, write_record
from cris_bench.record.rows import Clients, NotFinite, Scope, finite
from cris_bench.record.schema import Parity
from cris_deploy.documents import to_json
from cris_deploy.errors import InputError
from tests.stand_ins.fake_record import EAGER, ours, record, row, whole_record


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write_record(path, whole_record())
    assert read_record(path) == whole_record()
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]  # no partial file is left


def test_a_record_of_the_first_format_is_read() -> None:
    path = Path(__file__).parents[1] / "data" / "record-format-1.json"
    document = json.loads(path.read_text())
    found = json.loads(to_json(read_record(path)))
    _contains(found, document)
    # Format 1 has stages of one image and one expression.
    assert all((work["batch"], work["expressions"]) == (1, 1) for work in found["work"])
    assert found["seed"] is None  # everyone was always behind the same neighbour


def _contains(found: Any, document: Any) -> None:
    """Nothing of a document is lost; later formats may add to it."""
    if isinstance(document, dict):
        assert found.keys() >= document.keys()
        for key, value in document.items():
            _contains(found[key], value)
    elif isinstance(document, list):
        for one, other in zip(found, document, strict=True):
            _contains(one, other)
    else:
        assert found == document


def test_json_has_the_raw_times_and_plain_names() -> None:
    document = json.loads(to_json(whole_record()))
    assert document["format"] == 3
    assert document["rows"][1]["seconds"] == [0.3, 0.4, 0.4, 0.5]
    assert document["rows"][0]["scope"] == "network"
    assert document["bundles"]["int8"]["parity"] == "proved"


def test_a_logit_that_is_not_finite_is_kept_in_standard_json(tmp_path: Path) -> None:
    errors = [finite(number) for number in (math.nan, math.inf, 0.5)]
    assert errors == [NotFinite.NAN, NotFinite.INFINITY, 0.5]
    path = tmp_path / "r.json"
    write_record(path, record(*(ours(logit_error=error) for error in errors)))
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [row["logit_error"] for row in document["rows"]] == ["NaN", "Infinity", 0.5]
    assert [row.logit_error for row in read_record(path).rows] == errors


def test_a_mask_has_its_share_of_a_pass() -> None:
    eight = row(seconds=(0.2, 0.8, 0.4), expressions=4, batch=2, masks=8)
    assert eight.mask_ms == pytest.approx(50.0)
    assert eight.fps == pytest.approx(20.0)


def test_noise_is_a_spread_above_15_percent() -> None:
    quiet, restless = row(seconds=(0.97, 1.0, 1.0, 1.03)), row(seconds=(0.8, 0.9, 1.1, 1.2))
    # quartiles as statistics.quantiles has them: 0.825 and 1.175 of median 1
    assert restless.spread == pytest.approx(0.35)
    assert (quiet.noisy, restless.noisy) == (False, True)
    assert math.isnan(row(seconds=(1.0, 9.0, 1.0)).spread)  # too few to say


def test_only_a_difference_may_be_negative() -> None:
    overhead = ours(seconds=(-1e-4, 1e-4, 2e-4, 9e-4), scope=Scope.OVERHEAD, ratio=None)
    assert overhead.mask_ms == pytest.approx(0.15)
    assert not overhead.noisy
    with pytest.raises(InputError, match=r"seconds has -0\.1, expected times above 0"):
        row(seconds=(-0.1,))


def test_percentiles_are_latencies_that_happened() -> None:
    times = tuple(n / 1000 for n in range(1, 201))
    clients = Clients("engine", "cpu", "fp32", 4, 10.0, 200, times[::-1])
    assert clients.throughput == pytest.approx(20.0)
    assert (clients.p50_ms, clients.p95_ms, clients.p99_ms) == pytest.approx((100, 190, 198))
    single = Clients("engine", "cpu", "fp32", 1, 1.0, 1, (0.5,))
    assert (single.p50_ms, single.p99_ms) == pytest.approx((500, 500))


def test_a_row_cannot_name_a_bundle_that_is_not_there() -> None:
    with pytest.raises(InputError, match="fp16"):
        record(ours(bundle="fp16"))


def _written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            ("rows", 0, "seconds", 1),
            "0.5",
            r"rows\[0\]\.seconds\[1\] is \"0.5\", expected a number",
        ),
        (("rows", 0, "seconds"), [], r"rows\[0\]\.seconds is \[\], expected a time of every pass"),
        (("rows", 0, "seconds", 0), -0.5, r"rows\[0\].*seconds has -0.5, expected times above 0"),
        (("rows", 0, "scope"), "everything", r"rows\[0\]\.scope .* expected network or device"),
        (("rows", 0, "batch"), True, r"rows\[0\]\.batch is true, expected an integer"),
        (("rows", 0, "batch"), 0, r"rows\[0\]\.batch is 0, expected an integer >= 1"),
        (("rows", 1, "ratio"), -2.0, r"rows\[1\]\.ratio is -2.0, expected a number > 0.0"),
        (("rows", 1, "logit_error"), "big", r"rows\[1\]\.logit_error.*big"),
        (("rows",), {}, "rows is {}, expected a list"),
        (("machine",), None, "machine is null, expected an object"),
        (("machine", "cores"), 2.0, "machine.cores is 2.0"),
        (("machine", "versions", "torch"), 2, r"versions\['torch'\] is 2, expected a string"),
        (("bundles", "int8", "parity"), "maybe", r"\['int8'\].parity .* proved or failed or none"),
        (("surprise",), 1, "surprise is not known"),
        (("model", "colour"), 1, "model.colour is not known"),
    ],
)
def test_reading_names_what_is_wrong(
    tmp_path: Path, place: tuple[str | int, ...], value: object, said: str
) -> None:
    document = json.loads(to_json(record()))
    inner: Any = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(InputError, match=said) as caught:
        read_record(_written(tmp_path, document))
    assert "record.json" in str(caught.value)


@pytest.mark.parametrize(("owner", "name"), [((), "model"), (("rows", 0), "seconds")])
def test_a_missing_field_is_named(tmp_path: Path, owner: tuple[str | int, ...], name: str) -> None:
    document = json.loads(to_json(record()))
    inner: Any = document
    for step in owner:
        inner = inner[step]
    del inner[name]
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_record(_written(tmp_path, document))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "cris-bench -o FILE"),
        ('{"simd": "avx2"}', "format is missing.*cris-bench -o FILE"),  # of cris-bench kernels
        ('{"format": 4}', "format 4, .* reads up to 3: upgrade"),
    ],
)
def test_files_that_are_no_records(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_record(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json cannot be read: No such file"):
        read_record(tmp_path / "nothing.json")


def test_parts_that_may_be_missing_are_empty(tmp_path: Path) -> None:
    document = json.loads(to_json(record(row(EAGER), bundles={})))
    for name in ("clients", "memory", "bundles", "paper_fps"):
        del document[name]
    found = read_record(_written(tmp_path, document))
    assert (found.clients, found.memory, found.bundles, found.paper_fps) == ((), (), {}, None)


def test_parity_has_three_answers() -> None:
    assert [parity.value for parity in Parity] == ["proved", "failed", "none"]
