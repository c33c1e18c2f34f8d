"""The plain export in int8 by the runtimes' own quantisers, on a tiny model."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cris_bench.budget import NO_TIME, Budget
from cris_bench.contestants import plain_export
from cris_bench.contestants.plain_export import PlainPeers
from cris_bench.contestants.pytorch import Eager
from cris_bench.contestants.quantised import INSTALL, calibration
from cris_bench.exports import Exports
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record.schema import Absent, ModelFacts
from cris_bench.subject import Subject
from cris_deploy.execution.backends import Compute, Device
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.graph.tokenizer import write_tokenizer
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    config = CrisConfig.tiny(decoder_layers=1)
    model = randomised(Cris(config)).eval()
    facts = ModelFacts("tiny", config.input_size, config.word_len, 1, "ab" * 32)
    return Subject(model, None, "ab" * 32, {}, {}, config.vocab_size, facts, {}, {}, None)


@pytest.fixture(scope="module")
def words(subject: Subject) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        write_tokenizer(path)
        return Tokenizer.from_file(path, subject.facts.word_len)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def load(
    subject: Subject, words: Tokenizer, exports: Exports, seconds: float | None, **options: object
) -> tuple[list[plain_export.PlainExport], list[Absent]]:
    absent: list[Absent] = []
    asked = BenchOptions(threads=1, **options)
    budget = Budget(seconds)
    return PlainPeers(asked, exports, subject, words, str, budget, absent).load(), absent


def test_every_runtime_and_quantiser_gives_the_models_logits(
    subject: Subject, words: Tokenizer, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, absent = load(subject, words, exports, None)
    named = {peer.identity.name: peer for peer in found}
    why = {entry.name: entry.install for entry in absent}
    assert "bfloat16" in why["onnxruntime plain export bf16"]
    assert {"openvino plain export fp32", "onnxruntime plain export fp32"} <= named.keys()
    assert "onnxruntime plain export int8 by quantize_static" in named
    if importlib.util.find_spec("nncf") is None:
        assert INSTALL in why["openvino plain export int8"]
    else:
        assert "openvino plain export int8 by NNCF" in named
    assert subject.model is not None
    feed = calibration(words, subject.facts.input_size)[0]
    eager = Eager(subject.model, None, Place(Device.CPU))
    expected = eager.bind(feed["image"], feed["tokens"]).logits().ravel()
    for name, peer in named.items():
        assert peer.single
        logits = peer.bind(feed["image"], feed["tokens"]).logits().ravel()
        correlation = np.corrcoef(logits, expected)[0, 1]
        exact = peer.identity.compute == Compute.FP32
        # A tiny model of random weights: what is tested is that it is that model, in int8.
        assert correlation > (0.99999 if exact else 0.9), name
        assert exact or correlation < 0.9999999, name
    # What was made is not made again.
    monkeypatch.setattr(plain_export, "export_plain", pytest.fail)
    monkeypatch.setattr(plain_export, "quantise_for_onnxruntime", pytest.fail)
    if importlib.util.find_spec("nncf") is not None:
        monkeypatch.setattr(plain_export, "quantise_for_openvino", pytest.fail)
    again, _ = load(subject, words, exports, None, computes=(Compute.INT8_BF16,))
    assert {peer.identity.name for peer in again} == {n for n in named if " int8" in n}


def test_without_time_nobody_is_made_and_all_are_named(
    subject: Subject, words: Tokenizer, tmp_path: Path
) -> None:
    found, absent = load(subject, words, Exports(tmp_path), 0.0)
    assert found == []
    assert absent == [Absent("the plain export", NO_TIME)]
    assert [*tmp_path.iterdir()] == []
