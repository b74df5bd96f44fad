"""A codec as one self-contained C header that gives the same bytes and floats as turbocode.kernels.

The arithmetic is that of kernels/fwht/cpu.py, kernels/scalar/steps.py and kernels/trellis/, operation by operation;
templates/ hold it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Codec, MultirateCodec
from turbocode.errors import DataError, OptionError
from turbocode.export.c_text import MAX_IDENTIFIER, c_float, c_ident, environment
from turbocode.export.multirate_header import MULTIRATE_MACROS, MULTIRATE_NAMES, multirate_header
from turbocode.formats.block_format import FLOAT16_TINY
from turbocode.kernels.trellis import GAINS, VITERBI, Trellis

# What a header may declare, as prefix_NAME.
NAMES = [
    "block",
    "block_check",
    "float_check",
    "centroids",
    "boundaries",
    "signs_before",
    "signs_after",
    "base",
    "base_transposed",
    "float_from_half",
    "half_from_float",
    "load_half",
    "store_half",
    "dot",
    "prepare",
    "transform",
    "rotate",
    "unrotate",
    "index",
    "pack",
    "table",
    "state",
    "search",
    "value",
    "encode",
    "decode",
    "decode_rotated",
]
# Macros it may define, as PREFIX_NAME.
MACROS = [
    "HEADER_INCLUDED",
    "GROUP_SIZE",
    "VALUES_PER_BLOCK",
    "BLOCKS_PER_GROUP",
    "BLOCK_BYTES",
    "GROUP_BYTES",
    "STATES",
    "STATES_MASK",
    "SATURATED",
    "NONFINITE",
    "EXACT",
    "EXACT_BODY",
]
_LONGEST = max(map(len, [*NAMES, *MACROS, *MULTIRATE_NAMES, *MULTIRATE_MACROS])) + 1
MAX_PREFIX = MAX_IDENTIFIER - _LONGEST
_MAX_FACTS = 16


def default_prefix(codec: Codec | MultirateCodec) -> str:
    """The prefix of a codec's names: its own name and its group size, such as `turbo3_128`."""
    return f"{codec.name}_{codec.block_format.group_size}"


def c_header(codec: Codec | MultirateCodec, *, prefix: str | None = None) -> str:
    """The text of a C99, C11, C17 and C++11 to C++20 header with everything to encode and decode one group.

    codec : with at most one codebook or basis; `codec.for_head(h)` picks one of several
    prefix : of every name that the header declares, upper case for macros; default `default_prefix(codec)`
    The text follows from the arguments alone. Raises OptionError for a prefix that cannot begin a C name and for
    several codebooks, DataError for a codebook that float32 cannot hold.
    """
    prefix = default_prefix(codec) if prefix is None else prefix
    _check_prefix(prefix)
    if isinstance(codec, MultirateCodec):
        return multirate_header(codec, prefix)
    if len(codec.codebooks) > 1:
        raise OptionError(
            f"{codec.name} has codebooks of {len(codec.codebooks)} heads; a header holds one", hint="choose a head"
        )
    layout, rotation = codec.block_format, codec.rotation
    centroids, boundaries = _tables(codec)
    context: dict[str, Any] = {
        "prefix": prefix,
        "codec": codec,
        "layout": layout.name,
        "kind": layout.layout.name.lower(),
        "bits": layout.bits,
        "group_size": layout.group_size,
        "values_per_block": layout.values_per_block,
        "blocks_per_group": layout.blocks_per_group,
        "bytes_per_block": layout.bytes_per_block,
        "bits_per_value": layout.bits_per_value,
        "fields": list(_fields(codec)),
        "facts": list(_facts(codec)),
        "norm_mode": codec.norm_mode,
        "is_rotated": not rotation.is_identity,
        "rotation_kind": rotation.kind,
        "width": rotation.width,
        "order": len(rotation.base),
        "scale": rotation.scale,
        "signs_before": _packed_signs(rotation.signs_before),
        "signs_after": _packed_signs(rotation.signs_after),
        "base": _sign_rows(rotation.base),
        "base_transposed": _sign_rows(rotation.base.T),
        "centroids": centroids,
        "boundaries": boundaries,
        "half_tiny": FLOAT16_TINY,
        "float_max": np.finfo(np.float32).max,
        "safe_square": 2.0**120,
        "down": 2.0**-80,
        "up": 2.0**80,
        "two_pow_112": 2.0**112,
        "is_trellis": layout.is_trellis,
        **(_trellis(codec) if layout.is_trellis else {}),
    }
    return environment().get_template("header.h.jinja").render(context)


