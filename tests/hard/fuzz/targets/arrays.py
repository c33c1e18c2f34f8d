"""NumPy's files: a sample's logits (.npy) and its features (.npz)."""

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from cris_deploy.bundle.manifest import Manifest, TensorSpec
from cris_deploy.bundle.reading import Bundle
from cris_deploy.proof import references
from tests.hard.fuzz.draw import Draw, damaged

READER: Final = ("cris_deploy.bundle.arrays",)
SHAPES: Final = ("(16, 16)", "(16,)", "(1000000, 1000000)", "(16, 16, 1)", "()", "(-16, -16)")
TYPES: Final = ("<f4", ">f4", "<f8", "|O", "|b1", "<U4", "<c8", "|V4", "<i8", "|u1", "<M8[s]")


def make(folder: Path) -> Callable[[bytes], None]:
    data = Path(__file__).parents[3] / "data/format1"
    manifest = Manifest.from_json((data / "manifest.json").read_bytes(), "manifest.json")
    bundle = Bundle(folder, manifest, "0" * 64, signed=False, _states={})
    sample = dataclasses.replace(manifest.samples[0], logits="logits.npy", scene="scene.npz")
    npy = _npy(np.linspace(-3, 3, 256, dtype=np.float32).reshape(16, 16))
    features = {"f3": (1, 2, 2), "f4": (1, 2)}
    specs = [TensorSpec(n, "float32", ("batch", *shape[1:])) for n, shape in features.items()]
    stream = io.BytesIO()
    np.savez(stream, **{name: np.ones(shape, np.float32) for name, shape in features.items()})
    npz = stream.getvalue()

    def case(raw: bytes) -> None:
        draw = Draw(raw)
        kind = draw.whole(0, 7)
        if kind < 4:
            content = (draw.rest, lambda: damaged(npy, draw), lambda: _claim(draw), lambda: npy)
            (folder / sample.logits).write_bytes(content[kind]())
            found = bundle.sample_logits(sample)
            assert found.dtype == np.float32
            assert found.shape == (16, 16)
            return
        others = (
            draw.rest,
            lambda: damaged(npz, draw),
            lambda: _archive(draw, npy),
            lambda: damaged(_archive(draw, npy), draw),
        )
        (folder / "scene.npz").write_bytes(others[kind - 4]())
        read = references._read_features(bundle, "scene.npz", specs)
        assert {name: value.shape for name, value in read.items()} == features

    return case


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _claim(draw: Draw) -> bytes:
    """A header that claims something, and some bytes behind it."""
    order = draw.choose(("True", "False", "None", "1"))
    header = f"{{'descr': '{draw.choose(TYPES)}', 'fortran_order': {order}, "
    header += f"'shape': {draw.choose(SHAPES)}, }}"
    if draw.whole(0, 3) == 0:
        header = draw.choose(("(" * 250, header * 300, "__import__('os').abort()", "\0", "{" * 90))
    text = header.encode() + b"\n"
    version = draw.choose((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
    length = len(text) + draw.choose((0, 0, 0, 1, -1, 60000)) & 0xFFFF
    body = bytes(draw.choose((0, 1023, 1024, 1024, 1025, 4096)))
    return b"\x93NUMPY" + version + length.to_bytes(2, "little") + text + body


def _archive(draw: Draw, npy: bytes) -> bytes:
    """Members of any content: among them ones that inflate to 4 MB, and ones of a wrong name."""
    stream = io.BytesIO()
    methods = (*[zipfile.ZIP_STORED] * 6, *[zipfile.ZIP_DEFLATED] * 4, zipfile.ZIP_BZIP2)
    methods = (*methods, zipfile.ZIP_LZMA)  # to begin one takes as long as ten cases
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("f3", "f4"):
            kind = draw.whole(0, 5)
            content = _npy(np.ones((1, 2, 2) if name == "f3" else (1, 2), np.float32))
            if kind == 1:
                content = npy
            elif kind == 2:
                content = damaged(content, draw)
            elif kind == 3:
                content = _claim(draw)
            elif kind == 4 and draw.whole(0, 200) == 0:
                content += bytes(2**22)
            info = zipfile.ZipInfo(draw.choose((name, name, name, "../f3", "")) + ".npy")
            info.compress_type = draw.choose(methods)
            archive.writestr(info, content)
    return stream.getvalue()
