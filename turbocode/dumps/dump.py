"""A KV dump opened for reading: keys, values and queries of one head and any range of tokens at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.digest import dump_digest
from turbocode.dumps.dump_schema import KINDS, DumpFacts, LayerFacts, fisher_name, read_dump_facts
from turbocode.dumps.metadata import DumpMetadata
from turbocode.dumps.source import Source
from turbocode.dumps.value_types import from_bits, nonfinite_mask
from turbocode.errors import DataError, OptionError

NONFINITE_POLICIES = ("error", "zero")


def open_dump(path: str | os.PathLike[str], *, nonfinite: str = "error", isolate: bool = False) -> Dump:
    """Dump, a context manager, on a guarded file.

    nonfinite : `error` raises on NaN and infinity, `zero` puts 0 in their place and counts them
    isolate : open the file in a child process first, so that a crash inside HDF5 becomes a DataError
    Errors : NoInputError, DataError, LockedError, DeviceError (a compressor that is not installed), OptionError.
    """
    if nonfinite not in NONFINITE_POLICIES:
        raise OptionError(f"nonfinite {nonfinite!r} is not known; allowed are {', '.join(NONFINITE_POLICIES)}")
    source = Source(path, isolate=isolate)
    try:
        return Dump(source, read_dump_facts(source.inventory), nonfinite)
    except BaseException:
        source.close()
        raise


class Dump:
    """path; metadata; n_bytes of the file; integrity (checksummed or unverified); layers; nonfinite_replaced so far.

    integrity : checksummed if a flipped bit in keys, values or queries is bound to be noticed (fletcher32 on all of
        them and the metadata checksums of libver v110), unverified otherwise.
    """

    def __init__(self, source: Source, facts: DumpFacts, nonfinite: str) -> None:
        self._source = source
        self._facts = facts
        self._zero_nonfinite = nonfinite == "zero"
        self.path: str = source.path
        self.n_bytes: int = source.inventory.file_size
        self.metadata: DumpMetadata = facts.metadata
        self.integrity: str = facts.integrity
        self.nonfinite_replaced: int = 0
        self.layers: tuple[DumpLayer, ...] = tuple(DumpLayer(self, layer) for layer in facts.layers)

    def tokens(self) -> NDArray[np.int32] | None:
        """Token ids, int32 (n_seqs, n_tokens), None if the dump has none."""
        if self._facts.tokens is None:
            return None
        bits = self._source.read("/tokens", (0, 0), self._facts.tokens.shape)
        return bits.view(np.int32)

    def content_sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hex digest over names, shapes, dtypes, attributes and little-endian values; no chunking, filter or padding.

        advance : called with the number of bytes just read. Values are digested as stored, finite or not.
        """
        return dump_digest(self._source, self._facts, advance)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, layer: LayerFacts, kind: str, seq: int, head: int, start: int, stop: int) -> NDArray[Any]:
        where = f"/layers/{layer.name}/{kind}"
        count = (1, 1, stop - start, self.metadata.head_dim)
        bits = self._source.read(where, (seq, head, start, 0), count)[0, 0]
        bad = nonfinite_mask(bits, self.metadata.logical_dtype)
        if bad.any():
            if not self._zero_nonfinite:
                token = start + int(np.flatnonzero(bad.any(axis=1))[0])
                axis = "row" if kind == "queries" else "token"
                raise DataError(
                    f"value is not finite at sequence {seq}, head {head}, {axis} {token}",
                    file=self.path,
                    object=where,
                    hint="--nonfinite zero puts 0 in its place",
                )
            bits[bad] = 0
            self.nonfinite_replaced += int(np.count_nonzero(bad))
        return from_bits(bits, self.metadata.logical_dtype)

    def _fisher(self, layer: LayerFacts, side: str) -> NDArray[np.float32]:
        where = f"/layers/{layer.name}/{fisher_name(side)}"
        shape = self._source.inventory.datasets[where].shape
        metric = from_bits(self._source.read(where, (0, 0, 0), shape), "float32")
        trace = metric.trace(axis1=1, axis2=2)
        turned = metric.transpose(0, 2, 1)
        if not (
            np.isfinite(metric).all() and (trace > 0).all() and np.allclose(metric, turned, 1e-4, 1e-6 * trace.max())
        ):
            raise DataError("is not finite, symmetric and of positive trace", file=self.path, object=where)
        return metric

    def _positions(self, layer: LayerFacts) -> NDArray[np.int64]:
        if layer.positions is None:
            return np.empty((layer.n_seqs, 0), dtype=np.int64)
        where = f"/layers/{layer.name}/query_positions"
        positions = self._source.read(where, (0, 0), layer.positions.shape).view(np.int64)
        outside = (positions < 0) | (positions >= layer.n_tokens)
        if outside.any():
            seq, row = np.argwhere(outside)[0]
            raise DataError(
                f"position {positions[seq, row]} at sequence {seq}, row {row} is outside 0 to {layer.n_tokens - 1}",
                file=self.path,
                object=where,
            )
        return positions


