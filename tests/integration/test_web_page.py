"""`cris-export web` and its page, in a real Chromium, against the engine on the same bundle."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from cris_deploy import Engine
from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.bundle.reading import Bundle
from cris_deploy.pixels.decoding import decode
from cris_deploy.pixels.image import letterbox, normalise
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.cli.main import main as cli
from cris_export.export import export
from cris_export.options import ExportOptions
from cris_train.synthetic.expressions import describe
from cris_train.synthetic.refer_files import split_scene
from cris_train.synthetic.render import render
from tests.helpers.page import MODULES, drive, hosted, require_browser
from tests.helpers.server import serving

DEMO = Path(__file__).parents[2] / "train" / "demo"
SCENES = 10
_SOFTWARE_GPU = "--enable-unsafe-webgpu"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_browser()
    folder = tmp_path_factory.mktemp("bundle")
    samples = folder / "samples.jsonl"
    first = (DEMO / "samples.jsonl").read_text("utf-8").splitlines()[:2]
    samples.write_text("\n".join(first), "utf-8")
    shutil.copy(DEMO / "scene.png", folder)
    ckpt = DEMO / "scenes.pth"
    return export(ExportOptions(ckpt, output=folder / "demo.bundle", samples=samples)).bundle


@pytest.fixture(scope="module")
def page(bundle: Path) -> Path:
    folder = bundle.parent / "page"
    assert cli(["web", str(bundle), str(folder), "--modules", str(MODULES)]) == 0
    return folder


@pytest.fixture(scope="module")
def host(page: Path) -> Iterator[str]:
    with hosted(page) as url:
        yield url


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine(bundle, backend="onnxruntime") as engine:
        yield engine


def mask_of(query: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """What the driver wrote as a text of 0 and 1, row by row."""
    return np.frombuffer(query["mask"].encode(), np.uint8).reshape(shape) == ord("1")


def square_of(bundle: Path, picture: Path) -> NDArray[np.float32]:
    """The engine's own input (3, S, S) for a picture."""
    return normalise(letterbox(decode(picture), Bundle.open(bundle).manifest.model.input_size))


def logits_of(engine: Engine, bundle: Path, picture: Path, words: list[str]) -> Any:
    """What the bundle's full graph gives in ONNX Runtime."""
    import onnxruntime

    opened = Bundle.open(bundle)
    facts = opened.manifest.model
    session = onnxruntime.InferenceSession(
        opened.graph(GraphName.FULL), providers=["CPUExecutionProvider"]
    )
    image = square_of(bundle, picture)[None]
    tokens = Tokenizer.from_file(opened.tokenizer, facts.word_len).encode(words).tokens
    images = np.repeat(image, len(words), axis=0)
    return session.run(None, {"image": images, "tokens": tokens})[0][:, 0]


def test_masks_are_those_of_the_engine(
    host: str, bundle: Path, engine: Engine, tmp_path: Path
) -> None:
    steps: list[dict[str, Any]] = [{"do": "ready"}]
    asked = []
    for index in range(SCENES):
        scene, rng = split_scene(7, "page", index)
        picture = tmp_path / f"{index}.png"
        cv2.imwrite(str(picture), render(scene).image[:, :, ::-1])
        words = [describe(scene, target, rng)[0].text for target in range(2)]
        asked.append((picture, words))
        steps += [
            {"do": "picture", "file": str(picture)},
            {"do": "square"},
            {"do": "find", "words": words},
        ]
    report = drive(host, steps)
    assert report[0]["isolated"]  # the service worker sees to it, on a host without headers
    ious = []
    for (picture, words), square, found in zip(asked, report[2::3], report[3::3], strict=True):
        # A byte is 0.0146 after normalising, which the page does in float64. Sums of 16 products
        # that end halfway between two bytes may be rounded either way.
        error = np.abs(np.asarray(square) - square_of(bundle, picture).ravel())
        assert error.max() < 0.015
        assert np.mean(error > 1e-6) < 1e-4
        logits = logits_of(engine, bundle, picture, words)
        results = engine.segment(picture, words)
        for query, expected, result in zip(found, logits, results, strict=True):
            assert query["error"] is None
            got = np.reshape(np.asarray(query["logits"], np.float32), expected.shape)
            np.testing.assert_allclose(got, expected, atol=1e-3)
            mask = mask_of(query, result.mask.shape)
            union = (mask | result.mask).sum()
            ious.append(1.0 if union == 0 else (mask & result.mask).sum() / union)
    assert min(ious) >= 0.999


