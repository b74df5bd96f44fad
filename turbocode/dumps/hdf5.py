"""h5py with dynamic plug-ins switched off, and HDF5's failures translated into turbocode errors.

HDF5 loads any shared object it finds on HDF5_PLUGIN_PATH as soon as a file names an unknown filter. The variable below
has to be set before the library starts, so h5py is imported here first and everything else takes it from here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turbocode.errors import DataError, LockedError, NoInputError, StorageError

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"

import h5py

while h5py.h5pl.size():
    h5py.h5pl.remove(0)

__all__ = ["h5py", "open_file", "reading", "superblock_version"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Superblock version 3 is what libver v110 writes: from there on HDF5 puts a checksum on every piece of metadata.
CHECKSUMMED_SUPERBLOCK = 3
_SUPERBLOCK_HEAD = 48
LIBVER = ("v110", "v110")
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# h5py turns HDF5's error stack into whichever of these it finds fitting; errno is often missing.
HDF5_FAILURES = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)


@contextmanager
def reading(file: str | os.PathLike[str], object_name: str | None = None) -> Iterator[None]:
    """Context in which any failure of HDF5 becomes a DataError that names file and object.

    Errors : DataError; LockedError where a writer holds the file; StorageError where the disk fails to read.
    """
    try:
        yield
    except HDF5_FAILURES as failure:
        raise _read_failure(failure, file, object_name) from None


def _read_failure(
    failure: Exception, file: str | os.PathLike[str], object_name: str | None
) -> DataError | LockedError | StorageError:
    text = str(failure)
    number = failure.errno if isinstance(failure, OSError) else None
    if number == errno.EIO:
        return StorageError("the disk reported an input/output error", file=file, object=object_name)
    if "unable to lock file" in text:
        return LockedError("another process is writing this file", file=file, hint="try again when it has finished")
    if "already open for write" in text or "consistency flags" in text:
        return DataError("was not closed by its writer", file=file, hint="write the file again")
    if "truncated" in text:
        return DataError("is truncated", file=file, hint="copy or write the file again")
    if isinstance(failure, MemoryError):
        return DataError("asks for more memory than there is", file=file, object=object_name)
    if "checksum" in text.lower() or "filter returned failure" in text:
        return DataError("checksum does not match: the file is damaged", file=file, object=object_name)
    return DataError("HDF5 structure is damaged", file=file, object=object_name)


def superblock_version(path: str | os.PathLike[str]) -> int:
    """Version of the HDF5 superblock: 3 for files written with libver v110.

    Errors : NoInputError for a file that is missing, not regular or not readable; DataError without HDF5 signature.
    """
    name = Path(path)
    try:
        # A FIFO would block for ever in open, so the type is checked before anything is opened.
        if not name.exists():
            raise NoInputError("file does not exist", file=path)
        if not name.is_file():
            raise NoInputError("not a regular file", file=path, hint="give the path of an HDF5 file")
        with name.open("rb") as stream:
            head = stream.read(_SUPERBLOCK_HEAD)
    except (OSError, ValueError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
        raise NoInputError(f"cannot be read: {reason}", file=path) from None
    if not head:
        raise DataError("file is empty", file=path)
    if not head.startswith(SIGNATURE):
        raise DataError("not an HDF5 file (no signature)", file=path)
    if len(head) < _SUPERBLOCK_HEAD:
        raise DataError("is truncated", file=path, hint="copy or write the file again")
    version = head[len(SIGNATURE)]
    # Sizes of addresses and lengths follow the version; in the old superblocks after four more version bytes.
    sizes = head[9:11] if version >= 2 else head[13:15]
    if sizes != bytes([8, 8]):
        raise DataError("HDF5 addresses and lengths must have 8 bytes", file=path)
    return version


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """Open HDF5 file, read-only; the caller still has to guard it before following any name.

    Errors : as `superblock_version`, and DataError where HDF5 refuses.
    """
    superblock_version(path)
    with reading(path):
        return h5py.File(os.fspath(path), "r")
