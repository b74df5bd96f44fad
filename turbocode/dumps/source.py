"""An open, guarded file from which hyperslabs are read; what dumps and quantized files share."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from itertools import product
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.guard import stock_of
from turbocode.dumps.hdf5 import h5py, open_file, reading, superblock_version
from turbocode.dumps.inventory import DatasetFacts, Inventory
from turbocode.dumps.isolation import rehearse
from turbocode.dumps.storage import CHECKSUM_BYTES, DEFLATE, MAX_CHUNK_BYTES
from turbocode.dumps.value_types import read_raw
from turbocode.errors import DataError

# Keys, values, queries and one to spare: what a caller goes through side by side.
_OPEN_DATASETS = 4


class Source:
    """A guarded HDF5 file with its inventory; a context manager."""

    def __init__(self, path: str | os.PathLike[str], *, isolate: bool = False) -> None:
        self.path = os.fspath(path)
        if isolate:
            rehearse(self.path)
        superblock = superblock_version(self.path)
        self._file = open_file(self.path)
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()  # one thread may take the digest while another encodes
        self._inflated: set[tuple[str, tuple[int, ...]]] = set()
        try:
            self.inventory: Inventory = stock_of(self._file, self.path, superblock)
        except BaseException:
            self._file.close()
            raise

    def read(self, where: str, start: tuple[int, ...], count: tuple[int, ...]) -> NDArray[Any]:
        """Stored bits of a hyperslab as unsigned integers in native byte order, shape `count`; see value_types.

        Errors : DataError where the checksum or the structure of the data is wrong.
        """
        facts = self.inventory.datasets[where]
        with self._lock, reading(self.path, where):
            dataset = self._dataset(where, facts)
            if DEFLATE in facts.filters:
                self._check_inflation(dataset, where, facts, start, count)
            return read_raw(dataset, facts.value_type, start, count)

    def close(self) -> None:
        self._open.clear()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _dataset(self, where: str, facts: DatasetFacts) -> Any:
        if where in self._open:
            self._open.move_to_end(where)
            return self._open[where]
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        if facts.chunks is not None:
            # A chunk larger than the cache would be read again, whole, for each block of tokens.
            chunk_bytes = int(np.prod(facts.chunks)) * facts.value_type.size
            access.set_chunk_cache(521, min(max(chunk_bytes, 1 << 20), MAX_CHUNK_BYTES), 1.0)
        dataset = h5py.h5d.open(self._file.id, where.encode("ascii"), access)
        self._open[where] = dataset
        if len(self._open) > _OPEN_DATASETS:
            self._open.popitem(last=False)
        return dataset

    def _check_inflation(
        self, dataset: Any, where: str, facts: DatasetFacts, start: tuple[int, ...], count: tuple[int, ...]
    ) -> None:
        """HDF5 inflates a chunk to whatever size its stream asks for, so each chunk is tried with a bound first."""
        assert facts.chunks is not None
        size = int(np.prod(facts.chunks)) * facts.value_type.size
        axes = [range(s // c * c, s + n, c) for s, n, c in zip(start, count, facts.chunks, strict=True)]
        for origin in product(*axes):
            if (where, origin) in self._inflated:
                continue
            _, stored = dataset.read_direct_chunk(origin)
            payload = stored[:-CHECKSUM_BYTES] if facts.fletcher32 else stored
            inflater = zlib.decompressobj()
            try:
                got = len(inflater.decompress(payload, size + 1))
            except zlib.error:
                got = -1
            if got != size:
                raise DataError(f"chunk at {origin} does not inflate to its size", file=self.path, object=where)
            self._inflated.add((where, origin))