def test_a_gpu_gives_the_same_masks(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    assert cli(["web", str(bundle), str(folder), "--modules", str(MODULES), "--gpu"]) == 0
    words = {"do": "find", "words": ["the red square", "the star"]}
    steps = [{"do": "ready"}, words, {"do": "choose", "engine": "gpu"}, words]
    with hosted(folder) as url:
        # Chromium's own GPU in software: WebGPU as it is everywhere, but slow.
        said = [{"do": "text", "id": "where"}, {"do": "text", "id": "problem"}]
        report = drive(url, [*steps, *said], flags=[_SOFTWARE_GPU])
    if "cannot run this model" in report[-1]:
        pytest.skip(f"no WebGPU here: {report[-1]}")
    for on_cpu, on_gpu in zip(report[1], report[3], strict=True):
        np.testing.assert_allclose(on_gpu["logits"], on_cpu["logits"], atol=1e-3)
        assert on_gpu["mask"] == on_cpu["mask"]
    assert "GPU" in report[-2]


TEXTS = [
    *("the red square right of the red star", "It's 42!!! a  b", "<end_of_text> a", "!!! ???"),
    *("İstanbul straße Σας 日本語 😀 naïve", "e\u0301t\u00e9", "l\ufb02at \u1e9e"),
    *("don\u2019t &amp;amp; co", "\u201cquoted\u201d \uff41\uff42", "\u200bzero width"),
    *("a\tb\nc\u00a0d", "x" * 300, "one two " * 20),
]


def test_a_half_bundle_is_computed_in_single(tmp_path: Path) -> None:
    require_browser()
    ckpt, samples = DEMO / "named.pth", DEMO / "samples.jsonl"
    options = ExportOptions(
        ckpt, output=tmp_path / "half.bundle", samples=samples, precision=Precision.FP16
    )
    half, folder = export(options).bundle, tmp_path / "page"

    assert cli(["web", str(half), str(folder), "--modules", str(MODULES)]) == 0
    graphs = [onnx.load(path) for path in (folder / "model").glob("*.onnx")]
    types = {tensor.data_type for model in graphs for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types  # stored so
    casts = [node for model in graphs for node in model.graph.node if node.op_type == "Cast"]
    made = [attribute.i for node in casts for attribute in node.attribute]
    assert onnx.TensorProto.FLOAT16 not in made  # and not computed so
    with hosted(folder) as url:
        found = drive(url, [{"do": "ready"}, {"do": "find", "words": ["dog"]}])
    assert [query["error"] for query in found[1]] == [None]
    assert np.isfinite(found[1][0]["logits"]).all()


def test_tokens_are_those_of_the_engine(host: str, bundle: Path) -> None:
    found = drive(host, [{"do": "ready"}, {"do": "tokens", "words": [*TEXTS, " \t "]}])[1]
    opened = Bundle.open(bundle)
    tokenizer = Tokenizer.from_file(opened.tokenizer, opened.manifest.model.word_len)
    for text, tokens in zip(TEXTS, found, strict=False):
        assert tokens == tokenizer.encode([text]).tokens[0].tolist(), text
    assert found[-1].startswith("There are no words")


def test_things_are_put_and_moved_by_keyboard(page: Path, tmp_path: Path, bundle: Path) -> None:
    scene = tmp_path / "scene"
    scene.mkdir()
    star = np.zeros((40, 40, 4), np.uint8)
    star[10:30, 10:30] = (0, 0, 255, 255)
    cv2.imwrite(str(scene / "square.png"), star)
    cv2.imwrite(str(scene / "grey.png"), np.full((240, 320, 3), 120, np.uint8))
    (scene / "scene.json").write_text(
        json.dumps(
            {
                "title": "Shapes",
                "about": "About it.",
                "backgrounds": ["grey.png"],
                "examples": ["the square"],
                "things": [{"name": "red square", "file": "square.png"}],
                "arranged": [{"name": "red square", "x": 0.5, "y": 0.5, "size": 0.3}],
            }
        ),
        "utf-8",
    )
    folder = tmp_path / "page"
    words = ["web", str(bundle), str(folder), "--modules", str(MODULES), "--scene", str(scene)]
    assert cli([*words, "--weights", "fp16"]) == 0
    assert sum(path.stat().st_size for path in (folder / "model").iterdir()) < 15e6
    keys = ["ArrowLeft", "ArrowUp", "+", "]"]
    with hosted(folder) as url:
        _, before, moved, legend, put, removed = drive(
            url,
            [
                {"do": "ready"},
                {"do": "key", "keys": []},
                {"do": "key", "keys": keys},
                {"do": "type", "words": "the square"},
                {"do": "put", "name": "red square"},
                {"do": "key", "keys": ["Delete"]},
            ],
            viewport={"width": 390, "height": 800},  # a phone's
        )
    assert moved[0]["x"] == pytest.approx(before[0]["x"] - 0.02)
    assert moved[0]["y"] == pytest.approx(before[0]["y"] - 0.02)
    assert moved[0]["size"] > before[0]["size"]
    assert moved[0]["angle"] == before[0]["angle"] + 10
    assert "the square" in legend
    assert "%" in legend
    assert put == 2
    assert len(removed) == 1


def test_it_works_offline_once_loaded(host: str) -> None:
    ready, offline = {"do": "ready"}, {"do": "offline"}
    find = {"do": "find", "words": ["the purple cross"]}
    first, again = drive(host, [ready, find, offline, {"do": "reload"}, ready, find])[1::4]
    assert first[0]["mask"] == again[0]["mask"]
    assert "1" in first[0]["mask"]


def test_the_server_shows_the_same_page(bundle: Path, engine: Engine, tmp_path: Path) -> None:
    expected = engine.segment(DEMO / "scene.png", "the purple cross").mask
    picture = {"do": "picture", "file": str(DEMO / "scene.png")}
    find = {"do": "find", "words": ["the purple cross"]}
    with serving(bundle, tmp_path / "log") as server:
        found = drive(
            server.url, [{"do": "ready"}, picture, find, {"do": "find", "words": [" a "]}]
        )
    np.testing.assert_array_equal(mask_of(found[2][0], expected.shape), expected)


def test_the_server_adds_itself_to_a_page(bundle: Path, page: Path, tmp_path: Path) -> None:
    find = {"do": "find", "words": ["the purple cross"]}
    with serving(bundle, tmp_path / "log", "--page", str(page)) as server:
        steps = [{"do": "ready"}, find, {"do": "choose", "engine": "server"}, find]
        report = drive(server.url, steps)
    assert report[0]["isolated"]
    assert report[1][0]["mask"] == report[3][0]["mask"]


def test_troubles_are_sentences_and_the_page_goes_on(host: str, page: Path, tmp_path: Path) -> None:
    large, text = tmp_path / "large.png", tmp_path / "text.png"
    cv2.imwrite(str(large), np.zeros((7200, 7200), np.uint8))
    text.write_text("no picture")
    good = {"do": "picture", "file": str(DEMO / "hearts.png")}
    find = {"do": "find", "words": ["the bottommost heart"]}
    report = drive(
        host,
        [
            {"do": "ready"},
            {"do": "picture", "file": str(large)},
            {"do": "picture", "file": str(text)},
            good,
            find,
            {"do": "find", "words": ["   "]},
            {"do": "text", "id": "problem"},
            find,
        ],
    )
    assert "52 megapixels" in report[1]
    assert "at most 50" in report[1]
    assert "text.png cannot be read as a picture" in report[2]
    assert report[3] == ""
    assert "1" in report[4][0]["mask"]
    assert report[6].startswith("There are no words")
    assert report[7][0]["mask"] == report[4][0]["mask"]


def test_a_broken_bundle_and_an_old_browser_are_sentences(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "page"
    shutil.copytree(page, broken)
    graph = broken / "model" / "text_encoder.onnx"
    size = graph.stat().st_size
    graph.write_bytes(b"\xff" * size)
    with hosted(broken) as url:
        said = drive(url, [{"do": "wait", "text": "broken"}, {"do": "text", "id": "problem"}])[1]
        assert said == ("The model's files are broken: export them again, and load the page anew.")
    graph.write_bytes(b"\xff" * (size - 1))
    with hosted(broken) as url:
        drive(url, [{"do": "wait", "text": f"has {size - 1} bytes where {size} are due"}])
    with hosted(page) as url:
        old = "WebAssembly.validate = () => false"
        drive(url, [{"do": "wait", "text": "has no WebAssembly SIMD"}], script=old)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--modules", "nowhere"], "modules nowhere lacks @huggingface/tokenizers"),
        (["--scene", "nowhere"], "scene nowhere/scene.json cannot be read"),
    ],
)
def test_what_cannot_be_written_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], said: str
) -> None:
    folder = tmp_path / "page"
    words = ["web", str(bundle), str(folder), "--modules", str(MODULES), *changes]
    assert cli(words) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert cli(["web", str(bundle), str(folder), "--modules", str(MODULES)]) == 2
    assert "exists and is not a page of cris-export web" in capsys.readouterr().err
    assert (folder / "mine.txt").read_text() == "mine"
