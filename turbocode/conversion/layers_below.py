"""Decoded vectors of the layer below, for coders that predict from it: files and dumps are gone through layer by layer.

S sequences, J KV heads, T tokens, D head_dim. Two layers at most are kept, as float32 in temporary files, so that
memory does not grow with the cache; nothing is kept below layers that do not predict.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Coder, predicting, run_tokens
from turbocode.conversion.slabs import slab_tokens, slabs
from turbocode.errors import DataError, StorageError
from turbocode.formats.sides import SIDES
from turbocode.transforms.aqua import READ_FROM, Predictor

Codecs = Mapping[tuple[str, str], Coder]
Blocks = Callable[[Coder, str, int, int, int, int], NDArray[np.uint8]]


class Layer(Protocol):
    """A layer of a dump or of a quantized file."""

    name: str
    n_seqs: int
    n_tokens: int


class LayersBelow:
    """What `coder` gives to coders that predict; layers come in order, and of each the keys before the values.

    layers, codecs : all of a dump or file, by (layer name, side); n_heads : J; head_dim : D
    Raises DataError where a coder predicts from a layer that is not there or has other tokens or heads.
    """

    def __init__(self, layers: Sequence[Layer], codecs: Codecs, n_heads: int, head_dim: int) -> None:
        self._layers, self._codecs = layers, codecs
        self._numbers = {layer.name: number for number, layer in enumerate(layers)}
        self._n_heads, self._head_dim = n_heads, head_dim
        self._kept: dict[tuple[int, str], _Vectors] = {}
        self._latest: tuple[tuple[str, str, int, int, int], Coder] | None = None
        self._wanted: set[tuple[int, str]] = set()
        for (name, side), codec in codecs.items():
            found = predicting(codec)
            if found is not None:
                self._want(self._numbers[name], side, codec, found[1])

    def _want(self, number: int, side: str, codec: Coder, predictor: Predictor) -> None:
        """Note what a coder predicts from."""
        here = self._layers[number]
        for below, other in (READ_FROM[source] for source in predictor.sources):
            source = self._layers[number - below] if below <= number else None
            if source is None or (source.n_seqs, source.n_tokens) != (here.n_seqs, here.n_tokens):
                raise DataError(f"{side} of layer {here.name} are predicted from a layer that has not the same tokens")
            if not below and side == other:
                raise DataError(f"{side} of layer {here.name} are predicted from themselves")
            self._wanted.add((number - below, other))
        if (codec.n_heads, codec.head_dim) != (self._n_heads, self._head_dim):
            raise DataError(f"{side} of layer {here.name} are predicted for other KV heads than there are")

    def coder(self, name: str, side: str, seq: int, start: int, stop: int) -> Coder:
        """The coder for tokens start to stop of every head of a sequence: the layer's own, with its prediction."""
        codec = self._codecs[name, side]
        found = predicting(codec)
        if found is None:
            return codec
        where = name, side, seq, start, stop
        if self._latest is None or self._latest[0] != where:  # the same for every head
            sources = [READ_FROM[source] for source in found[1].sources]
            number = self._numbers[name]
            lacking = [key for b, other in sources if (key := (number - b, other)) not in self._kept]
            if lacking:
                raise DataError(
                    f"{lacking[0][1]} of layer {lacking[0][0]:03d} could not be read, from which {side} of layer "
                    f"{name} are predicted"
                )
            given = [self._kept[number - b, other].read(seq, start, stop) for b, other in sources]
            self._latest = where, found[0].with_prediction(found[1].predict(given, np.arange(start, stop)))
        return self._latest[1]

    def wants(self, name: str, side: str) -> bool:
        """Whether something is predicted from this side of a layer."""
        return (self._numbers[name], side) in self._wanted

    def put(self, name: str, side: str, seq: int, head: int, start: int, decoded: NDArray[Any]) -> None:
        """Keep decoded vectors (n, D) of tokens start, start + 1, ... of a head, if they are wanted."""
        if not self.wants(name, side):
            return
        key = self._numbers[name], side
        if key not in self._kept:
            self._kept = {old: kept for old, kept in self._kept.items() if old[0] >= key[0] - 1}
            layer = self._layers[key[0]]
            self._kept[key] = _Vectors((layer.n_seqs, self._n_heads, layer.n_tokens, self._head_dim))
        self._kept[key].write(seq, head, start, decoded)

    def fill(self, name: str, blocks: Blocks, max_memory: int) -> None:
        """Decode a layer whole, as far as something is predicted from it.

        blocks : gives those of (coder, side, sequence, head, start, stop); max_memory : bytes that slabs may use
        """
        layer = self._layers[self._numbers[name]]
        for side in SIDES:
            if not self.wants(name, side):
                continue
            size = self.slab_tokens(name, side, 1, max_memory)
            for seq in range(layer.n_seqs):
                for start, stop in slabs(layer.n_tokens, size):
                    coder = self.coder(name, side, seq, start, stop)
                    for head in range(self._n_heads):
                        found = blocks(coder, side, seq, head, start, stop)
                        self.put(name, side, seq, head, start, coder.decode(found, head))

    def slab_tokens(self, name: str, side: str, chunk_tokens: int, max_memory: int) -> int:
        """Tokens of one slab (conversion/slabs.py); a coder that predicts has those of all heads of its sources."""
        codec = self._codecs[name, side]
        found = predicting(codec)
        n_sides = 1 + len(found[1].sources) if found else 0
        at_once = max(1, n_sides * self._n_heads // 2)  # in float32, where a slab counts 24 bytes a value
        return slab_tokens(self._head_dim * at_once, chunk_tokens, max_memory, run_tokens(codec))


class _Vectors:
    """Float32 (S, J, T, D) in a temporary file, written and read in pieces. Raises StorageError."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self._shape = shape
        self._file = tempfile.TemporaryFile(prefix="turbocode-")  # noqa: SIM115 - closed by the next line
        weakref.finalize(self, self._file.close)

    def _seek(self, seq: int, head: int, start: int) -> None:
        _, n_heads, n_tokens, head_dim = self._shape
        self._file.seek(4 * head_dim * ((seq * n_heads + head) * n_tokens + start))

    def write(self, seq: int, head: int, start: int, vectors: NDArray[Any]) -> None:
        try:
            self._seek(seq, head, start)
            self._file.write(np.ascontiguousarray(vectors, np.float32).data)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise StorageError(f"decoded keys and values cannot be kept: {error.strerror}", file=folder) from None

    def read(self, seq: int, start: int, stop: int) -> NDArray[np.float32]:
        """(J, stop - start, D)"""
        found = np.empty((self._shape[1], stop - start, self._shape[3]), np.float32)
        for head in range(self._shape[1]):
            self._seek(seq, head, start)
            self._file.readinto(found[head].data)
        return found
