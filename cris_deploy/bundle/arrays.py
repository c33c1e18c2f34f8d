"""NumPy's files, read only as far as they are what is expected.

`numpy.load` makes room for whatever a file's header claims, and inflates whatever an archive holds.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, ...]


def read_array(path: Path, shape: Shape) -> NDArray[Any]:
    """Read a .npy file of numbers; ValueError or OSError if it cannot be, or has another shape."""
    with path.open("rb") as stream:
        return _read(stream, path.name, shape)


def read_arrays(path: Path, shapes: Mapping[str, Shape]) -> dict[str, NDArray[Any]]:
    """Read these arrays of an .npz file, and nothing else of it; errors as `read_array`'s."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name, shape in shapes.items():
                with archive.open(f"{name}.npy") as stream:
                    found[name] = _read(stream, name, shape)
            return found
    except OSError:
        raise
    except Exception as error:  # zipfile's own, and what four decompressors raise
        raise ValueError(str(error)) from None


def _read(stream: IO[bytes], name: str, shape: Shape) -> NDArray[Any]:
    # Later versions allow headers of 4 GB, which numbers do not need.
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} has version {version} of NumPy's format, expected (1, 0)")
    try:
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # it is Python's text, whose parser raises what it meets
        raise ValueError(f"{name} has no readable header ({error})") from None
    if found != shape:
        raise ValueError(f"{name} has shape {found}, expected {shape}")
    if dtype.kind not in "fiub" or dtype.itemsize > 8:  # no objects: they are pickles
        raise ValueError(f"{name} holds {dtype}, not numbers")
    size = math.prod(shape) * dtype.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"{name} has {len(data):,} bytes of {size:,}")
    array = np.frombuffer(bytearray(data), dtype)  # a bytearray: it may be written to
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
