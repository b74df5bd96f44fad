"""A quantized file opened for reading: the blocks of one head and any range of tokens at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.digest import c_order_blocks
from turbocode.dumps.quantized_schema import QuantizedFacts, QuantizedLayerFacts, SideFacts, read_quantized_facts
from turbocode.dumps.source import Source
from turbocode.dumps.stored_arrays import read_arrays
from turbocode.errors import OptionError
from turbocode.formats.sides import SIDES


def open_quantized(path: str | os.PathLike[str], *, isolate: bool = False) -> QuantizedFile:
    """QuantizedFile, a context manager, on a guarded file; isolate as in `open_dump`.

    Errors : NoInputError, DataError, LockedError, DeviceError (a compressor that is not installed).
    """
    source = Source(path, isolate=isolate)
    try:
        return QuantizedFile(source, read_quantized_facts(source.inventory))
    except BaseException:
        source.close()
        raise


class QuantizedFile:
    """path; n_bytes of the file; metadata and dump_sha256 of the dump; recipe; provenance; layers."""

    def __init__(self, source: Source, facts: QuantizedFacts) -> None:
        self._source = source
        self.path: str = source.path
        self.n_bytes: int = source.inventory.file_size
        self.metadata = facts.metadata
        self.dump_sha256: str = facts.dump_sha256
        self.recipe: dict[str, Any] = facts.recipe
        self.provenance: dict[str, Any] = facts.provenance
        self.layers: tuple[QuantizedLayer, ...] = tuple(QuantizedLayer(source, layer) for layer in facts.layers)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class QuantizedLayer:
    """One layer: name (`000`), layer_index, window, softcap, n_seqs, n_tokens."""

    def __init__(self, source: Source, facts: QuantizedLayerFacts) -> None:
        self.name: str = facts.name
        self.layer_index: int = facts.metadata.layer_index
        self.window: int = facts.metadata.window
        self.softcap: float = facts.metadata.softcap
        self.n_seqs: int = facts.sides["keys"].shape[0]
        self.n_tokens: int = facts.sides["keys"].shape[2]
        self._sides = {side: QuantizedSide(source, facts.sides[side]) for side in SIDES}

    def side(self, side: str) -> QuantizedSide:
        """The keys or the values; OptionError for any other side."""
        if side not in self._sides:
            raise OptionError(f"side {side!r} is not known; allowed are {', '.join(SIDES)}")
        return self._sides[side]


class QuantizedSide:
    """Keys or values of a layer: codec and report (JSON objects), stored_sha256 of all blocks.

    bytes_per_vector : of one head, the longest where `widths` has those of each; row_bytes : of a token, all heads
    """

    def __init__(self, source: Source, facts: SideFacts) -> None:
        self._source = source
        self._facts = facts
        self.codec: dict[str, Any] = facts.codec
        self.report: dict[str, Any] = facts.report
        self.widths: tuple[int, ...] | None = facts.widths
        self.bytes_per_vector: int = facts.shape[3] if facts.widths is None else max(facts.widths)
        self.row_bytes: int = facts.shape[1] * facts.shape[3]
        self.stored_sha256: str = facts.sha256

    def read(self, seq: int, head: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Blocks of one head, uint8 (stop - start, bytes of its vectors); stop defaults to the last token.

        Errors : OptionError for an index outside the layer; DataError for damaged data.
        """
        n_seqs, n_heads, n_tokens, width = self._facts.shape
        n_heads = len(self.widths) if self.widths else n_heads
        last = n_tokens if stop is None else stop
        if not (0 <= seq < n_seqs and 0 <= head < n_heads and 0 <= start < last <= n_tokens):
            raise OptionError(
                f"blocks of sequence {seq}, head {head}, tokens {start} to {last} do not exist; "
                f"there are {n_seqs} sequences, {n_heads} heads and {n_tokens} tokens"
            )
        row, first = (head, 0) if self.widths is None else (0, sum(self.widths[:head]))
        width = width if self.widths is None else self.widths[head]
        return self._source.read(self._facts.path, (seq, row, start, first), (1, 1, last - start, width))[0, 0]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The constants that the codec's description refers to by name. Raises DataError for damaged ones."""
        return read_arrays(self._source, self._facts.arrays)

    def compute_sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hex digest of all blocks in C order, to compare with `stored_sha256`; `advance` is called with bytes read."""
        digest = hashlib.sha256()
        for block in c_order_blocks(self._source, self._facts.path):
            digest.update(block.tobytes())
            if advance is not None:
                advance(block.nbytes)
        return digest.hexdigest()
