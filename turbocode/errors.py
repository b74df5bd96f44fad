"""The exceptions that turbocode raises on purpose, each with the exit code its command ends in.

Every message is one line: what was given, what is allowed. `hint` says what to do. Anything else that escapes is a bug.
Exit codes follow BSD sysexits where one fits; docs/cli.md lists them.
"""

from __future__ import annotations

import os
from typing import ClassVar


class TurbocodeError(Exception):
    """Base of all expected failures.

    message : one line, no trailing full stop needed; file, object : what it is about (an HDF5 path, a key of a recipe).
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "E_INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        object: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else os.fspath(file)
        self.object = object
        self.hint = hint

    def __str__(self) -> str:
        where = ":".join(part for part in (self.file, self.object) if part)
        return f"{where}: {self.message}" if where else self.message


class OptionError(TurbocodeError):
    """An argument, option or recipe entry that asks for something that does not exist."""

    exit_code = 2
    code = "E_OPTION"


class QualityError(TurbocodeError):
    """The command ran and its check failed: a checksum differs, a threshold is exceeded."""

    exit_code = 3
    code = "E_QUALITY"


class DataError(TurbocodeError):
    """Input that is malformed, damaged, hostile, non-finite or of the wrong shape or version."""

    exit_code = 65
    code = "E_DATA"


class NoInputError(TurbocodeError):
    """Input that does not exist, cannot be read or is not a regular file."""

    exit_code = 66
    code = "E_NO_INPUT"


class DeviceError(TurbocodeError):
    """A device or optional package was asked for and is absent."""

    exit_code = 69
    code = "E_UNAVAILABLE"


class OutputError(TurbocodeError):
    """Output that cannot be created: it exists, is a symbolic link, is the input, or its folder is not writable."""

    exit_code = 73
    code = "E_OUTPUT"


class StorageError(TurbocodeError):
    """Reading or writing failed half-way: disk full, quota, I/O error."""

    exit_code = 74
    code = "E_IO"


class LockedError(TurbocodeError):
    """Another process holds the file; trying again later may work."""

    exit_code = 75
    code = "E_LOCKED"
