"""Reads the small text files that users name: codebooks and recipes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from turbocode.errors import DataError, NoInputError


def read_text_input(path: str | os.PathLike[str], *, max_bytes: int) -> str:
    """The text of a regular file of at most max_bytes bytes of UTF-8. Raises NoInputError or DataError."""
    try:
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):
            raise NoInputError("not a regular file", file=path)
        if facts.st_size > max_bytes:
            raise DataError(f"{facts.st_size} bytes; allowed are {max_bytes}", file=path)
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NoInputError("no such file", file=path) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", file=path) from None
    except (OSError, ValueError) as error:
        raise NoInputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=path) from None
