"""cris-bench: the protocol on a tiny model, its record, and what it refuses."""

import json
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from cris_bench import cli, exports
from cris_bench.contestants.ours import Ours, Way
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record.file import read_record
from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.scopes import child
from cris_bench.scopes.ceilings import measure_ceilings
from cris_bench.scopes.entries import Field, Shape
from cris_bench.scopes.inputs import Fresh
from cris_bench.scopes.races import Results, race
from cris_bench.scopes.timing import Clocked, Pass, Timing, interleave, paired_ratio
from cris_bench.subject import paper_fps, parity_of
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import BackendName, Compute, Device, Graph
from cris_deploy.pixels.image import letterbox
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised


def test_rounds_are_interleaved_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    timings = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, warmup=2, iterations=3
    )
    assert [sorted(calls[n : n + 2]) for n in range(0, 10, 2)] == [["a", "b"]] * 5
    assert [(t.name, len(t.seconds)) for t in timings] == [("a", 3), ("b", 3)]


def test_preparation_is_not_timed_and_a_pass_may_have_its_own_clock() -> None:
    given: list[int] = []
    numbers = iter(range(9))
    timings = interleave(
        {"a": Pass(lambda n: given.append(n) or Clocked(n / 10), lambda: next(numbers))},
        warmup=1,
        iterations=2,
    )
    assert given == [0, 1, 2]
    assert timings[0].seconds == (0.1, 0.2)


def test_ratio_is_taken_within_rounds() -> None:
    # The machine slows down by a factor of ten; each round still says 2.
    slow = Timing("slow", (0.2, 2.0, 2.0))
    fast = Timing("fast", (0.1, 1.0, 1.0))
    assert paired_ratio(slow, fast) == pytest.approx(2.0)
    assert slow.median_ms == pytest.approx(2000)
    assert slow.fps == pytest.approx(0.5)


def test_pictures_and_expressions_are_never_twice() -> None:
    fresh, other = Fresh(1080, 1920), Fresh(1080, 1920, seed=1)
    # An engine knows an image by its letterboxed square.
    squares = [letterbox(source.picture(), 64).tobytes() for source in [fresh] * 20 + [other] * 20]
    assert len(set(squares)) == len(squares)
    words = [*fresh.expressions(20), *other.expressions(20)]
    assert len(set(words)) == len(words)
    assert Fresh(5, 3).picture().shape == (5, 3, 3)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    return checkpoint.save(path, randomised(Cris(CrisConfig.tiny())))


