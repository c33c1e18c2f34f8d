"""`cris-export triton`: what it writes, against Triton's schema and the graphs themselves."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

from cris_deploy import Engine
from cris_deploy.bundle.reading import MANIFEST, Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.pixels import image as images
from cris_deploy.serving.triton import BUNDLE, ModelSettings, read_settings
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.cli.main import main
from cris_export.triton import repository as writing
from cris_export.triton.configs import ENSEMBLE
from cris_export.triton.options import RepositoryOptions, StageKind
from cris_export.triton.repository import CONFIG, MARK, write_repository
from cris_export.triton.text import Word, to_text
from tests.helpers import tiny_bundle as tiny
from tests.helpers.plans import write_plans

STAGES = ("cris_image_encoder", "cris_text_encoder", "cris_mask_decoder")
# By model_config.proto; ONNX's numbers are those of TensorProto.
ONNX_TYPES = {1: "TYPE_FP32", 10: "TYPE_FP16", 7: "TYPE_INT64", 9: "TYPE_BOOL"}


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    write_repository(tiny_bundle, folder, RepositoryOptions())
    return folder


def config(model: Path) -> Any:
    """Read a config by NVIDIA's own schema, which refuses what it does not have."""
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="grpcio is not installed"
    )
    return text_format.Parse((model / CONFIG).read_text(), schema.ModelConfig())


def word(message: Any, field: str) -> str:
    """The name of an enumeration's value."""
    number = getattr(message, field)
    return str(message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[number].name)


def tensors(entries: Any) -> dict[str, tuple[str, list[int]]]:
    return {entry.name: (word(entry, "data_type"), list(entry.dims)) for entry in entries}


def in_graph(values: Any) -> dict[str, tuple[str, list[int]]]:
    """Names, types and shapes behind the batch, as an ONNX graph has them."""
    return {
        value.name: (
            ONNX_TYPES[value.type.tensor_type.elem_type],
            [size.dim_value for size in value.type.tensor_type.shape.dim][1:],
        )
        for value in values
    }


@pytest.mark.parametrize(
    "options",
    [
        RepositoryOptions(),
        RepositoryOptions(StageKind.NONE),
        RepositoryOptions(gpus=(0, 2), instances=3, max_batch=1, strings=True),
        RepositoryOptions(settings=ModelSettings(backend="openvino", threads=2, timeout=0.5)),
    ],
    ids=["default", "no stages", "gpus", "settings"],
)
def test_configs_are_of_triton_s_schema(
    tiny_bundle: Path, tmp_path: Path, options: RepositoryOptions
) -> None:
    write_repository(tiny_bundle, tmp_path / "models", options)
    folders = sorted(path for path in (tmp_path / "models").iterdir() if path.is_dir())
    stages = () if options.stages is StageKind.NONE else (*STAGES, ENSEMBLE)
    assert [folder.name for folder in folders] == sorted(("cris", *stages))
    for folder in folders:
        read = config(folder)
        assert read.name == folder.name
        assert (folder / "1").is_dir()
        if read.platform == "ensemble":
            continue
        (group,) = read.instance_group
        assert word(group, "kind") == ("KIND_GPU" if options.gpus else "KIND_CPU")
        assert (tuple(group.gpus), group.count) == (options.gpus, options.instances)
        assert read.dynamic_batching.default_queue_policy.max_queue_size == options.waiting
        assert read.max_batch_size == options.max_batch
    cris = config(tmp_path / "models/cris")
    assert not cris.model_transaction_policy.decoupled
    assert ("expressions" in tensors(cris.input)) is options.strings
    given = {name: {"string_value": p.string_value} for name, p in cris.parameters.items()}
    assert read_settings(given) == options.settings


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_described_as_their_graphs_are(models: Path, name: str) -> None:
    read, graph = config(models / name), onnx.load(models / name / "1/model.onnx").graph
    assert tensors(read.input) == in_graph(graph.input)
    assert tensors(read.output) == in_graph(graph.output)
    assert read.platform == "onnxruntime_onnx"
    for warm_up in read.model_warmup:
        given = {n: (word(t, "data_type"), list(t.dims)) for n, t in warm_up.inputs.items()}
        assert given == tensors(read.input)


