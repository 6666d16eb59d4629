"""Reading `.npz` files that may be damaged or hostile: nothing is executed, and no more memory is taken than the file can fill."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from edge_tprune.files import open_regular

_KINDS = "biuf"  # plain numbers: no objects, text or records
_ENCRYPTED = 0x1


class DamagedArrays(ValueError):
    """A file that holds no readable arrays, or too large ones: why, in one line."""


def read_arrays(file: Path, most_bytes: int, *, compressed: bool = True) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file, by name.

    Args:
        file: what `numpy.savez` or `numpy.savez_compressed` wrote.
        most_bytes: of all arrays together.
        compressed: whether members may be compressed. If not, arrays are never larger than the file.

    Raises:
        DamagedArrays: whatever else the file is.
    """
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            arrays: dict[str, np.ndarray] = {}
            for member in archive.infolist():
                if member.flag_bits & _ENCRYPTED:
                    raise DamagedArrays("it is encrypted")
                if member.compress_type != zipfile.ZIP_STORED and not compressed:
                    raise DamagedArrays("it is compressed, so it could become larger than its size says")
                with archive.open(member) as content:
                    array = _read_array(content, most_bytes)
                most_bytes -= array.nbytes
                arrays[member.filename.removesuffix(".npy")] = array
            return arrays
    except DamagedArrays:
        raise
    except OSError as error:
        raise DamagedArrays(error.strerror or str(error)) from error
    except Exception as error:  # a damaged archive makes the reader raise almost anything
        why = " ".join(str(error).split()).encode("ascii", "backslashreplace").decode()[:100]
        raise DamagedArrays(f"it is not a readable .npz file ({why or type(error).__name__})") from error


def _read_array(stream: IO[bytes], most_bytes: int) -> np.ndarray:
    """One array, if the stream really holds all of it; numpy itself would allocate what the header says first."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DamagedArrays(f"an array has format {version[0]}.{version[1]}")
    if dtype.kind not in _KINDS or fortran_order:
        raise DamagedArrays(f"an array is of type {dtype}{' in column order' if fortran_order else ''}")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize > most_bytes:
        raise DamagedArrays(f"an array has shape {_short(shape)}")
    size = math.prod(shape) * dtype.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise DamagedArrays(f"an array of shape {_short(shape)} is cut off")
    return np.frombuffer(data, dtype).reshape(shape)


def _short(shape: tuple[int, ...]) -> str:
    return ", ".join(f"{size:.3g}" for size in shape[:8]).join("()")
