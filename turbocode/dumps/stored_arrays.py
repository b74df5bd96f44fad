"""Small named arrays in a group of an HDF5 file: the constants of transforms and codecs, each under its own SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.guard import NAME
from turbocode.dumps.hdf5 import h5py
from turbocode.dumps.hdf5_output import HDF5Output
from turbocode.dumps.inventory import Inventory
from turbocode.dumps.source import Source
from turbocode.errors import DataError, OptionError
from turbocode.formats.array_digest import array_sha256

ARRAY_DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32")
MAX_ARRAY_BYTES = 1 << 28
_RANKS = (2, 3, 4)
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class ArrayFacts:
    """An array as announced: path in the file, shape, dtype, SHA-256 of its little-endian bytes in C order."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


def write_arrays(output: HDF5Output, group: h5py.Group, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of 2 to 4 axes as datasets of `group`. Raises OptionError for another rank, dtype or name."""
    for name, array in arrays.items():
        if array.dtype.name not in ARRAY_DTYPES or array.ndim not in _RANKS or not array.size:
            raise OptionError(
                f"array {name} is {array.dtype} of shape {array.shape}; allowed are 2 to 4 axes of "
                + ", ".join(ARRAY_DTYPES)
            )
        if not NAME.fullmatch(name.encode()) or array.nbytes > MAX_ARRAY_BYTES:
            raise OptionError(f"array {name!r} of {array.nbytes} bytes cannot be stored; its name or size is at fault")
        dataset = output.dataset(group, name, array.shape, array.dtype.newbyteorder("<").str)
        for index in np.ndindex(array.shape[:-2]):
            dataset.write(tuple(int(i) for i in index), 0, array[index])
        dataset.finish()


def array_facts(inventory: Inventory, group: str) -> dict[str, ArrayFacts]:
    """Facts of the arrays in a group, by name. Raises DataError for what `write_arrays` does not write."""
    found = {}
    for name in inventory.children(group):
        path = f"{group}/{name}"
        facts = inventory.require_dataset(path)
        n_bytes = int(np.prod(facts.shape)) * facts.value_type.size
        if facts.value_type.name not in ARRAY_DTYPES or len(facts.shape) not in _RANKS or n_bytes > MAX_ARRAY_BYTES:
            inventory.refuse(path, f"an array of {facts.value_type.name} of shape {facts.shape} is not allowed here")
        if not facts.fletcher32:
            inventory.refuse(path, "array has no fletcher32 checksum")
        digest = inventory.label(path, "sha256")
        if len(digest) != 64 or not _HEX.issuperset(digest):
            inventory.refuse(path, "attribute 'sha256' must be a SHA-256 in 64 hex digits")
        found[name] = ArrayFacts(path, facts.shape, facts.value_type.name, digest)
    return found


def read_arrays(source: Source, facts: Mapping[str, ArrayFacts]) -> dict[str, NDArray[Any]]:
    """The arrays, by name. Raises DataError for one whose digest differs or that holds a NaN or an infinity."""
    arrays = {}
    for name, fact in facts.items():
        bits = source.read(fact.path, (0,) * len(fact.shape), fact.shape)
        array = bits.view(fact.dtype)
        if array_sha256(array) != fact.sha256:
            raise DataError("sha256 of the array differs from the stored one", file=source.path, object=fact.path)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError("array holds a NaN or an infinity", file=source.path, object=fact.path)
        arrays[name] = array
    return arrays
