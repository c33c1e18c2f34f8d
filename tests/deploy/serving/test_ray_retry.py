"""The client of docs/ray.md: what a lost replica answers is asked again, what is refused is not."""

import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

PAGE = Path(__file__).parents[3] / "docs/ray.md"


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return names["ask"]


def client(*outcomes: int | Exception) -> httpx.Client:
    left = list(outcomes)

    def answer(_: httpx.Request) -> httpx.Response:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(outcome, json={"left": len(left)})

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x")


def test_a_lost_replica_is_asked_again(ask: Any) -> None:
    cut_off = httpx.RemoteProtocolError("an answer cut off")
    assert ask(client(500, cut_off, 503, 200, 500), b"x", "a") == {"left": 1}


def test_a_refusal_is_not(ask: Any) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        ask(client(422, 200), b"x", "a")


def test_it_ends(ask: Any) -> None:
    with pytest.raises(RuntimeError, match="no answer"):
        ask(client(*[500] * 6), b"x", "a")
