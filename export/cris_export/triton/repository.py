"""A model repository is written: whole, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

import cv2
import numpy as np

import cris_deploy
from cris_deploy.bundle.contents import SIGNATURE
from cris_deploy.bundle.manifest import STAGES, GraphName
from cris_deploy.bundle.plans import SIDECAR
from cris_deploy.bundle.reading import ENGINES, MANIFEST, Bundle
from cris_deploy.documents import to_json
from cris_deploy.errors import InputError
from cris_deploy.serving.triton import BUNDLE, MODEL
from cris_export.triton import configs
from cris_export.triton.configs import ENSEMBLE, StageFiles
from cris_export.triton.options import RepositoryOptions, StageKind
from cris_export.triton.stages import require_exact, write_graph, write_plans
from cris_export.triton.text import Message, to_text
from cris_export.write import FolderWriter

MARK: Final = "cris-triton.json"
"""A file that says what a repository was made of, and that it is one of ours."""
PROBE: Final = "probe.json"
"""A request that infers, for a probe of liveness."""
CLIENT: Final = "client.py"
README: Final = "README.md"
CONFIG: Final = "config.pbtxt"
_VERSION: Final = "1"


@dataclass(frozen=True)
class Written:
    """A model of the repository: its name, what runs it, and bytes of its files."""

    name: str
    platform: str
    size: int


def write_repository(
    bundle: Path | Bundle,
    repository: Path,
    options: RepositoryOptions,
    step: Callable[[str], None] = lambda _: None,
) -> tuple[Written, ...]:
    """Write a model repository of a bundle; one of ours is replaced.

    Args:
        bundle: A complete bundle, opened or not; a copy of it goes into the repository.
        repository: Where; folders above it are made.
        options: What it is to hold.
        step: Called with a short line before each model.

    Raises:
        BundleError: the bundle is not whole, or was replaced meanwhile.
        InputError: something else is there, or cannot be written there, or ONNX Runtime would
            give wrong masks (`stages.require_exact`).
        BackendError: there are no plans of the kind that was asked for.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if options.stages is StageKind.ONNXRUNTIME:
        require_exact(opened)
    if repository.resolve().is_relative_to(opened.path.resolve()):
        raise InputError(f"{repository} lies inside the bundle: give another path")
    with FolderWriter(repository, "a model repository of cris-export triton", MARK) as writer:
        try:
            written = _fill(opened, writer.directory, options, step)
        except OSError as error:
            raise InputError(f"{repository} cannot be written: {error}") from error
        writer.commit()
    return written


def _fill(
    bundle: Bundle, root: Path, options: RepositoryOptions, step: Callable[[str], None]
) -> tuple[Written, ...]:
    step(f"model {MODEL}: a copy of the bundle")
    version = _model(root, MODEL, configs.python_model(options))
    shutil.copyfile(_source("model.py"), version / "model.py")
    _copy_bundle(bundle, version / BUNDLE)
    models = {MODEL: "python"}
    if options.stages is not StageKind.NONE:
        models |= _write_stages(bundle, root, options, step)
    (root / PROBE).write_text(json.dumps(_probe()), encoding="utf-8")
    shutil.copyfile(_source(CLIENT), root / CLIENT)
    (root / README).write_text(_readme(bundle, options, models), encoding="utf-8")
    about = {
        "format": 1,
        "cris_deploy": cris_deploy.__version__,
        "bundle": bundle.path.name,
        "manifest_sha256": bundle.manifest_sha256,
        "options": options,
    }
    (root / MARK).write_text(to_json(about), encoding="utf-8")
    return tuple(Written(name, platform, _size(root / name)) for name, platform in models.items())


def _write_stages(
    bundle: Bundle, root: Path, options: RepositoryOptions, step: Callable[[str], None]
) -> dict[str, str]:
    specs = bundle.manifest.graphs
    write = write_graph if options.stages is StageKind.ONNXRUNTIME else write_plans
    models, most = {}, options.max_batch
    for graph in STAGES:
        name = configs.stage_model(graph)
        step(f"model {name}")
        version = _model(root, name, {})
        files: StageFiles = write(bundle, graph, version, options.max_batch)
        _write_config(root / name, configs.stage(graph, specs[graph], files, options))
        models[name] = files.platform
        most = min(most, files.max_batch)
    bundle.require_unchanged(STAGES)
    stages: dict[GraphName, Any] = {graph: specs[graph] for graph in STAGES}
    _model(root, ENSEMBLE, configs.ensemble(stages, most))
    return {**models, ENSEMBLE: "ensemble"}


def _model(root: Path, name: str, config: Message) -> Path:
    version = root / name / _VERSION
    version.mkdir(parents=True)
    _write_config(root / name, config)
    return version


def _write_config(folder: Path, config: Message) -> None:
    (folder / CONFIG).write_text(to_text(config), encoding="utf-8")


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """Copy what the manifest lists and its signature, and nothing else that lies there."""
    names = [MANIFEST, *bundle.manifest.files]
    if (bundle.path / SIGNATURE).is_file():
        names.append(SIGNATURE)
    for plan in bundle.manifest.plans:
        if (bundle.path / ENGINES / plan).is_file():
            names += [f"{ENGINES}/{plan}", f"{ENGINES}/{plan}{SIDECAR}"]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, target / name)
    # The very bundle that was opened, every hash of it.
    Bundle.open(target, manifest_sha256=bundle.manifest_sha256)


def _probe() -> dict[str, Any]:
    """A small gray picture and a word; the answer is one number."""
    done, picture = cv2.imencode(".png", np.full((8, 8), 127, np.uint8))
    assert done  # OpenCV has PNG built in

    def tensor(name: str, data: bytes) -> dict[str, Any]:
        shape = [1, len(data)]
        return {"name": name, "datatype": "UINT8", "shape": shape, "data": list(data)}

    inputs = [tensor("image", picture.tobytes()), tensor("text", b"probe")]
    return {"inputs": inputs, "outputs": [{"name": "scores"}]}


def _readme(bundle: Bundle, options: RepositoryOptions, models: dict[str, str]) -> str:
    model = bundle.manifest.model
    rows = "\n".join(f"| `{name}` | {platform} |" for name, platform in models.items())
    return Template(_source("README.template").read_text(encoding="utf-8")).substitute(
        bundle=bundle.path.name,
        architecture=model.architecture,
        precision=bundle.manifest.precision,
        models=rows,
        gpus="--gpus all " if options.gpus else "",
        side=model.input_size,
        words=model.word_len,
        instances=options.instances,
        where=f"of GPUs {', '.join(map(str, options.gpus))}" if options.gpus else "on the CPU",
        waiting=options.waiting,
        max_batch=options.max_batch,
        runtime="gpu" if options.gpus else "cpu",
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _source(name: str) -> Path:
    return Path(str(files("cris_export.triton") / "files" / name))