class DumpLayer:
    """One layer: name (`000`), layer_index, window, softcap, n_seqs, n_tokens, n_rows, chunk_tokens.

    n_rows : rows of the queries, 0 without queries
    chunk_tokens : tokens a chunk of the keys holds (contiguous: n_tokens); reading whole chunks is fastest
    """

    def __init__(self, dump: Dump, facts: LayerFacts) -> None:
        self._dump = dump
        self._facts = facts
        self.name: str = facts.name
        self.layer_index: int = facts.metadata.layer_index
        self.window: int = facts.metadata.window
        self.softcap: float = facts.metadata.softcap
        self.n_seqs: int = facts.n_seqs
        self.n_tokens: int = facts.n_tokens
        self.n_rows: int = facts.n_rows
        chunks = facts.datasets["keys"].chunks
        self.chunk_tokens: int = facts.n_tokens if chunks is None else min(chunks[2], facts.n_tokens)

    def read(self, kind: str, seq: int, head: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Array (stop - start, head_dim), C-contiguous, native byte order; float16, or float32 for the other two.

        kind : keys, values or queries; stop defaults to the last token (of queries: the last row)
        Errors : OptionError for an index outside the layer; DataError for damaged or non-finite data.
        """
        if kind not in KINDS:
            raise OptionError(f"kind {kind!r} is not known; allowed are {', '.join(KINDS)}")
        if kind not in self._facts.datasets:
            raise DataError("dump holds no queries", file=self._dump.path, object=f"/layers/{self.name}")
        n_seqs, n_heads, length, _ = self._facts.datasets[kind].shape
        last = length if stop is None else stop
        if not (0 <= seq < n_seqs and 0 <= head < n_heads and 0 <= start < last <= length):
            raise OptionError(
                f"{kind} of sequence {seq}, head {head}, {start} to {last} do not exist; "
                f"there are {n_seqs} sequences, {n_heads} heads and {length} entries"
            )
        return self._dump._read(self._facts, kind, seq, head, start, last)

    @property
    def has_fisher(self) -> bool:
        """Whether the Fisher information of keys and values is there."""
        return self._facts.has_fisher

    def read_fisher(self, side: str) -> NDArray[np.float32] | None:
        """E[g g^T] of `keys` or `values`, float32 (n_kv_heads, head_dim, head_dim), symmetric; None if it is not there.

        Errors : DataError for damaged data, or a matrix that is not finite, symmetric and of positive trace.
        """
        return self._dump._fisher(self._facts, side) if self.has_fisher else None

    def query_positions(self) -> NDArray[np.int64]:
        """Positions, int64 (n_seqs, n_rows): row r sees tokens 0 to position inclusive; all in 0..n_tokens-1."""
        return self._dump._positions(self._facts)
