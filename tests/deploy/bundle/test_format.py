"""What other programs and other versions read of a bundle: names on the disk, words in documents.

These are written out here: to change one is to change the format.
"""

import dataclasses
import importlib
import inspect
import pkgutil

from cris_deploy import bundle
from cris_deploy.bundle import contents, manifest
from cris_deploy.bundle.plans import record


def test_names_on_the_disk() -> None:
    assert (contents.MANIFEST, contents.SIGNATURE) == ("manifest.json", "manifest.json.minisig")
    assert (contents.TOKENIZER, contents.WEIGHTS) == ("tokenizer.json", "weights.bin")
    assert (contents.ENGINES, record.SUFFIX, record.SIDECAR) == ("engines", ".plan", ".json")


def test_words_in_documents() -> None:
    assert list(manifest.Precision) == ["fp32", "fp16", "int8"]
    assert list(manifest.DType) == ["float32", "float16", "int64", "bool"]
    assert list(manifest.NumberType) == ["float32", "float16", "int8"]
    assert [*manifest.STAGES] == ["image_encoder", "text_encoder", "mask_decoder"]
    assert list(manifest.GraphName) == ["full", *manifest.STAGES]


def test_what_was_read_stays_as_it_is() -> None:
    """Threads share what a bundle says, and hashes were checked once: nothing may be assigned."""
    kinds = {
        kind
        for _, name, _ in pkgutil.walk_packages(bundle.__path__, f"{bundle.__name__}.")
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if kind.__module__ == name and dataclasses.is_dataclass(kind)
    }

    assert len(kinds) > 10
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind
        assert "__slots__" in vars(kind), kind
