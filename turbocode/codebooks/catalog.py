"""Codebooks by name (shipped, in tables/) and by file (written by `turbocode train-codebook`)."""

from __future__ import annotations

import difflib
import functools
import json
import os
from importlib import resources

from turbocode.codebooks.any_codebook import AnyCodebook, codebook_from_json
from turbocode.codebooks.codebook_set import SET_SCHEMA, CodebookSet
from turbocode.errors import DataError, OptionError
from turbocode.formats import FORMAT_NAMES, GROUP_SIZES, block_format
from turbocode.text_input import read_text_input

MAX_FILE_BYTES = 64 << 20


def trellis_codebook_name(bits: int, states_log2: int, *, is_tail_biting: bool) -> str:
    """Name of the shipped codebook of a trellis: `trellis3-9` around a ring, `tcq3-9` with a free first state."""
    return f"{'trellis' if is_tail_biting else 'tcq'}{bits}-{states_log2}"


SHIPPED_BITS = range(1, 7)
SCALAR_NAMES = tuple(
    f"{density}-{bits}" for density in ("gaussian", *(f"sphere{size}" for size in GROUP_SIZES)) for bits in SHIPPED_BITS
)
TRELLIS_NAMES = tuple(
    trellis_codebook_name(layout.bits, layout.states_log2, is_tail_biting=layout.is_tail_biting)
    for layout in map(block_format, FORMAT_NAMES)
    if layout.is_trellis
)
CODEBOOK_NAMES = (*SCALAR_NAMES, *TRELLIS_NAMES)


@functools.cache
def load_codebook(name: str) -> AnyCodebook:
    """The shipped codebook `name`, such as gaussian-3, sphere64-4, trellis3-9. OptionError for an unknown name."""
    if name not in CODEBOOK_NAMES:
        near = difflib.get_close_matches(name, CODEBOOK_NAMES, n=1)
        raise OptionError(
            f"unknown codebook {name!r}; shipped are gaussian-1 to -6, sphere<group>-1 to -6, "
            + ", ".join(TRELLIS_NAMES),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    text = resources.files(__package__).joinpath("tables", f"{name}.json").read_text(encoding="utf-8")
    return codebook_from_json(json.loads(text), file=f"{name}.json")


def read_codebook(path: str | os.PathLike[str]) -> AnyCodebook | CodebookSet:
    """The codebook or set in a JSON file. Raises NoInputError, or DataError naming what is wrong."""
    try:
        document = json.loads(read_text_input(path, max_bytes=MAX_FILE_BYTES))
    except (json.JSONDecodeError, RecursionError):
        raise DataError("not JSON", file=path, hint="turbocode train-codebook writes codebooks") from None
    file = os.fspath(path)
    if isinstance(document, dict) and document.get("format") == SET_SCHEMA:
        return CodebookSet.from_json(document, file=file)
    return codebook_from_json(document, file=file)
