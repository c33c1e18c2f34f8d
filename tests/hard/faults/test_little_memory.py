"""Address space that runs out (RLIMIT_AS), while a bundle is loaded and while it is asked.

Either the golden masks, or an error of ours that says so; the process lives, and the next request
is answered.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hard.faults.starving import REMEDY, export_job
from tests.hard.faults.zygote import Zygote, zygote

LOAD = (1, 4, 16, 64, 1024)  # MiB more than the process has
ASK = (0, 1, 2, 4, 8, 64)


@pytest.fixture(scope="module")
def children() -> Iterator[Zygote]:
    with zygote() as started:
        yield started


@pytest.fixture(scope="module")
def bundle(children: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export_job(children, tmp_path_factory.mktemp("m") / "x").arguments["output"])


@pytest.fixture(scope="module")
def golden(children: Zygote, bundle: Path) -> str:
    return str(children.do("ask", bundle=str(bundle)).told["masks"])


@pytest.mark.parametrize("megabytes", LOAD)
def test_while_loading(children: Zygote, bundle: Path, golden: str, megabytes: int) -> None:
    ended = children.do("ask", {"megabytes": megabytes}, bundle=str(bundle))

    if ended.status == 0:
        assert ended.told["masks"] == golden
    else:
        assert ended.status == 2, ended
        assert "memory" in ended.told["message"]
        assert REMEDY.search(ended.told["message"]), ended.told["message"]


@pytest.mark.parametrize("megabytes", ASK)
def test_while_asking(children: Zygote, bundle: Path, golden: str, megabytes: int) -> None:
    ended = children.do("answer_after", bundle=str(bundle), megabytes=megabytes)

    assert ended.status == 0, ended
    assert ended.told["again"] == golden
    if "masks" in ended.told:
        assert ended.told["masks"] == golden
    else:
        assert "memory" in ended.told["message"]
        assert REMEDY.search(ended.told["message"]), ended.told["message"]
