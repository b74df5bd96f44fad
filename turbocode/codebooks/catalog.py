"""Codebooks by name (shipped, in tables/) and by file (written by `turbocode train-codebook`)."""

from __future__ import annotations

import difflib
import functools
import json
import os
from importlib import resources

from turbocode.codebooks.codebook import Codebook
from turbocode.codebooks.codebook_set import SET_SCHEMA, CodebookSet
from turbocode.errors import DataError, OptionError
from turbocode.formats import GROUP_SIZES
from turbocode.text_input import read_text_input

MAX_FILE_BYTES = 16 << 20
SHIPPED_BITS = range(1, 7)
CODEBOOK_NAMES = tuple(
    f"{density}-{bits}" for density in ("gaussian", *(f"sphere{size}" for size in GROUP_SIZES)) for bits in SHIPPED_BITS
)


@functools.cache
def load_codebook(name: str) -> Codebook:
    """The shipped codebook `name`, such as gaussian-3 or sphere64-4. Raises OptionError for an unknown name."""
    if name not in CODEBOOK_NAMES:
        near = difflib.get_close_matches(name, CODEBOOK_NAMES, n=1)
        raise OptionError(
            f"unknown codebook {name!r}; shipped are gaussian-1 to -6 and sphere<group>-1 to -6",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    text = resources.files(__package__).joinpath("tables", f"{name}.json").read_text(encoding="utf-8")
    return Codebook.from_json(json.loads(text), file=f"{name}.json")


def read_codebook(path: str | os.PathLike[str]) -> Codebook | CodebookSet:
    """The codebook or set in a JSON file. Raises NoInputError, or DataError naming what is wrong."""
    try:
        document = json.loads(read_text_input(path, max_bytes=MAX_FILE_BYTES))
    except (json.JSONDecodeError, RecursionError):
        raise DataError("not JSON", file=path, hint="turbocode train-codebook writes codebooks") from None
    file = os.fspath(path)
    if isinstance(document, dict) and document.get("format") == SET_SCHEMA:
        return CodebookSet.from_json(document, file=file)
    return Codebook.from_json(document, file=file)
