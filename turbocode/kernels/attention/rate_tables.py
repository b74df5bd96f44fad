"""What the fast kernel reads multirate blocks with: tables of values, and where each half of a run finds its own.

A look-up gives the value of one state, or of two states in a row, for a window that is longer by one step. Lanes of a
warp ask for words that have nothing to do with each other, so that a look-up takes as long as 3.4 that are answered at
once. Pairs halve that, and their tables, small at low rates, come first. Of single values those of two rates share a
word, as its halves; 16 or 32 copies of them make a look-up as quick as two or one. Which tables there are is decided
for the schedules and the memory at hand: the kernel is told by numbers.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.multirate_format import MULTIRATE_STATES_LOG2, RUN_CHANNELS
from turbocode.kernels.attention.unbiased_halves import unbiased_halves

HALF_RUN = RUN_CHANNELS // 2  # channels that a lane reads together
ENTRY_WORDS = 4  # of a half of a run: see `_side_words`
RATE_SHIFT, PAIRS, EMPTY, RING = 16, 1 << 29, 1 << 30, 1 << 31
RING_BITS = 16  # of the stream's end that lie before its beginning in ring_heads.py
KEY_RUNS, VALUE_RUNS = 2, 4  # that the lanes of a warp read together
ALIGNMENT = 16

_L = MULTIRATE_STATES_LOG2
_STATES = np.arange(1 << _L)
_GAIN_BITS = 8
_MAX_PAIRED = 4  # bits a channel
_MAX_COPIED = 6  # bits a channel: of more the windows of half a run and a copy's place do not fit 64 bits together
_COPIES = (5, 4, 0)  # log2
_WAITS = {0: 3.4, 4: 2.0, 5: 1.0}  # look-ups answered at once that a look-up takes as long as, by copies
_WAIT_OF_PAIR = 1.7  # for a value


class RatedSide(NamedTuple):
    """rates : of the runs; tables : float32 (9, 1024); gains : float32 (256,); runs : KEY_RUNS or VALUE_RUNS"""

    rates: tuple[int, ...]
    tables: NDArray[np.float32]
    gains: NDArray[np.float32]
    runs: int


class RateTables(NamedTuple):
    """image : uint32, the tables as they lie in shared memory; words : uint32, of each side, see `_side_words`"""

    image: NDArray[np.uint32]
    words: list[NDArray[np.uint32]]


class _Column(NamedTuple):
    """The values of one rate: of the tables of side `book`."""

    book: int
    rate: int


class _Choice(NamedTuple):
    """paired : rates that have pairs; couples : columns that share words; copies : log2, of each couple"""

    paired: frozenset[int]
    couples: tuple[tuple[_Column, ...], ...]
    copies: tuple[int, ...]


def side_word_count(head_dim: int) -> int:
    """Words of a side."""
    return ENTRY_WORDS * head_dim // HALF_RUN + (1 << _GAIN_BITS)


def least_image_bytes(sides: Sequence[RatedSide]) -> int:
    """Bytes of the smallest image."""
    choice = _chosen(sides, frozenset(), 0)
    return _image_bytes(sides, choice)


def rate_tables(sides: Sequence[RatedSide], max_bytes: int) -> RateTables:
    """The tables that are read quickest of those that fit max_bytes; the smallest one has any size."""
    rates = sorted({rate for side in sides for rate in side.rates if 0 < rate <= _MAX_PAIRED})
    subsets = itertools.chain.from_iterable(itertools.combinations(rates, n) for n in range(len(rates) + 1))
    choices = [_chosen(sides, frozenset(paired), max_bytes) for paired in subsets]
    fitting = [choice for choice in choices if _image_bytes(sides, choice) <= max_bytes] or choices[:1]
    choice = min(fitting, key=lambda each: _wait(sides, each))
    image, places = _image_of(sides, choice)
    words = [_side_words(number, sides, choice, places, 4 * len(image)) for number in range(len(sides))]
    return RateTables(image, words)


def _books(sides: Sequence[RatedSide]) -> list[int]:
    """The first side with the tables of each."""
    return [next(j for j, other in enumerate(sides) if np.array_equal(other.tables, side.tables)) for side in sides]


def _groups(sides: Sequence[RatedSide]) -> list[tuple[int, tuple[int, ...]]]:
    """(book, rates) of the runs that are read together."""
    return [
        (book, side.rates[first : first + side.runs])
        for book, side in zip(_books(sides), sides, strict=True)
        for first in range(0, len(side.rates), side.runs)
    ]


def _is_paired(rates: Sequence[int], choice: _Choice) -> bool:
    return all(rate == 0 or rate in choice.paired for rate in rates)


def _chosen(sides: Sequence[RatedSide], paired: frozenset[int], max_bytes: int) -> _Choice:
    """Pairs at some rates; of the rest the couple that is used most has as many copies as fit, then the next one."""
    choice = _Choice(paired, (), ())
    uses = Counter(
        _Column(book, rate) for book, rates in _groups(sides) if not _is_paired(rates, choice) for rate in rates if rate
    )
    columns = sorted(uses, key=lambda column: (column.rate > _MAX_COPIED, -uses[column]))
    couples = tuple(tuple(columns[first : first + 2]) for first in range(0, len(columns), 2))
    choice = _Choice(paired, couples, (0,) * len(couples))
    for number, couple in enumerate(couples):
        for copies in _COPIES if couple[-1].rate <= _MAX_COPIED else (0,):
            more = (*choice.copies[:number], copies, *choice.copies[number + 1 :])
            if copies == 0 or _image_bytes(sides, choice._replace(copies=more)) <= max_bytes:
                choice = choice._replace(copies=more)
                break
    return choice


def _wait(sides: Sequence[RatedSide], choice: _Choice) -> float:
    """How long reading a vector of each side takes."""
    of_column = {
        column: _WAITS[copies]
        for couple, copies in zip(choice.couples, choice.copies, strict=True)
        for column in couple
    }
    total = 0.0
    for book, rates in _groups(sides):
        if _is_paired(rates, choice):
            total += len(rates) * _WAIT_OF_PAIR * any(rates)
        else:
            total += len(rates) * max(of_column[_Column(book, rate)] for rate in rates if rate)
    return total


def _pair_columns(sides: Sequence[RatedSide], choice: _Choice) -> list[_Column]:
    used = {_Column(book, rate) for book, rates in _groups(sides) if _is_paired(rates, choice) for rate in rates}
    return sorted(column for column in used if column.rate)


def _sizes(sides: Sequence[RatedSide], choice: _Choice) -> dict[object, int]:
    """Bytes of each table, powers of two, the largest first."""
    sizes: dict[object, int] = {column: 4 << (_L + column.rate) for column in _pair_columns(sides, choice)}
    sizes |= {couple: 4 << (_L + copies) for couple, copies in zip(choice.couples, choice.copies, strict=True)}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _image_bytes(sides: Sequence[RatedSide], choice: _Choice) -> int:
    return sum(_sizes(sides, choice).values()) + ALIGNMENT


@functools.lru_cache(64)
def _halves(table: bytes) -> NDArray[np.uint32]:
    return unbiased_halves(np.frombuffer(table, np.float32))


def _image_of(sides: Sequence[RatedSide], choice: _Choice) -> tuple[NDArray[np.uint32], dict[object, int]]:
    """(image, byte at which each table begins, a multiple of its size). Behind all of them there are zeros."""

    def of_column(column: _Column) -> NDArray[np.uint32]:
        return _halves(sides[column.book].tables[column.rate].tobytes())

    parts, places, place = [], {}, 0
    copies_of = dict(zip(choice.couples, choice.copies, strict=True))
    for key, size in _sizes(sides, choice).items():
        if isinstance(key, _Column):
            window, halves = np.arange(1 << (_L + key.rate)), of_column(key)
            words = halves[window & _STATES[-1]] | halves[window >> key.rate] << np.uint32(16)
        else:
            couple: tuple[_Column, ...] = key  # type: ignore[assignment]
            words = of_column(couple[0]) | of_column(couple[-1]) << np.uint32(16)
            words = np.repeat(words, 1 << copies_of[couple])
        parts.append(words)
        places[key] = place
        place += size
    return np.concatenate((*parts, np.zeros(ALIGNMENT // 4, np.uint32))), places


def _side_words(
    number: int, sides: Sequence[RatedSide], choice: _Choice, places: dict[object, int], image_bytes: int
) -> NDArray[np.uint32]:
    """The words of a side: for each half of a run [where it begins, mask, table, mask of the lane's copy], then gains.

    The first has the bit of a row, or of a ring head, at which the first window begins, less the bits below the index
    of its table, and from RATE_SHIFT on the rate; RING says that it is one of a ring head. PAIRS says that the runs
    read together have pairs, EMPTY that none of them has bits. Masks and table are for byte offsets in the image.
    """
    side, book = sides[number], _books(sides)[number]
    spots = {column: (couple, half) for couple in choice.couples for half, column in enumerate(couple)}
    copies_of = dict(zip(choice.couples, choice.copies, strict=True))
    starts = np.concatenate(([0], np.cumsum(side.rates)[:-1])) * RUN_CHANNELS
    words = []
    for run, rate in enumerate(side.rates):
        together = side.rates[run // side.runs * side.runs :][: side.runs]
        has_pairs = _is_paired(together, choice)
        flags = (0 if any(together) else EMPTY) | (PAIRS if has_pairs else 0)
        column = _Column(book, rate)
        for half in range(2):
            if rate == 0:
                words.append((flags | _GAIN_BITS, 0, image_bytes - ALIGNMENT, 0))
                continue
            index_bits, copies, place = _L, 0, 0
            if has_pairs:
                index_bits, place = _L + rate, places[column]
            else:
                couple, which = spots[column]
                copies, place = copies_of[couple], places[couple] + 2 * which
            low = 2 + copies
            bit = int(starts[run]) + (half * HALF_RUN + 1) * rate - _L
            first = RING | (bit + RING_BITS - low) if bit < 0 else bit + _GAIN_BITS - low
            mask = ((1 << index_bits) - 1) << low
            words.append((flags | first | rate << RATE_SHIFT, mask, place, ((1 << copies) - 1) << 2))
    entries = np.array(words, np.uint64).astype(np.uint32).ravel()
    return np.concatenate((entries, side.gains.astype(np.float32).view(np.uint32)))
