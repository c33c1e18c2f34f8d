"""The threat model of docs/security.md: every line has a test that exists, and limits are shown."""

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from cris_deploy import Engine
from cris_deploy.bundle.contents import MANIFEST
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.errors import BundleError
from cris_deploy.execution.backends import openvino
from cris_deploy.execution.backends.interface import CACHE_VARIABLE
from cris_export.sign import Signer, sign_bundle
from tests.helpers import tiny_bundle as tiny
from tests.helpers.signing import PICTURE, Keys, segmented

ROOT = Path(__file__).parents[3]
TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")


def threats() -> list[tuple[str, list[str]]]:
    """The lines of the tables, and the tests that each of them names."""
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    section = text.partition("## Who gives what")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    lines = [row for row in rows if not re.match(r"\| (---|could) \|", row)]
    return [(line, TEST.findall(line.split(" | ")[-1])) for line in lines]


def test_every_line_names_a_test_that_exists() -> None:
    lines = threats()
    assert len(lines) > 30
    assert not [line for line, tests in lines if not tests]
    for test in sorted({test for _, tests in lines for test in tests}):
        path, _, name = test.partition("::")
        assert Path(path).name.startswith("test_"), test
        assert name in collected(ROOT / path), test


def collected(path: Path) -> set[str]:
    """What pytest collects of a file: its functions that are called so, without importing it."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name for name in functions if name.startswith("test_")}


def plain(bundle: Path, **options: Any) -> Engine:
    return Engine(bundle, backend="onnxruntime", threads=1, **options)


def test_without_a_pin_or_a_key_another_bundle_is_taken(
    signed: Path, keys: Keys, golden: NDArray[np.bool_]
) -> None:
    pinned = Bundle.open(signed).manifest_sha256
    tiny.change_weights(signed, "mix4", np.negative)
    with plain(signed) as engine:
        assert not np.array_equal(segmented(engine), golden)
    for options in ({"manifest_sha256": pinned}, {"require_signature": keys.public}):
        with pytest.raises(BundleError):
            plain(signed, **options)


def test_a_graph_of_any_nodes_reaches_the_runtime(own_bundle: Path) -> None:
    """Hashes, names and shapes are looked at; what a graph computes is the runtime's to judge."""
    path = own_bundle / "text_encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("Identity", ["tokens"], ["nobody_asked"]))
    onnx.save(model, path)
    tiny.rehash(own_bundle)
    plain(own_bundle).close()


def test_an_older_bundle_of_the_same_key(signed: Path, keys: Keys, tmp_path: Path) -> None:
    older = Path(shutil.copytree(signed, tmp_path / "older.bundle"))
    tiny.edit(signed, "created", value="2026-11-24T00:00:00Z")
    sign_bundle(signed, Signer(keys.secret, pytest.fail))
    newest = Bundle.open(signed).manifest_sha256
    for bundle in (signed, older):
        plain(bundle, require_signature=keys.public).close()
    plain(signed, require_signature=keys.public, manifest_sha256=newest).close()
    with pytest.raises(BundleError, match="it is another bundle"):
        plain(older, require_signature=keys.public, manifest_sha256=newest)


def test_a_folder_exchanged_for_a_moment_is_not_noticed(
    signed: Path,
    keys: Keys,
    golden: NDArray[np.bool_],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why nobody else may write in the folders above. If this fails, the page can say better."""
    evil = Path(shutil.copytree(signed, tmp_path / "evil.bundle"))
    tiny.change_weights(evil, "mix4", np.negative)
    session = onnxruntime.InferenceSession

    def exchanged(*given: Any, **options: Any) -> Any:
        signed.rename(tmp_path / "aside")
        evil.rename(signed)
        try:
            return session(*given, **options)
        finally:
            signed.rename(evil)
            (tmp_path / "aside").rename(signed)

    monkeypatch.setattr(onnxruntime, "InferenceSession", exchanged)
    with plain(signed, require_signature=keys.public) as engine:
        assert not np.array_equal(segmented(engine), golden)


def test_no_cache_unless_it_is_asked_for(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for asked in (False, True):
        if asked:
            monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "asked"))
        else:
            monkeypatch.delenv(CACHE_VARIABLE, raising=False)
        folder = openvino._cache_folder(Bundle.open(tiny_bundle), GraphName.FULL, {})
        assert (folder is not None) is asked
        Engine(tiny_bundle, backend="openvino", threads=1).close()
        assert any(tmp_path.iterdir()) is asked


def test_every_expression_has_a_mask(tiny_bundle: Path) -> None:
    with plain(tiny_bundle) as engine:
        for words in ("dog", "no dog", "??", "ß"):
            assert engine.segment(PICTURE, words).mask.shape == PICTURE.shape[:2]


def test_the_page_reads_as_it_is_meant() -> None:
    """Lines that are limits say so, and there are some: a model without any is not honest."""
    limits = [line for line, _ in threats() if line.startswith("| *not*: ")]
    assert len(limits) >= 6
    assert MANIFEST in (ROOT / "docs/security.md").read_text(encoding="utf-8")
