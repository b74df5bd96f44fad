"""Digest of what a dump says, whatever its chunks, filters and HDF5 version."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

from numpy.typing import NDArray

from turbocode.dumps.dump_schema import DumpFacts
from turbocode.dumps.source import Source

BLOCK_BYTES = 1 << 22


def dump_digest(source: Source, facts: DumpFacts, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256, hex, over the schema's attributes as sorted JSON and each dataset's name, shape, dtype and bytes.

    Datasets come in the order tokens, then layer by layer keys, values, queries, query_positions; values are the
    stored bits in C order, little-endian. `advance` is called with the number of bytes just read.
    """
    digest = hashlib.sha256()
    about = {
        "metadata": asdict(facts.metadata),
        "layers": [{"name": layer.name, **asdict(layer.metadata)} for layer in facts.layers],
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for where, dtype in _datasets(facts):
        shape = source.inventory.datasets[where].shape
        digest.update(json.dumps([where, dtype, list(shape)]).encode())
        for block in c_order_blocks(source, where):
            little = block if sys.byteorder == "little" else block.byteswap()
            digest.update(little.tobytes())
            if advance is not None:
                advance(block.nbytes)
    return digest.hexdigest()


def c_order_blocks(source: Source, where: str) -> Iterator[NDArray[Any]]:
    """Blocks of a dataset of 2 or 4 axes in C order, each at most about BLOCK_BYTES, as unsigned integers."""
    facts = source.inventory.datasets[where]
    *outer, length, width = facts.shape
    step = max(1, BLOCK_BYTES // (width * facts.value_type.size))
    for index in product(*(range(n) for n in outer)):
        for start in range(0, length, step):
            count = min(step, length - start)
            yield source.read(where, (*index, start, 0), (*(1 for _ in outer), count, width))


def _datasets(facts: DumpFacts) -> Iterator[tuple[str, str]]:
    if facts.tokens is not None:
        yield "/tokens", "int32"
    for layer in facts.layers:
        for kind in layer.datasets:
            yield f"/layers/{layer.name}/{kind}", facts.metadata.logical_dtype
        if layer.positions is not None:
            yield f"/layers/{layer.name}/query_positions", "int64"