def test_a_stage_has_its_own_weights_alone(models: Path, tiny_bundle: Path) -> None:
    sizes = [sum(p.stat().st_size for p in (models / name / "1").iterdir()) for name in STAGES]
    whole = Bundle.open(tiny_bundle).manifest.files["weights.bin"].bytes
    assert sum(sizes) < 1.5 * whole


def run_ensemble(models: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Follow the ensemble's steps as Triton does, each model in ONNX Runtime."""
    pool = dict(given)
    for step in config(models / ENSEMBLE).ensemble_scheduling.step:
        session = onnxruntime.InferenceSession(models / step.model_name / "1/model.onnx")
        inputs = {name: pool[source] for name, source in step.input_map.items()}
        names = [value.name for value in session.get_outputs()]
        found = dict(zip(names, session.run(names, inputs), strict=True))
        pool |= {target: found[name] for name, target in step.output_map.items()}
    return pool


def test_the_ensemble_gives_the_engine_s_logits(models: Path, tiny_bundle: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (45, 70, 3), np.uint8) for _ in range(2)]
    words = ["a cat", "the dog"]
    tokens = Tokenizer.from_file(models / "cris/1" / BUNDLE / "tokenizer.json", tiny.WORD_LEN)
    squares = [images.letterbox(picture, tiny.SIZE) for picture in pictures]
    given = {"image": images.normalise_all(squares), "tokens": tokens.encode(words).tokens}
    read = config(models / ENSEMBLE)
    assert list(tensors(read.input)) == list(given)
    logits = run_ensemble(models, given)[read.output[0].name]
    with Engine(tiny_bundle, backend="onnxruntime") as engine:
        for row, picture, expression in zip(logits, pictures, words, strict=True):
            expected = engine.segment(picture, expression).logits
            # The sums are the same; a batch may add them up in another order.
            np.testing.assert_allclose(row[0], expected, rtol=1e-5, atol=1e-5)
            assert expected.std() > 1e-2


def as_int8(bundle: Path, levels: int, half: bool) -> None:
    """Let the manifest say so; the graphs stay what they are."""
    tiny.edit(bundle, "precision", value="int8")
    facts = {"weight_levels": levels, "correlation": 1.0, "min_correlation": 0.9}
    tiny.edit(bundle, "quantisation", value=facts)
    if half:
        tiny.edit(bundle, "types", "mask_decoder", "nodes", value={"float16": 3})


@pytest.mark.parametrize(
    ("levels", "half", "said"),
    [(63, True, "float16 between"), (127, False, "127 levels"), (63, False, None)],
)
def test_int8_that_onnxruntime_gets_wrong_is_refused(
    own_bundle: Path, tmp_path: Path, levels: int, half: bool, said: str | None
) -> None:
    as_int8(own_bundle, levels, half)
    write_repository(own_bundle, tmp_path / "models", RepositoryOptions(StageKind.NONE))
    if said is not None:
        with pytest.raises(InputError, match=said):
            write_repository(own_bundle, tmp_path / "models", RepositoryOptions())
        return
    write_repository(own_bundle, tmp_path / "models", RepositoryOptions())
    levels_of = {
        name: config(tmp_path / "models" / name).optimization.graph.level for name in STAGES
    }
    assert levels_of == {name: -1 if "text" in name else 0 for name in STAGES}


def test_plans_are_listed_by_compute_capability(own_bundle: Path, tmp_path: Path) -> None:
    options = RepositoryOptions(StageKind.TENSORRT, gpus=(0,), max_batch=16)
    with pytest.raises(BackendError, match="--engine tensorrt"):
        write_repository(own_bundle, tmp_path / "models", options)
    assert not list(tmp_path.glob("**/models*"))
    for target in ("sm86", "sm120"):
        write_plans(own_bundle, targets=(target,), most=4)
    write_repository(own_bundle, tmp_path / "models", options)
    for name in STAGES:
        read = config(tmp_path / "models" / name)
        assert read.platform == "tensorrt_plan"
        assert dict(read.cc_model_filenames) == {"8.6": "sm86.plan", "12.0": "sm120.plan"}
        for file in (*read.cc_model_filenames.values(), read.default_model_filename):
            assert (tmp_path / "models" / name / "1" / file).is_file()
        assert read.max_batch_size == 4  # of the plans
        # The decoder's first profile has one image and many expressions.
        assert list(read.instance_group[0].profile) == ["1" if "decoder" in name else "0"]
    assert config(tmp_path / "models" / ENSEMBLE).max_batch_size == 4


