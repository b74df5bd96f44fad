"""Where a dataset's bytes lie: layout, filters and the chunk table, checked before HDF5 may use them.

HDF5 2.0 crashes on a chunk record whose stored size is smaller than its checksum, follows overlapping or foreign
addresses silently, and inflates a chunk to any size; so every record must be exactly what a sound writer produces.
"""

from __future__ import annotations

import math
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from turbocode.dumps.hdf5 import h5py, reading
from turbocode.dumps.inventory import DatasetFacts
from turbocode.dumps.value_types import ValueType
from turbocode.errors import DataError, DeviceError

DEFLATE, SHUFFLE, FLETCHER32, ZSTD, BLOSC2 = 1, 2, 3, 32015, 32026
FILTER_NAMES = {DEFLATE: "deflate", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", ZSTD: "zstd", BLOSC2: "blosc2"}
COMPRESSORS = frozenset({DEFLATE, ZSTD, BLOSC2})
CHECKSUM_BYTES = 4
# A compressor that gains nothing adds its frame: 11 bytes for deflate, up to a few hundred for blosc2.
MAX_COMPRESSOR_OVERHEAD = 1024
MIN_COMPRESSED_BYTES = 8
MAX_RANK = 4
MAX_DATASET_BYTES = 1 << 44
MAX_CHUNKS = 1 << 20
MAX_CHUNK_BYTES = 1 << 27


class Extents:
    """The byte ranges of a file that its datasets occupy; no two may overlap."""

    def __init__(self, file: str, file_size: int) -> None:
        self.file, self.file_size = file, file_size
        self._ranges: list[tuple[int, int, str]] = []

    def add(self, offset: int, size: int, where: str) -> None:
        if offset < 0 or size < 0 or offset + size > self.file_size:
            raise DataError("data lie outside the file", file=self.file, object=where)
        self._ranges.append((offset, size, where))

    def gaps(self) -> list[tuple[int, int]]:
        """(start, stop) of the bytes that no dataset occupies; DataError where two datasets overlap."""
        self._ranges.sort()
        self._check_overlap()
        starts = [0, *(offset + size for offset, size, _ in self._ranges)]
        stops = [*(offset for offset, _, _ in self._ranges), self.file_size]
        return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]

    def _check_overlap(self) -> None:
        for (offset, size, _), (following, _, where) in zip(self._ranges, self._ranges[1:], strict=False):
            if offset + size > following:
                raise DataError("data overlap with other data of the file", file=self.file, object=where)


def check_storage(dataset: Any, value_type: ValueType, extents: Extents, where: str) -> DatasetFacts:
    """DatasetFacts of a dataset whose bytes are all present in this file.

    Errors : DataError; DeviceError where a permitted compressor is not installed.
    """

    def refuse(message: str) -> NoReturn:
        raise DataError(message, file=extents.file, object=where)

    with reading(extents.file, where):
        plist = dataset.get_create_plist()
        layout = plist.get_layout()
        if layout == h5py.h5d.VIRTUAL:
            refuse("virtual dataset is not allowed (points at other data)")
        if plist.get_external_count():
            refuse("external storage is not allowed (points at another file)")
        space = dataset.get_space()
        if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
            refuse("must be an array; it is a scalar or empty")
        shape = tuple(int(n) for n in space.get_simple_extent_dims())
        if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
            refuse(f"shape {shape} is not allowed; 1 to {MAX_RANK} axes of at least 1 entry are")
        n_bytes = math.prod(shape) * value_type.size
        if n_bytes > MAX_DATASET_BYTES:
            refuse(f"shape {shape} declares {n_bytes} bytes; allowed are {MAX_DATASET_BYTES}")
        filters = tuple(int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters()))
        if layout == h5py.h5d.CHUNKED:
            chunks = tuple(int(n) for n in plist.get_chunk())
            _check_filters(filters, extents.file, where)
            _check_chunks(dataset, shape, chunks, value_type.size, filters, extents, where)
            return DatasetFacts(shape, value_type, chunks, filters, FLETCHER32 in filters)
        if filters:
            refuse("has filters without chunks")
        if dataset.get_storage_size() != n_bytes:
            refuse("data were never written, or only in part")
        if layout == h5py.h5d.CONTIGUOUS:
            offset = dataset.get_offset()
            if offset is None:
                refuse("data were never written")
            extents.add(int(offset), n_bytes, where)
        elif layout != h5py.h5d.COMPACT:
            refuse("storage layout is not known")
        return DatasetFacts(shape, value_type, None, (), False)


