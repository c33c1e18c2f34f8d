"""Documents: what is read, and the sentence that names what is wrong in one that is not."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import pytest
from msgspec import Meta

from cris_deploy import documents
from cris_deploy.errors import BundleError, DataError, InputError


class Kind(StrEnum):
    A = "a"
    B = "b"


@dataclass(frozen=True, slots=True)
class File:
    sha256: documents.Sha256
    bytes: documents.Positive
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Document:
    format: int
    files: Mapping[str, File] = field(default_factory=dict)
    shape: tuple[int | str, ...] = ()
    share: documents.Share = 0.5
    by_kind: Mapping[Kind, Mapping[str, documents.Count]] = field(default_factory=dict)
    main: File | None = None
    few: Annotated[tuple[File, ...], Meta(max_length=2)] = ()

    def __post_init__(self) -> None:
        if len(self.shape) == 3:
            raise InputError("three dimensions")


FILE = {"sha256": "a" * 64, "bytes": 1}


def read(document: Any, **options: Any) -> Document:
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    return documents.read(Document, text, "x.json", **options)


def test_back_and_forth() -> None:
    document = Document(
        format=1,
        files={"é.onnx": File("0" * 64, 3, Kind.B)},
        shape=("batch", 2),
        by_kind={Kind.A: {"n": 4}},
        few=(File("f" * 64, 1),),
    )
    assert read(documents.to_json(document)) == document
    assert documents.convert(Document, documents.plain(document), "x") == document
    assert documents.plain(document)["shape"] == ["batch", 2]
    assert math.isnan(documents.plain({"error": math.nan})["error"])
    assert documents.to_json(document).startswith('{\n  "format": 1,\n  "files": {\n    "é.onnx"')


def test_what_is_not_given_is_written_with_its_default() -> None:
    @dataclass(frozen=True)
    class WithoutSlots:
        given: int
        left: tuple[int, ...] = (2,)

    found = documents.convert(WithoutSlots, {"given": 1}, "x.json")
    assert documents.plain(found) == {"given": 1, "left": [2]}
    assert json.loads(documents.to_json(found)) == {"given": 1, "left": [2]}


def test_numbers_that_are_not_finite_are_written_as_null() -> None:
    assert json.loads(documents.to_json({"error": math.nan})) == {"error": None}


def test_floats_of_numpy_are_written_and_what_is_no_value_is_not() -> None:
    assert json.loads(documents.to_json({"iou": np.float64(0.1)})) == {"iou": 0.1}
    with pytest.raises(NotImplementedError, match="object"):
        documents.to_json(object())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"x.json: the document is \[\], expected an object: do it"),
        ({}, "x.json: format is missing: do it"),
        ({"format": True}, "x.json: format is true, expected an integer: do it"),
        ({"format": 1, "files": []}, r"files is \[\], expected an object"),
        (
            {"format": 1, "files": {"a": FILE, "b.c": {**FILE, "sha256": "ab"}}},
            r"""files\['b.c'\].sha256 is "ab", expected 64 hexadecimal digits""",
        ),
        (
            {"format": 1, "files": {"a": {"bytes": 1}}},
            r"files\['a'\].sha256 is missing",
        ),
        (
            {"format": 1, "files": {"a": {**FILE, "bytes": 0}}},
            r"files\['a'\].bytes is 0, expected an integer >= 1",
        ),
        ({"format": 1, "shape": ["n", 2.5]}, r"shape\[1\] is 2.5, expected an integer or a string"),
        ({"format": 1, "shape": [1, 2, 3]}, "x.json: three dimensions: do it"),
        ({"format": 1, "share": 1.5}, "share is 1.5, expected a number <= 1.0"),
        (
            {"format": 1, "by_kind": {"a": {}, "c": {}}},
            'by_kind has "c", expected a or b: do it',
        ),
        (
            {"format": 1, "by_kind": {"a": {"n": 1, "m": -1}}},
            r"by_kind\['a'\]\['m'\] is -1, expected an integer >= 0",
        ),
        ({"format": 1, "main": {**FILE, "kind": "q"}}, 'main.kind is "q", expected a or b'),
        ({"format": 1, "few": [FILE] * 3}, r"few is \[.*\.\.\., expected a list of length <= 2"),
        ({"format": 1, "few": [FILE, {"sha256": "a" * 64}]}, r"few\[1\].bytes is missing"),
        ("{", r"x.json is not valid JSON \(.*\): do it"),
        (b'{"format": \xff}', r"x.json is not valid JSON \(.*\): do it"),
        ('{"format": NaN}', r"x.json is not valid JSON \(.*\): do it"),
        ("[" * 100_000, r"x.json is not valid JSON \(.*recursion.*\): do it"),
    ],
)
def test_what_is_wrong_is_named(document: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message) as error:
        read(document, remedy="do it")
    assert "$" not in str(error.value)
    assert "`" not in str(error.value)


@pytest.mark.parametrize("nested", ["[%s]", '{"a": %s}'])
def test_what_is_nested_too_deep_is_refused_at_any_depth(nested: str) -> None:
    opening, closing = nested.split("%s")
    for depth in range(1, sys.getrecursionlimit()):
        deep = f"{opening * depth}1{closing * depth}"
        with pytest.raises(BundleError, match=r"x.json"):
            read(f'{{"format": {deep}}}')


def test_newer_format() -> None:
    assert read({"format": 2}, newest=2).format == 2
    newer = {"format": 3, "shape": "of another kind"}
    with pytest.raises(DataError, match=r"x.json has format 3, .* up to 2: upgrade cris-deploy"):
        read(newer, newest=2, error=DataError)
    with pytest.raises(BundleError, match=r"upgrade cris-deploy \(.*\), or make it again$"):
        read(newer, newest=2, remedy="make it again")


def test_a_document_of_which_there_are_formats_says_its_own() -> None:
    assert documents.read(File, json.dumps(FILE), "x.json") == File("a" * 64, 1)
    with pytest.raises(BundleError, match=r"x.json: format is missing"):
        documents.read(File, json.dumps(FILE), "x.json", newest=2)


def test_unknown_fields() -> None:
    document = {"format": 1, "files": {"a": {**FILE, "byte": 2}}}
    assert read(document).files["a"] == File("a" * 64, 1)
    with pytest.raises(InputError, match=r"files\['a'\].byte is not known; did you mean bytes\?"):
        documents.convert(Document, document, "x.json")
    with pytest.raises(InputError, match=r"x.json: sha256 is not known; did you mean main.sha256"):
        documents.convert(Document, {"format": 1, "sha256": "a"}, "x.json")
    with pytest.raises(BundleError, match=r"colour is not known; known: by_kind, few, files"):
        read({"format": 1, "colour": 1}, known_only=True)