def test_plans_that_are_not_listed_are_not_taken(own_bundle: Path, tmp_path: Path) -> None:
    write_plans(own_bundle)
    path = own_bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "plans": {}}))
    options = RepositoryOptions(StageKind.TENSORRT, gpus=(0,))
    with pytest.raises(BackendError, match="lists no TensorRT plan"):
        write_repository(own_bundle, tmp_path / "models", options)


def test_the_bundle_inside_is_whole_and_nothing_else_is_taken(
    own_bundle: Path, tmp_path: Path
) -> None:
    (own_bundle / "notes.txt").write_text("not the manifest's")
    write_repository(own_bundle, tmp_path / "models", RepositoryOptions(StageKind.NONE))
    inside = Bundle.open(tmp_path / "models/cris/1" / BUNDLE)
    assert inside.manifest_sha256 == Bundle.open(own_bundle).manifest_sha256
    assert not (inside.path / "notes.txt").exists()


def test_one_of_ours_is_replaced_and_nothing_else(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "models"
    target.mkdir()
    (target / "theirs").write_text("keep")
    with pytest.raises(InputError, match="exists and is not a model repository"):
        write_repository(tiny_bundle, target, RepositoryOptions(StageKind.NONE))
    assert [path.name for path in target.iterdir()] == ["theirs"]
    (target / "theirs").unlink()
    write_repository(tiny_bundle, target, RepositoryOptions())
    write_repository(tiny_bundle, target, RepositoryOptions(StageKind.NONE))
    assert not (target / ENSEMBLE).exists()

    def fails(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(writing, "_readme", fails)
    with pytest.raises(InputError, match="disk full"):
        write_repository(tiny_bundle, target, RepositoryOptions())
    assert (target / MARK).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_console(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "models"
    assert main(["triton", str(tiny_bundle), str(target), "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "cris_mask_decoder" in shown
    assert str(target / "README.md") in shown
    readme = (target / "README.md").read_text()
    assert "$" not in readme.replace('"$PWD"', "")
    assert tiny_bundle.name in readme


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--gpus", "a"], "--gpus a: give numbers"),
        (["--gpus", "0,0"], "names a GPU twice"),
        (["--stages", "tensorrt"], "name them, such as --gpus 0"),
        (["--instances", "0"], "--instances is 0"),
        (["--max-batch", "0"], "--max-batch is 0"),
        (["--waiting", "0"], "--waiting is 0"),
        (["--timeout", "0"], "timeout is 0"),
        (["--threads", "-1"], "threads is -1"),
    ],
)
def test_unusable_options(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
) -> None:
    assert main(["triton", str(tiny_bundle), str(tmp_path / "models"), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert not list(tmp_path.iterdir())


def test_no_bundle_and_a_repository_inside_of_one(
    own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", str(tmp_path / "none"), str(tmp_path / "models")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["triton", str(own_bundle), str(own_bundle / "models")]) == 2
    assert "inside the bundle" in capsys.readouterr().err


def test_without_onnx_it_says_what_to_do(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="--stages none"):
        write_repository(tiny_bundle, tmp_path / "models", RepositoryOptions())
    write_repository(tiny_bundle, tmp_path / "models", RepositoryOptions(StageKind.NONE))


def test_text_format() -> None:
    message = {"name": 'a"b', "kind": Word("KIND_CPU"), "on": True, "dims": [-1, 3], "none": []}
    nested = {"steps": [{"one": 1}, {"two": {"deep": False}}]}
    assert to_text({**message, **nested}) == (
        'name: "a\\"b"\nkind: KIND_CPU\non: true\ndims: [ -1, 3 ]\n'
        "steps {\n  one: 1\n}\nsteps {\n  two {\n    deep: false\n  }\n}\n"
    )
