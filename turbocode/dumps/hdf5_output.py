"""An HDF5 file being written into a part file, and datasets that are written once from start to end."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.atomic import AnyPath, atomic_output, storage_failure
from turbocode.dumps.hdf5 import HDF5_FAILURES, LIBVER, h5py
from turbocode.errors import OptionError, OutputError

CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 20


class PartStream:
    """File object for HDF5 that keeps its first failure to itself and then swallows all writes.

    HDF5 crashes the interpreter at exit once a write has failed, and drops any other exception that is raised in here,
    a signal's for instance. The part file is lost anyway, so HDF5 may believe that all went well; `check` raises what
    happened.
    """

    def __init__(self, path: Path) -> None:
        self.failure: BaseException | None = None
        self._abandoned = False
        self._raw = cast(BinaryIO, path.open("r+b", buffering=0))

    def abandon(self) -> None:
        """Ignore all further writes."""
        self._abandoned = True

    def check(self) -> None:
        """Raise the failure that a read or write ran into, if any."""
        if self.failure is not None:
            raise self.failure

    def _keep(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        self._abandoned = True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._abandoned:
            return len(view)
        done = 0
        try:
            while done < len(view):
                done += self._raw.write(view[done:])
        except BaseException as failure:
            self._keep(failure)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view):
                count = cast(Any, self._raw).readinto(view[done:])
                if not count:
                    break
                done += count
        except BaseException as failure:
            self._keep(failure)
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        if self._abandoned:
            return size or 0
        try:
            return self._raw.truncate(size)
        except BaseException as failure:
            self._keep(failure)
            return size or 0

    def flush(self) -> None:
        """Nothing is buffered here; the part file is synced before it is renamed."""

    def close(self) -> None:
        self._raw.close()


@contextmanager
def hdf5_output(
    path: AnyPath, *, force: bool = False, inputs: Iterable[AnyPath] = (), expected_bytes: int | None = None
) -> Iterator[HDF5Output]:
    """Context giving an empty HDF5Output that becomes `path` when the context ends well. Errors as `atomic_output`."""
    with atomic_output(path, force=force, inputs=inputs, expected_bytes=expected_bytes) as part:
        stream = PartStream(part)
        try:
            file = h5py.File(os.fspath(part), "w", driver="fileobj", fileobj=stream, libver=LIBVER)
            try:
                yield HDF5Output(file, stream)
                file.close()
                stream.check()
            except BaseException:
                stream.abandon()
                with suppress(*HDF5_FAILURES):
                    file.close()
                raise
        except HDF5_FAILURES:
            # After a failed write HDF5 may stumble over what it cannot read back; the write is the cause.
            cause = stream.failure
            known = storage_failure(cause, path) if isinstance(cause, OSError) else cause
            if known is None:
                raise
            raise known from None
        finally:
            stream.close()


class HDF5Output:
    """file: the HDF5 file being written; `dataset` makes datasets in it that notice a full disk."""

    def __init__(self, file: h5py.File, stream: PartStream) -> None:
        self.file, self._stream = file, stream

    def dataset(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> SequentialDataset:
        return SequentialDataset(group, name, shape, dtype, self._stream)


class SequentialDataset:
    """A chunked, checksummed dataset of `length` x `width` entries per outer index, written in C order.

    shape : (*outer, length, width); dtype : little-endian NumPy dtype. Chunks lie along `length`, about 1 MiB each.
    `finish` puts the SHA-256 of all bytes into the attribute sha256.
    """

    def __init__(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, stream: PartStream) -> None:
        if min(shape) < 1:
            raise OptionError(f"{group.name}/{name}: shape {shape} is not allowed; every axis needs an entry")
        *outer, length, width = shape
        row_bytes = width * np.dtype(dtype).itemsize
        n_chunks = -(-length // max(1, CHUNK_BYTES // row_bytes))
        chunks = (*(1 for _ in outer), -(-length // n_chunks), width)
        self.name = f"{group.name}/{name}"
        self._shape, self._rows = shape, math.prod(shape[:-1])
        self._dataset = group.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, fletcher32=True)
        self._digest = hashlib.sha256()
        self._next = 0
        self._stream = stream

    def write(self, index: tuple[int, ...], start: int, values: NDArray[Any]) -> None:
        """Append `values`, (n, width), at outer index and position `start`, which must be the next ones due."""
        *outer, length, width = self._shape
        due_index, due_start = np.unravel_index(self._next // length, outer or (1,)), self._next % length
        due = tuple(int(i) for i in due_index) if outer else ()
        if self._next >= self._rows or index != due or start != due_start:
            raise OptionError(f"{self.name}: {(*index, start)} was written; {(*due, due_start)} is next")
        if values.ndim != 2 or values.shape[1] != width or not 1 <= len(values) <= length - start:
            allowed = f"(1 to {length - start}, {width})"
            raise OptionError(f"{self.name}: an array of shape {values.shape} was written; allowed is {allowed}")
        data = np.ascontiguousarray(values, dtype=self._dataset.dtype)
        self._dataset[(*index, slice(start, start + len(data)))] = data
        self._digest.update(data.tobytes() if data.dtype.byteorder != ">" else data.byteswap().tobytes())
        self._next += len(data)
        self._stream.check()

    def finish(self) -> None:
        """Write the attribute sha256; OutputError if entries are missing."""
        if self._next != self._rows:
            raise OutputError(f"{self.name}: {self._next} of {self._rows} rows were written")
        put_text(self._dataset, "sha256", self._digest.hexdigest())


def put_text(owner: Any, name: str, text: str) -> None:
    """Write a string attribute with fixed length: variable-length strings lie in a heap without checksum."""
    data = text.encode("utf-8")
    owner.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def put_json(owner: Any, name: str, document: dict[str, Any]) -> None:
    """Write a JSON object as string attribute `name` and its SHA-256 as `name`_sha256.

    HDF5 keeps attributes above 64 KiB without a checksum, hence the digest. OptionError for what JSON cannot say.
    """
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as failure:
        raise OptionError(f"{name} cannot be written as JSON: {failure}") from None
    if not isinstance(document, dict) or len(text) > MAX_JSON_BYTES:
        raise OptionError(f"{name} has {len(text)} bytes of JSON; allowed is an object of {MAX_JSON_BYTES}")
    put_text(owner, name, text)
    put_text(owner, f"{name}_sha256", hashlib.sha256(text.encode()).hexdigest())
