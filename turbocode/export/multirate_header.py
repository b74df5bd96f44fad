"""The multirate codec of one KV head as a C header: the arithmetic of kernels/multirate/, operation by operation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from turbocode.codecs import MultirateCodec
from turbocode.codecs.multirate_codec import CODED_LIMIT, LIMIT
from turbocode.errors import OptionError
from turbocode.export.c_text import c_float, environment
from turbocode.formats.array_digest import array_sha256

# What such a header may declare beside c_header.NAMES, as prefix_NAME, and its macros.
MULTIRATE_NAMES = [
    "mean",
    "columns",
    "back",
    "sigma",
    "gains",
    "channel",
    "rate",
    "end",
    "step",
    "row",
    "sum",
    "affine",
]
MULTIRATE_NAMES += ["gain_byte", "write"]
MULTIRATE_MACROS = ["STEPS", "STREAM_BITS"]


def multirate_header(codec: MultirateCodec, prefix: str) -> str:
    """The text of the header; `prefix` has been checked. Raises OptionError for a codec of several heads."""
    if codec.n_heads > 1:
        raise OptionError(
            f"multirate has a basis for each of {codec.n_heads} heads; a header holds one", hint="--head H"
        )
    form, head = codec.block_format, codec.head_constants(0)
    side = head.side
    before, behind = side.approach()
    n_steps = len(side.rates)
    used = sorted({int(rate) for rate in side.rates})
    steps = np.full(form.head_dim, -1)
    steps[side.channels] = np.arange(n_steps)
    max_steps, max_sets = max(n_steps, before + behind), 1 << (form.states_log2 - used[0])
    context: dict[str, Any] = {
        "prefix": prefix,
        "head_dim": form.head_dim,
        "bytes_per_block": form.bytes_per_block,
        "bits_per_value": form.bits_per_value,
        "stream_bytes": form.stream_bytes,
        "states_log2": form.states_log2,
        "rates": form.rates,
        "law": codec.law,
        "searches": codec.searches,
        "codebook_sha256": array_sha256(codec.tables),
        "fields": [
            {"name": "gain", "offset": 0, "size": 1, "type": "uint8", "count": 1},
            {"name": "stream", "offset": 1, "size": form.stream_bytes, "type": "uint8", "count": form.stream_bytes},
        ],
        "n_steps": n_steps,
        "mean": _floats(head.mean),
        "columns": _floats(head.columns.ravel()),
        "back": _floats(head.back.ravel()),
        # That of a channel without bits may be what has no literal.
        "sigma": _floats(np.where(np.abs(side.sigma) >= np.finfo(np.float32).tiny, side.sigma, 0)),
        "gains": _floats(side.gains.gains),
        "channels": [str(int(channel)) for channel in side.channels],
        "step_rates": [str(int(rate)) for rate in side.rates],
        "ends": [str(int(end)) for end in np.cumsum(side.rates)],
        "steps": [str(int(step)) for step in steps],
        "tables": [_floats(codec.tables[rate]) for rate in used],
        "rows": [used.index(rate) if rate in used else 0 for rate in range(used[-1] + 1)],
        "before": before,
        "behind": behind,
        "seam_start": n_steps - before,
        "max_steps": max_steps,
        "max_sets": max_sets,
        "search_kib": -(-(2 * 4 * (1 << form.states_log2) + max_steps * max_sets) // 1024),
        "limit": float(LIMIT),
        "coded_limit": float(CODED_LIMIT),
    }
    return environment().get_template("multirate_header.h.jinja").render(context)


def _floats(numbers: Iterable[Any]) -> list[str]:
    return [c_float(number) for number in numbers]
