"""The folder of a page that finds masks in the browser: the page, the bundle's stages, a scene."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from cris_deploy import documents
from cris_deploy.bundle.manifest import STAGES, NumberType
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import InputError
from cris_export.web.graphs import Weights, stage_file
from cris_export.web.proof import WebParity, prove
from cris_export.write import FolderWriter

_ORT: Final = "onnxruntime-web/dist"
_MODULES: Final = {
    "tokenizers.mjs": "@huggingface/tokenizers/dist",
    "ort.wasm.min.mjs": _ORT,
    "ort-wasm-simd-threaded.mjs": _ORT,
    "ort-wasm-simd-threaded.wasm": _ORT,
}
_GPU_MODULES: Final = {
    "ort.webgpu.min.mjs": _ORT,
    "ort-wasm-simd-threaded.asyncify.mjs": _ORT,
    "ort-wasm-simd-threaded.asyncify.wasm": _ORT,
}
_INSTALL: Final = "npm ci, with the package.json of cris_deploy/web"
_SCENE: Final = "scene.json"
_PAGE: Final = "page.json"


@dataclass(frozen=True, slots=True)
class Thing:
    """A cut-out picture with alpha that a visitor may put on the scene."""

    name: str
    file: str


@dataclass(frozen=True, slots=True)
class Arranged:
    """A thing on the scene: its middle as shares of the sides, size of the height, degrees."""

    name: str
    x: documents.Share
    y: documents.Share
    size: documents.Share
    angle: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a page shows at first: scene.json in a folder, files relative to it."""

    title: str
    about: str
    backgrounds: tuple[str, ...]
    examples: tuple[str, ...]
    things: tuple[Thing, ...] = ()
    arranged: tuple[Arranged, ...] = ()

    def __post_init__(self) -> None:
        if not self.backgrounds:
            raise InputError("backgrounds is empty: name a picture")
        unknown = {item.name for item in self.arranged} - {thing.name for thing in self.things}
        if unknown:
            raise InputError(f"arranged has {sorted(unknown)[0]!r}, which things lacks")


@dataclass(frozen=True, slots=True)
class _Graph:
    file: str
    bytes: int