def _trellis(codec: Codec) -> dict[str, Any]:
    """What the template of trellises needs. Raises OptionError for a search other than Viterbi's."""
    if codec.search != VITERBI:
        raise OptionError(
            f"a header encodes with the Viterbi search only, not with {codec.search}",
            hint=f"leave search= out of {codec.name}",
        )
    layout = codec.block_format
    trellis = Trellis.of_format(layout)
    approach = trellis.approach(layout.group_size) if trellis.is_tail_biting else 0
    choice_bits = {1: 1, 2: 2}.get(layout.bits, 4)
    n_sets, max_steps = 1 << trellis.overlap_bits, max(layout.group_size, 2 * approach)
    choice_bytes = max(1, n_sets * choice_bits // 8)
    return {
        "states_log2": layout.states_log2,
        "overlap_bits": trellis.overlap_bits,
        "n_sets": n_sets,
        "is_ring": trellis.is_tail_biting,
        "stream_bytes": -(-layout.stream_bits // 8),
        "window_bytes": -(-(layout.states_log2 + (8 - math.gcd(8, layout.bits))) // 8),
        "approach": approach,
        "seam_start": layout.group_size - approach,
        "max_steps": max_steps,
        "choice_bits": choice_bits,
        "choices_per_byte": 8 // choice_bits,
        "choice_bytes": choice_bytes,
        "search_kib": -(-(8 * trellis.n_states + max_steps * choice_bytes) // 1024),
        "n_gains": codec.n_gains,
        "gains": [c_float(gain) for gain in GAINS[: codec.n_gains]],
    }


def _check_prefix(prefix: str) -> None:
    c_ident(prefix)
    if len(prefix) > MAX_PREFIX:
        raise OptionError(f"prefix of {len(prefix)} characters; allowed are {MAX_PREFIX}, so that names stay distinct")
    if prefix.endswith("_"):
        raise OptionError(f"prefix {prefix!r} ends in an underscore; the header adds its own")


def _tables(codec: Codec) -> tuple[list[str], list[str]]:
    """(centroids, boundaries) of the codec as C literals; both empty for a format without codebook."""
    if not codec.codebooks:
        return [], []
    with np.errstate(over="ignore"):
        tables = codec.tables()
    try:
        centroids, boundaries = ([c_float(number) for number in table] for table in tables)
    except DataError as error:
        raise DataError(f"codebook of {codec.name}: {error.message}") from None
    return centroids, boundaries


def _fields(codec: Codec) -> Iterator[dict[str, Any]]:
    """Name, offset, size in bytes, element type and count of each field of a block."""
    dtype = codec.block_format.dtype
    assert dtype.fields is not None
    for name in dtype.names or ():
        field, offset = dtype.fields[name][:2]
        yield {
            "name": name,
            "offset": int(offset),
            "size": field.itemsize,
            "type": field.base.name,
            "count": field.itemsize // field.base.itemsize,
        }


def _facts(codec: Codec) -> Iterator[tuple[str, Any]]:
    """What the header's comment says about the codebook, as pairs of label and value, neither of them trusted."""
    for codebook in codec.codebooks:
        yield "codebook", codebook.name
        yield "codebook nmse", f"{codebook.nmse:.6g}"
        scalars = [(k, v) for k, v in codebook.provenance.items() if isinstance(v, str | int | float)]
        yield from sorted(((str(k), v) for k, v in scalars), key=lambda fact: fact[0])[:_MAX_FACTS]


def _packed_signs(signs: NDArray[np.float32]) -> list[str]:
    """Bytes as C literals; bit j % 8 of byte j / 8 is set where sign j is negative."""
    return [f"0x{byte:02x}" for byte in np.packbits(signs < 0, bitorder="little")]


def _sign_rows(base: NDArray[np.float32]) -> list[str]:
    """One 32-bit C literal a row; bit b is set where entry b is negative."""
    return [f"0x{sum(1 << b for b in np.flatnonzero(row < 0).tolist()):05x}u" for row in base]
