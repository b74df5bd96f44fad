"""Several codecs on one dump: the file each makes and what it does to attention, one row a codec."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from turbocode.conversion import quantize_dump
from turbocode.dumps import Dump, open_quantized
from turbocode.evaluation.attention_compare import StoredBlocks, compare_attention
from turbocode.policies import Recipe


def sweep_codecs(
    dump: Dump,
    codecs: Iterable[str],
    folder: str | os.PathLike[str],
    *,
    max_memory: int,
    force: bool = False,
    advance: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Quantize `dump` with each codec for K and V into `folder` and compare attention; rows in the order given.

    advance : called with 1 after each codec. Each row: codec, file, bits_per_value, compression, nmse_k, nmse_v (means
    over layers) and the total figures of `compare_attention`.
    """
    rows = []
    for codec in codecs:
        path = Path(folder) / (re.sub(r"[^A-Za-z0-9_]+", "-", codec) + ".h5")
        written = quantize_dump(dump, path, Recipe(k=codec, v=codec), max_memory=max_memory, force=force)
        with open_quantized(path) as quantized:
            result = compare_attention(dump, StoredBlocks(quantized, dump), max_memory=max_memory)
        layers = result["layers"]
        rows.append(
            {
                "codec": codec,
                "file": os.fspath(path),
                "compression": written["total"]["compression"],
                "nmse_k": sum(row["nmse_k"] for row in layers) / len(layers),
                "nmse_v": sum(row["nmse_v"] for row in layers) / len(layers),
                **result["total"],
            }
        )
        if advance:
            advance(1)
    return rows