@pytest.fixture(scope="module")
def record(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Everything but torch.compile, which takes a minute, and what runs in other processes."""
    scopes = ",".join(s for s in Scope if s not in (Scope.DEVICE, Scope.LOAD, Scope.FIRST_CALL))
    flags = ["--ckpt", str(tiny_checkpoint), "--scopes", scopes, "--quick", "--iterations", "4"]
    flags += ["--precision", "fp32,int8", "--expressions", "3", "--minutes", "0"]
    flags += ["--threads", "1"]  # small products gain nothing by more, and others may want them
    flags += ["--image-size", "90x60", "--clients", "2"]
    path = tmp_path_factory.mktemp("out") / "new" / "record.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(exports.VARIABLE, str(tmp_path_factory.mktemp("exports")))
        assert cli.main([*flags, "-o", str(path)]) == 0
    return read_record(path)


def _rows(record: Record, scope: Scope, batch: int = 1, expressions: int = 1) -> dict[str, Row]:
    return {
        row.name: row
        for row in record.rows
        if (row.scope, row.batch, row.expressions) == (scope, batch, expressions)
    }


def test_network_has_everyone_and_the_baseline_first(record: Record) -> None:
    rows = _rows(record, Scope.NETWORK)
    assert next(iter(rows)) == "PyTorch eager fp32"
    assert all(len(row.seconds) == 4 for row in rows.values())
    assert rows["PyTorch eager fp32"].ratio == pytest.approx(1.0)
    assert {name for name, row in rows.items() if row.role is Role.ENGINE} == {
        f"{backend} {compute}"
        for backend in ("onnxruntime", "openvino")
        for compute in ("fp32", "int8")
    }
    peers = {name for name, row in rows.items() if row.role is Role.PEER}
    assert {"onnxruntime plain export fp32", "openvino plain export fp32"} <= peers
    # Float32 by another order of sums; a quantised graph is another graph, really.
    for name in ("onnxruntime fp32", "openvino fp32", "onnxruntime plain export fp32"):
        assert rows[name].logit_error < 1e-4
    assert rows["onnxruntime int8"].logit_error > 1e-4


def test_several_expressions_count_their_masks(record: Record) -> None:
    several = _rows(record, Scope.NETWORK, expressions=3)
    assert several["PyTorch eager fp32"].masks == 1  # it takes them one by one
    assert several["openvino fp32"].masks == 3
    assert several["openvino fp32"].logit_error < 1e-4
    # What can share an image does; a plain export takes the expressions one by one, too.
    assert several["PyTorch eager fp32, image shared"].masks == 3
    assert several["PyTorch eager fp32, image shared"].logit_error < 1e-4
    assert several["openvino plain export fp32"].masks == 1
    baseline = several["PyTorch eager fp32"]
    ratios = [
        3 * slow / fast
        for slow, fast in zip(baseline.seconds, several["openvino fp32"].seconds, strict=True)
    ]
    assert several["openvino fp32"].ratio == pytest.approx(float(np.median(ratios)))
    assert _rows(record, Scope.END_TO_END, expressions=3)["openvino int8"].masks == 3


def test_every_scope_of_an_engine(record: Record) -> None:
    for scope in (
        Scope.END_TO_END,
        Scope.FROM_BYTES,
        Scope.EXPRESSION,
        Scope.REPEATED_EXPRESSION,
        Scope.REPEATED_IMAGE,
    ):
        row = _rows(record, scope)["onnxruntime fp32"]
        assert row.ratio is not None, scope
        assert row.bundle == "fp32"
    overhead = _rows(record, Scope.OVERHEAD)
    assert set(overhead) == {n for n, r in _rows(record, Scope.NETWORK).items() if r.bundle}
    assert all(row.ratio is None for row in overhead.values())


def test_work_of_each_stage(record: Record) -> None:
    work = {(entry.name, entry.stage, entry.expressions) for entry in record.work}
    assert {("openvino int8", "mask_decoder", count) for count in (1, 3)} <= work
    assert all(entry.operations > 0 and entry.weight_bytes > 0 for entry in record.work)
    single = {(e.stage, e.operations) for e in record.work if e.expressions == 1}
    assert len(single) == 3  # whatever the precision
    # Of several expressions the image is encoded once.
    assert {(e.stage, e.operations) for e in record.work if e.expressions == 3} == {
        (stage, count if stage == "image_encoder" else 3 * count) for stage, count in single
    }


def test_clients_are_counted(record: Record) -> None:
    found = {entry.name: entry for entry in record.clients}
    assert {"PyTorch eager fp32", "onnxruntime fp32", "openvino fp32"} <= found.keys()
    assert all(entry.images == len(entry.latencies) == 8 for entry in found.values())
    assert {entry.streams for entry in record.clients} <= {1, 2}
    assert all(sum(entry.latencies) <= 2.001 * entry.seconds for entry in found.values())


def test_record_says_what_it_is_of(record: Record, tiny_checkpoint: Path) -> None:
    assert record.model.weights == checkpoint.load(tiny_checkpoint).sha256
    assert record.paper_fps is None  # the paper did not measure this model
    assert set(record.bundles) == {"fp32", "int8"}
    assert record.bundles["fp32"].parity is Parity.PROVED
    assert record.machine.cores >= 1
    assert record.command[0] == "--ckpt"
    assert not list(tiny_checkpoint.parent.glob("*.bundle"))


@pytest.mark.filterwarnings("ignore::cris_deploy.words.tokenizer.TruncationWarning")
@pytest.mark.parametrize(
    ("scope", "image", "text"),
    [
        (Scope.END_TO_END, 1, 1),
        (Scope.FROM_BYTES, 1, 1),
        (Scope.EXPRESSION, 0, 1),
        (Scope.REPEATED_EXPRESSION, 1, 0),
        (Scope.REPEATED_IMAGE, 0, 1),
        (Scope.OVERHEAD, 1, 1),
    ],
)
def test_a_pass_runs_the_stages_that_its_scope_is_about(
    tiny_bundle: Path, scope: Scope, image: int, text: int
) -> None:
    place = Place(Device.CPU)
    ours = Ours(Way("fp32", tiny_bundle, BackendName.ONNXRUNTIME, place, Compute.FP32), 1)
    runs = Counter[GraphName]()

    def counted(name: GraphName, graph: Graph) -> Graph:
        run = graph.run
        wrapped = mock.Mock(wraps=graph)
        wrapped.run = lambda inputs: (runs.update([name]), run(inputs))[1]
        return wrapped

    ours.engine.pipeline.wrap_stages(counted)
    options = BenchOptions(scopes=(scope,), image_height=40, image_width=60, iterations=2)
    results = Results()
    race(Field(None, [], [ours], 64, 7, 514), Shape(1, 1), options, results, lambda: None)
    ours.close()
    assert [row.scope for row in results.rows] == [scope]
    # One run of each makes what is then known; two untimed passes and two timed ones follow.
    assert runs == {
        GraphName.IMAGE_ENCODER: 1 + 4 * image,
        GraphName.TEXT_ENCODER: 1 + 4 * text,
        GraphName.MASK_DECODER: 1 + 4,
    }


def test_a_bundle_alone_in_batches(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--bundle", str(tiny_bundle), "--batch", "4", "--quick", "--json", "--threads", "1"]
    assert cli.main([*flags, "--scopes", "network", "--iterations", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["batch"], row["masks"]) for row in rows} == {(1, 1), (4, 4)}
    # Without a checkpoint there is no PyTorch to compare with.
    assert {(row["role"], row["ratio"], row["logit_error"]) for row in rows} == {
        ("engine", None, None)
    }


def test_memory_and_loading_alone(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bundle", str(tiny_bundle), "--scopes", "load,first_call", "--quick"]
    flags += ["--backend", "onnxruntime", "--image-size", "70x45", "--json"]
    assert cli.main(flags) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["scope"] for row in printed["rows"]] == ["load", "first_call"]
    assert all(len(row["seconds"]) == 3 for row in printed["rows"])
    memory = printed["memory"][0]
    assert memory["host_weights_bytes"] == 14000
    # NumPy, OpenCV and a runtime; a peak that were the parent's would have PyTorch in it, too.
    assert 20e6 < memory["host_peak_bytes"] < child.peak_bytes()
    assert printed["bundles"]["fp32"]["parity"] == "proved"


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    from cris_bench.contestants.contestant import Identity
    from cris_bench.scopes.memory import Alone, measure_alone
    from cris_deploy.errors import BackendError

    task = child.Task(
        kind=child.Kind.ENGINE,
        path=str(tmp_path / "gone"),
        place=Place(Device.CPU),
        threads=1,
        backend="onnxruntime",
        compute="fp32",
        height=9,
        width=9,
        input_size=64,
        word_len=7,
        vocabulary=9,
    )
    who = Identity("onnxruntime fp32", Role.ENGINE, Place(Device.CPU), "fp32")
    with pytest.raises(BackendError, match="gone"):
        measure_alone([Alone(who, task, 1)], [Scope.LOAD], lambda: None)


def test_ceilings_of_every_arithmetic() -> None:
    ways = [
        Way("any", Path(), backend, Place(Device.CPU), compute)
        for backend, compute in (
            (BackendName.ONNXRUNTIME, Compute.FP32),
            (BackendName.OPENVINO, Compute.BF16),
            (BackendName.ONNXRUNTIME, Compute.INT8),
            (BackendName.OPENVINO, Compute.INT8_BF16),
        )
    ]
    found = measure_ceilings(ways, None, side=64, copy_bytes=1 << 16)
    assert [ceiling.compute for ceiling in found] == ["fp32", "bf16", "int8"]
    alone = measure_ceilings(ways[2:3], 1, side=64, copy_bytes=1 << 16)
    assert [ceiling.compute for ceiling in alone] == ["int8"]


def test_an_int8_ceiling_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ways = [Way("any", Path(), BackendName.OPENVINO, Place(Device.CPU), Compute.INT8)]
    (found,) = measure_ceilings(ways, None, side=64, copy_bytes=1 << 16)
    assert found.matrix_ops_per_s > 0


def test_paper_figure_is_that_of_the_full_model() -> None:
    assert paper_fps(CrisConfig.rn50()) == 19.22
    assert paper_fps(CrisConfig.tiny()) is None


def test_parity_gate_is_reported_as_it_is(tiny_bundle: Path) -> None:
    import dataclasses

    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.parity is not None
    failed = dataclasses.replace(manifest.parity, passed=False)
    waived = dataclasses.replace(manifest.parity, min_iou=0.0, mean_iou=0.9)
    assert parity_of(manifest) is Parity.PROVED
    assert parity_of(manifest, waived=True) is Parity.NONE
    for parity, said in ((None, Parity.NONE), (failed, Parity.FAILED), (waived, Parity.FAILED)):
        assert parity_of(dataclasses.replace(manifest, parity=parity)) is said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--iterations", "0"], "--iterations"),
        (["--minutes", "-1"], "--minutes"),
        (["--clients", "2,0"], "--clients"),
        (["--warmup", "-1"], "--warmup"),
        (["--threads", "0"], "--threads"),
        (["--expressions", "0"], "--expressions"),
        (["--batch", "1,x"], "--batch"),
        (["--image-size", "640"], "--image-size"),
        (["--scopes", "network,speed"], "--scopes"),
        (["--scopes", "device", "--device", "cpu"], "cuda only"),
        (["--device", "tpu"], "--device is 'tpu': give one of auto, cpu, cuda, or cuda:N"),
        (["--device", "cuda:x"], "--device is"),
        (["--backend", "tvm"], "--backend"),
        (["--precision", "int4"], "--precision"),
        (["--eval", "data"], "--eval needs"),
        (["--ckpt", "missing.pth"], "no such checkpoint"),
        (["--bundle", "missing"], "does not exist"),
    ],
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert cli.main(flags) == 2
    assert said in capsys.readouterr().err


def test_what_was_asked_for_by_name_is_an_error(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bundle", str(tiny_bundle), "--quick"]
    assert cli.main([*flags, "--backend", "tensorrt"]) == 2
    assert "pip install 'cris-deploy[tensorrt]'" in capsys.readouterr().err
    assert cli.main([*flags, "--precision", "fp32,int8"]) == 2
    assert "precision int8" in capsys.readouterr().err
    capsys.readouterr()
    assert cli.main([*flags, "--device", "cuda:1"]) == 2
    assert "--device cuda:1: this PyTorch sees no GPU" in capsys.readouterr().err


def test_checkpoint_and_bundle_of_two_models(
    tiny_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--bundle", str(tiny_bundle), "--ckpt", str(tiny_checkpoint)]) == 2
    assert "was not exported from" in capsys.readouterr().err


def test_options_are_checked_without_a_console() -> None:
    with pytest.raises(InputError, match="--iterations"):
        BenchOptions(iterations=-3)
