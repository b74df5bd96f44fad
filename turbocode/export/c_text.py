"""Python values as text of a C header, from which nothing can escape: the filters that the templates use."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from turbocode.errors import DataError, OptionError

MAX_IDENTIFIER = 63  # characters of an internal name that C99 5.2.4.1 makes significant
MAX_COMMENT = 100  # characters of one piece of text
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
# Neither '*' nor '?' nor a backslash is among them: no comment ends early, no trigraph, no spliced line.
_NOT_IN_COMMENT = re.compile(r"[^A-Za-z0-9 ._:+/-]+", re.ASCII)
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

_C11 = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
"""
_CPP20 = """
alignas alignof and and_eq asm atomic_cancel atomic_commit atomic_noexcept bitand bitor bool catch char16_t char32_t
char8_t class co_await co_return co_yield compl concept const_cast consteval constexpr constinit decltype delete
dynamic_cast explicit export false final friend import module mutable namespace new noexcept not not_eq nullptr operator
or or_eq override private protected public reflexpr reinterpret_cast requires static_assert static_cast synchronized
template this thread_local throw true try typeid typename using virtual wchar_t xor xor_eq
"""
_CUDA = "threadIdx blockIdx blockDim gridDim warpSize dim3"
KEYWORDS = frozenset(f"{_C11} {_CPP20} {_CUDA}".split())


def c_ident(text: str) -> str:
    """`text`, if it may name something in C, C++ and CUDA; else OptionError."""
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text):
        raise OptionError(
            f"{_shown(text)} cannot be a name in C: allowed are ASCII letters, digits and _, a letter first"
        )
    if len(text) > MAX_IDENTIFIER:
        raise OptionError(f"{_shown(text)} cannot be a name in C: {len(text)} characters; allowed are {MAX_IDENTIFIER}")
    if "__" in text:
        raise OptionError(f"{_shown(text)} cannot be a name in C: names with two underscores in a row are reserved")
    if text in KEYWORDS:
        raise OptionError(f"{_shown(text)} cannot be a name in C: it is a keyword of C, C++ or CUDA")
    return text


def c_float(value: float) -> str:
    """The float32 `value` as a literal that every C and C++ reads back without loss. DataError where there is none.

    Nine significant digits are lossless. Infinities, NaN and subnormal numbers have no literal that all compilers take.
    """
    number = float(value)
    if not math.isfinite(number):
        raise DataError(f"{number} has no C literal; finite numbers are needed")
    if number != 0.0 and abs(number) < _SMALLEST_NORMAL:
        raise DataError(f"{number:.9g} has no portable C literal; float32 numbers start at {_SMALLEST_NORMAL:.9g}")
    text = f"{number:.9g}"
    if "." not in text and "e" not in text:
        text += ".0"
    return text + "f"


def c_comment(value: object) -> str:
    """`value` as text for the inside of a comment, cut at 100 characters.

    Each run of characters other than A-Za-z0-9 ._:+/- becomes one `-`.
    """
    return _NOT_IN_COMMENT.sub("-", str(value)[:MAX_COMMENT]).strip()


def c_rows(items: Sequence[str], per_row: int) -> str:
    """Items of an initialiser, comma-separated, `per_row` on each indented line."""
    rows = [", ".join(items[start : start + per_row]) for start in range(0, len(items), per_row)]
    return ",\n".join(f"    {row}" for row in rows)


@functools.cache
def environment() -> Environment:
    """The jinja2 environment of the templates; a name that a template uses and nobody gave is an error."""
    found = Environment(
        loader=PackageLoader("turbocode.export", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(c_ident=c_ident, c_float=c_float, c_comment=c_comment, c_rows=c_rows)
    return found


def _shown(text: object) -> str:
    shown = ascii(text)
    return shown if len(shown) <= MAX_IDENTIFIER + 2 else shown[:MAX_IDENTIFIER] + "..."