def _check_filters(filters: tuple[int, ...], file: str, where: str) -> None:
    for code in filters:
        if code not in FILTER_NAMES:
            allowed = ", ".join(FILTER_NAMES.values())
            raise DataError(f"filter {code} is not allowed; allowed are {allowed}", file=file, object=where)
    if len(set(filters)) != len(filters) or len(COMPRESSORS.intersection(filters)) > 1:
        raise DataError(
            "filters are repeated; one compressor and each filter once are allowed", file=file, object=where
        )
    if COMPRESSORS.intersection(filters) and FLETCHER32 in filters and filters[-1] != FLETCHER32:
        raise DataError("fletcher32 must be the last filter", file=file, object=where)
    for code in filters:
        if code in (ZSTD, BLOSC2):
            _need_plugin(code, file, where)


def _need_plugin(code: int, file: str, where: str) -> None:
    # Importing it registers its filters with HDF5; only files that use them pay for that.
    with suppress(ImportError):
        import_module("hdf5plugin")
    if not h5py.h5z.filter_avail(code):
        raise DeviceError(
            f"compressed with {FILTER_NAMES[code]}, which is not installed",
            file=file,
            object=where,
            hint="pip install 'turbocode[filters]'",
        )


def _check_chunks(
    dataset: Any,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    item_size: int,
    filters: tuple[int, ...],
    extents: Extents,
    where: str,
) -> None:
    def refuse(message: str) -> NoReturn:
        raise DataError(message, file=extents.file, object=where)

    if len(chunks) != len(shape):
        refuse(f"chunk shape {chunks} does not fit shape {shape}")
    chunk_bytes = math.prod(chunks) * item_size
    expected = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    if chunk_bytes > MAX_CHUNK_BYTES or expected > MAX_CHUNKS:
        refuse(
            f"has {expected} chunks of {chunk_bytes} bytes; allowed are {MAX_CHUNKS} chunks of {MAX_CHUNK_BYTES} bytes"
        )
    checksum = CHECKSUM_BYTES if FLETCHER32 in filters else 0
    if COMPRESSORS.intersection(filters):
        smallest, largest = MIN_COMPRESSED_BYTES + checksum, chunk_bytes + MAX_COMPRESSOR_OVERHEAD
    else:
        smallest = largest = chunk_bytes + checksum
    records: list[Any] = []

    def collect(record: Any) -> bool | None:
        records.append(record)
        return True if len(records) > expected else None

    dataset.chunk_iter(collect)
    if len(records) != expected:
        refuse(f"{len(records)} of {expected} chunks are written")
    origins: set[tuple[int, ...]] = set()
    for record in records:
        origin = tuple(record.chunk_offset)
        if record.filter_mask:
            refuse(f"chunk at {origin} skips its filters")
        if not smallest <= record.size <= largest:
            refuse(f"chunk at {origin} has a stored size of {record.size} bytes, which cannot be")
        if any(o % c or o >= n for o, c, n in zip(origin, chunks, shape, strict=True)):
            refuse(f"chunk at {origin} lies outside the dataset")
        origins.add(origin)
        if record.byte_offset is None:
            refuse(f"chunk at {origin} was never written")
        extents.add(int(record.byte_offset), int(record.size), where)
    if len(origins) != expected:
        refuse("a chunk is listed twice")
