"""Arrays of a bundle are read no further than they are what is expected."""

import contextlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from cris_deploy.bundle.arrays import read_arrays
from cris_deploy.bundle.reading import (
    Bundle,
)
from cris_deploy.errors import BundleError
from tests.helpers import tiny_bundle as tiny


def claims(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """A .npy file whose header claims a shape, and no data."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (claims((10**6, 10**6)), r"has shape \(1000000, 1000000\), expected \(16, 16\)"),
        (claims((16, 16)), "has 0 bytes of 1,024"),
        (claims((16, 16), "|O"), "holds object, not numbers"),
        (claims((16, 16), "<U99999"), "not numbers"),
        (claims((16, 16), "<f8") + bytes(2048), "holds float64, expected float32"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 4, "version"),
        (b"\x93NUM", "cannot be read"),
        (b"\x93NUMPY\1\0\5\0{1:(\n", "no readable header"),  # Python's tokenizer has an own error
        (b"\x93NUMPY\1\0\xe8\3" + 999 * b"(" + b"\n", "no readable header"),  # nested too deep
    ],
)
def test_reference_logits_are_read_no_further_than_they_are_right(own_bundle, content, message):
    (own_bundle / "samples/0.npy").write_bytes(content)
    tiny.rehash(own_bundle)
    bundle = Bundle.open(own_bundle)
    with pytest.raises(BundleError, match=message):
        bundle.sample_logits(bundle.manifest.samples[0])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_of_an_archive(tmp_path, method):
    path = tmp_path / "x.npz"
    values = np.arange(6, dtype=np.float16).reshape(2, 3)

    def write(**members: bytes) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    def whole(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    write(a=whole(values), b=whole(np.asfortranarray(values)), c=claims((10**6, 10**6)))
    found = read_arrays(path, {"a": (2, 3), "b": (2, 3)})
    for array in found.values():
        np.testing.assert_array_equal(array, values)
        assert array.dtype == np.float16
    for name, message in (("c", r"c has shape \(1000000"), ("d", "d.npy")):
        with pytest.raises(ValueError, match=message):
            read_arrays(path, {name: (2, 3)})
    write(a=claims((2, 3)) + bytes(200 << 20) if method == zipfile.ZIP_DEFLATED else b"")
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        read_arrays(path, {"a": (2, 3)})
    assert tracemalloc.get_traced_memory()[1] < 5 << 20  # the rest is not inflated
    tracemalloc.stop()


def test_pickled_sample_is_refused(own_bundle):
    path = own_bundle / "samples/0.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    tiny.edit(own_bundle, "files", "samples/0.npy", "bytes", value=path.stat().st_size)
    bundle = Bundle.open(own_bundle, verify=False)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.sample_logits(bundle.manifest.samples[0])


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("byte", [0x00, 0x5A, 0xFF])
def test_an_archive_whose_content_is_broken(tmp_path, method, byte):
    """Each method of compression has errors of its own."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", claims((2, 3)) + bytes(24))
    data = bytearray(path.read_bytes())
    data[35:60] = bytes([byte]) * 25  # behind the name
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError)):
        read_arrays(path, {"a": (2, 3)})
