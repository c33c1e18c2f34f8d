"""The soak itself, for seconds: that it runs, and that it would tell what it is there to tell."""

import dataclasses
import os
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from tests.hard.soak.__main__ import SCENE, soak
from tests.hard.soak.load import Load, pictures
from tests.hard.soak.plot import draw
from tests.hard.soak.watch import BETWEEN_LOOKS, Sample, Watch, faults, judge
from tests.helpers.server import serving

STILL = Sample(0.0, 100 * 2**20, 80 * 2**20, 20, 12, 1.0, 10, 1.0, 2.0, 3.0, paused=False)


def test_seconds_of_mixed_load(tiny_bundle: Path, tmp_path: Path) -> None:
    record = soak(tiny_bundle, 6, rate=50, every=0.5, settling=2.0)

    assert record["failures"] == []
    assert record["requests"] > 8
    assert {"burst", "file"} <= set(record["requests_by_kind"])
    assert len(record["samples"]["rss"]) == len(record["samples"]["p95"]) > 4
    draw(record, tmp_path / "soak.svg")
    assert (tmp_path / "soak.svg").read_text().startswith("<?xml")


def test_a_wrong_mask_and_a_wrong_status_are_failures(tiny_bundle: Path, tmp_path: Path) -> None:
    known = pictures(tiny_bundle, SCENE)[:1]
    wrong = [dataclasses.replace(known[0], masks=tuple(~mask for mask in known[0].masks))]
    with serving(tiny_bundle, tmp_path / "log") as server:
        load = Load(server.url, wrong)
        for kind in (load.file, load.again, load.png, load.archive, load.pixels, load.binary):
            with pytest.raises(AssertionError, match="a wrong mask"):
                kind()
        load.known = [dataclasses.replace(known[0], data=b"no image")]
        load.burst()
        load.close()
    assert len(load.failures) == 8
    assert "422" in load.failures[0]


@pytest.mark.parametrize(
    ("grows", "by", "missed"),
    [
        ("rss", 2**14, "memory grew"),
        ("uss", 2**14, "memory of its own"),
        ("descriptors", 1, "descriptors"),
        ("threads", 1, "threads"),
    ],
)
def test_what_grows_is_told(grows: str, by: int, missed: str) -> None:
    still = [dataclasses.replace(STILL, seconds=20.0 * n) for n in range(360)]
    leaking = [
        dataclasses.replace(s, **{grows: getattr(s, grows) + by * n}) for n, s in enumerate(still)
    ]

    assert faults(judge(still), []) == []
    (told,) = faults(judge(leaking), [])
    assert told.startswith(missed)
    assert faults(judge(still), ["file: 503"]) == ["1 requests failed"]


def test_a_descriptor_that_is_about_to_be_closed_is_not_kept(tmp_path: Path) -> None:
    watch = Watch(os.getpid())
    before = watch.take([], paused=False).descriptors
    with (tmp_path / "kept").open("w"):
        closing = (tmp_path / "closing").open("w")
        closer = Timer(1.5 * BETWEEN_LOOKS, closing.close)
        closer.start()
        assert watch.take([], paused=False).descriptors == before + 1
        closer.join()


def test_what_grew_while_it_settled_is_no_fault() -> None:
    samples = [
        dataclasses.replace(STILL, seconds=20.0 * n, threads=12 + min(n, 30), rss=2**27 + n % 3)
        for n in range(360)
    ]
    judged = judge(samples)

    assert np.allclose(judged["rss_growth"], 0, atol=1e-5)
    assert faults(judged, []) == []


def test_too_few_samples_say_nothing() -> None:
    assert "too short" in judge([STILL] * 5)["said"]