@dataclass(frozen=True, slots=True)
class _Model:
    """model.json: what the page has to know of a bundle."""

    architecture: str
    input_size: int
    mask_size: int
    word_len: int
    checkpoint_sha256: str
    weights: Weights
    graphs: dict[str, _Graph] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Page:
    """page.json: the scene, and who computes."""

    title: str
    about: str
    threshold: float
    engines: tuple[str, ...]
    backgrounds: tuple[str, ...]
    things: tuple[Thing, ...]
    arranged: tuple[Arranged, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WebReport:
    """What was written: bytes of the model with its tokenizer, of everything, and its parity."""

    folder: Path
    weights: Weights
    model_bytes: int
    page_bytes: int
    parity: WebParity


def write_site(
    bundle: Path | Bundle,
    folder: Path,
    *,
    modules: Path,
    weights: Weights | None = None,
    scene: Path | None = None,
    gpu: bool = False,
) -> WebReport:
    """Write the folder, whole or not at all; an earlier one is replaced.

    Args:
        bundle: Folder that cris-export wrote, or an opened `Bundle`.
        folder: Where the page goes; it must not be there, or be such a page.
        modules: The node_modules with onnxruntime-web and @huggingface/tokenizers.
        weights: How weights are stored; None is as in the bundle, in float32 what is in int8.
        scene: Folder with scene.json; None shows the bundle's first sample.
        gpu: Whether the files for WebGPU go with it, 28 MB more.

    Raises:
        InputError: an argument cannot be used.
        ParityError: the written graphs give other masks than the samples of the bundle have.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if weights is None:
        types = opened.manifest.types.values()
        half = any(NumberType.FLOAT16 in share.weight_bytes for share in types)
        weights = Weights.FP16 if half else Weights.FP32
    with FolderWriter(folder, "a page of cris-export web", _PAGE) as writer:
        site = writer.directory
        with as_file(files("cris_deploy.web") / "page") as page:
            for path in sorted(page.iterdir()):
                shutil.copyfile(path, site / path.name)
        _copy_modules(modules, site / "vendor", gpu=gpu)
        parity, model_bytes = _write_model(opened, site / "model", weights)
        _write_page(opened, site, _scene_of(opened, scene), scene, gpu=gpu)
        page_bytes = _write_worker(site)
        writer.commit()
    return WebReport(folder, weights, model_bytes, page_bytes, parity)


def _copy_modules(modules: Path, vendor: Path, *, gpu: bool) -> None:
    vendor.mkdir()
    for name, package in (_MODULES | (_GPU_MODULES if gpu else {})).items():
        source = modules / package / name
        if not source.is_file():
            raise InputError(f"modules {modules} lacks {package}/{name}: {_INSTALL}")
        shutil.copyfile(source, vendor / name)


def _write_model(bundle: Bundle, folder: Path, weights: Weights) -> tuple[WebParity, int]:
    folder.mkdir()
    facts = bundle.manifest.model
    model = _Model(
        facts.architecture,
        facts.input_size,
        facts.mask_size,
        facts.word_len,
        facts.checkpoint_sha256,
        weights,
    )
    for stage in STAGES:
        data = stage_file(bundle, stage, weights)
        (folder / f"{stage}.onnx").write_bytes(data)
        model.graphs[stage] = _Graph(f"{stage}.onnx", len(data))
    parity = prove(bundle, folder)
    shutil.copyfile(bundle.tokenizer, folder / "tokenizer.json")
    (folder / "model.json").write_text(documents.to_json(model), encoding="utf-8")
    return parity, sum(path.stat().st_size for path in folder.iterdir())


def _scene_of(bundle: Bundle, folder: Path | None) -> Scene:
    if folder is not None:
        path = folder / _SCENE
        try:
            text = path.read_bytes()
        except OSError as error:
            raise InputError(f"scene {path} cannot be read: {error}") from error
        return documents.read(Scene, text, str(path), error=InputError, known_only=True)
    samples = bundle.manifest.samples
    if not samples:
        raise InputError(f"bundle {bundle.path} has no samples to show: give a scene")
    shown = [sample.expression for sample in samples if sample.image == samples[0].image]
    return Scene("CRIS", "", (samples[0].image,), tuple(dict.fromkeys(shown))[:6])


def _write_page(
    bundle: Bundle, site: Path, scene: Scene, folder: Path | None, *, gpu: bool
) -> None:
    source = bundle.path if folder is None else folder
    (site / "scene").mkdir()
    names: dict[str, str] = {}
    for name in (*scene.backgrounds, *(thing.file for thing in scene.things)):
        path = source / name
        if not path.is_file():
            raise InputError(f"scene {source} lacks {name}")
        names[name] = f"scene/{len(names)}{path.suffix}"
        shutil.copyfile(path, site / names[name])
    page = _Page(
        scene.title,
        scene.about,
        bundle.manifest.model.threshold,
        ("cpu", "gpu") if gpu else ("cpu",),
        tuple(names[name] for name in scene.backgrounds),
        tuple(Thing(thing.name, names[thing.file]) for thing in scene.things),
        scene.arranged,
        scene.examples,
    )
    (site / _PAGE).write_text(documents.to_json(page), encoding="utf-8")


def _write_worker(site: Path) -> int:
    """Tell the service worker which files there are; gives the bytes of all of them."""
    worker = site / "sw.js"
    hashes, total = {}, 0
    for path in sorted(site.rglob("*")):
        if path.is_file() and path != worker:
            data = path.read_bytes()
            hashes[path.relative_to(site).as_posix()] = hashlib.sha256(data).hexdigest()[:16]
            total += len(data)
    text = f"const FILES = {documents.to_json(hashes)};\n{worker.read_text(encoding='utf-8')}"
    worker.write_text(text, encoding="utf-8")
    return total + len(text)
