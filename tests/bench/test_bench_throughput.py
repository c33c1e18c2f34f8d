"""What is kept between runs, and the energy that masks take: in folders made by hand."""

import os
from pathlib import Path

import numpy as np
import pytest

from cris_bench import exports as exports_file
from cris_bench.contestants.contestant import Identity
from cris_bench.exports import VARIABLE, Exports, default_folder
from cris_bench.place import Place
from cris_bench.record.rows import Role
from cris_bench.scopes.clients import measure_clients
from cris_bench.scopes.energy import Meter
from cris_deploy.execution.backends import Device


def zone(folder: Path, name: str, said: str, joules: int, most: int = 999) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "name").write_text(f"{said}\n")
    (place / "energy_uj").write_text(f"{joules}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    return place / "energy_uj"


def test_packages_are_added_and_counters_start_again(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)  # a part of the package
    second = zone(tmp_path, "intel-rapl:1", "package-1", 100)
    zone(tmp_path, "intel-rapl:2", "psys", 7)  # the whole computer
    meter = Meter.open(tmp_path)
    assert (meter.absent, [*meter.packages]) == ("", [first, second])
    before = meter.read()
    first.write_text("100")
    second.write_text("150")
    assert meter.since(before) == pytest.approx((200 + 50) * 1e-6)


def test_a_machine_that_tells_nothing_says_so(tmp_path: Path) -> None:
    meter = Meter.open(tmp_path)
    assert "does not tell" in meter.absent
    assert meter.since(meter.read()) is None
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    counter.unlink()
    assert "energy_uj cannot be read: No such file" in Meter.open(tmp_path).absent


def test_energy_is_that_of_the_calls(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0, 10**9)
    calls: list[str] = []

    def segment(picture: np.ndarray, words: str) -> None:
        calls.append(words)
        counter.write_text(str(1_000_000 * len(calls)))

    found = measure_clients(
        Identity("a", Role.ENGINE, Place(Device.CPU), "fp32"),
        segment,
        threads=1,
        calls=3,
        meter=Meter.open(tmp_path),
        height=9,
        width=9,
        tick=lambda: None,
    )
    assert (found.images, found.joules) == (3, pytest.approx(3.0))  # the first call is not timed
    assert found.masks_per_wh == pytest.approx(3600)


def test_an_export_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "graph").write_text("x")

    exports = Exports(tmp_path / "kept")
    first = exports.get(make, "model", "fp32")
    assert (
        first
        == exports.get(make, "model", "fp32")
        == Exports(tmp_path / "kept").get(make, "model", "fp32")
    )
    assert exports.get(make, "model", "int8") != first
    assert len(made) == 2
    assert (first / "graph").read_text() == "x"


def test_half_an_export_is_never_found(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "graph").write_text("x")
        raise KeyboardInterrupt

    exports = Exports(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        exports.get(broken, "model")
    assert [*tmp_path.iterdir()] == []


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "graph").write_bytes(bytes(100))

    exports = Exports(tmp_path, most_bytes=250)
    old, used = exports.get(make, "old"), exports.get(make, "used")
    os.utime(old, (1, 1))
    os.utime(used, (2, 2))
    exports.get(make, "used")
    newest = exports.get(make, "newest")
    assert {*tmp_path.iterdir()} == {used, newest}
    # What is asked for stays, however large.
    small = Exports(tmp_path, most_bytes=1)
    assert small.get(make, "one").is_dir()


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/cris-bench")


def test_an_exports_name_changes_with_packages_and_not_with_our_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(**versions: str) -> Path:
        monkeypatch.setattr(
            exports_file,
            "versions_of",
            lambda _: {n.replace("_", "-"): v for n, v in versions.items()},
        )
        exports_file._surroundings.cache_clear()
        return Exports(tmp_path).get(lambda folder: None, "model")

    first = name(torch="2.14", cris_deploy="0.2.0.dev1")
    assert name(torch="2.14", cris_deploy="0.2.0.dev2") == first  # its source is hashed
    assert name(torch="2.15", cris_deploy="0.2.0.dev1") != first
    exports_file._surroundings.cache_clear()
