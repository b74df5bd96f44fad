"""Dumps of a chosen shape and statistics: a Gaussian body, and on request the three features that make real keys hard.

The features: a part of the keys that all tokens of a head share, a few channels far larger than the rest, and the
first tokens as attention sinks. Every block of numbers has its own random stream, so that a dump depends on its
specification alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.atomic import AnyPath
from turbocode.dumps.dump_schema import KINDS
from turbocode.dumps.dump_writer import LayerWriter, create_dump
from turbocode.dumps.metadata import LOGICAL_DTYPES, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, DumpMetadata
from turbocode.dumps.value_types import LOGICAL_BYTES
from turbocode.errors import OptionError

# One stream a block; changing this number changes every synthetic dump.
BLOCK_TOKENS = 1024
# The mean query of a head, in standard deviations a coordinate: four sinks of the default scale
# draw about a third of the attention over 3,000 tokens.
MEAN_QUERY = 0.25
SINK_VALUE_SCALE = 0.05
MAX_KEY_BIAS = 1000.0
_SHARED = 9
_POSITIONS = 8


@dataclass(frozen=True)
class SynthesisSpec:
    """Shape and statistics of a synthetic dump.

    constant_share : part of the keys' energy that is the same for all tokens of a head, in [0, 1)
    key_bias : norm of a constant vector that is added to all keys of a head, in norms of what they are without it
    outlier_channels, outlier_scale : how many channels of the keys are multiplied, and by what
    sinks, sink_scale : how many first tokens have keys along the mean query, and their norm in norms of a plain key
    n_rows : queries a head, 0 for none; seed : any non-negative integer; dtype : the dump's logical dtype
    Errors : OptionError for a field out of range.
    """

    n_layers: int = 2
    n_seqs: int = 1
    n_tokens: int = 1024
    n_query_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 128
    n_rows: int = 64
    constant_share: float = 0.0
    key_bias: float = 0.0
    outlier_channels: int = 0
    outlier_scale: float = 8.0
    sinks: int = 0
    sink_scale: float = 2.0
    seed: int = 0
    dtype: str = "float16"

    def __post_init__(self) -> None:
        limits = {
            "n_layers": (1, MAX_LAYERS),
            "n_seqs": (1, 1 << 20),
            "n_tokens": (1, 1 << 24),
            "n_query_heads": (1, MAX_HEADS),
            "n_kv_heads": (1, MAX_HEADS),
            "head_dim": (2, MAX_HEAD_DIM),
            "n_rows": (0, 1 << 20),
            "outlier_channels": (0, self.head_dim),
            "sinks": (0, self.n_tokens),
            "seed": (0, (1 << 63) - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise OptionError(f"{name} is {value!r}; allowed is {low} to {high}")
        if not 0 <= self.constant_share < 1:
            raise OptionError(f"constant_share is {self.constant_share}; allowed is 0 to below 1")
        if not 0 <= self.key_bias <= MAX_KEY_BIAS:
            raise OptionError(f"key_bias is {self.key_bias}; allowed is 0 to {MAX_KEY_BIAS:g}")
        for name in ("outlier_scale", "sink_scale"):
            if not 0 < getattr(self, name) <= 1000:
                raise OptionError(f"{name} is {getattr(self, name)}; allowed is above 0 to 1000")
        if self.n_query_heads % self.n_kv_heads:
            raise OptionError(f"n_query_heads {self.n_query_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.dtype not in LOGICAL_DTYPES:
            raise OptionError(f"dtype {self.dtype!r} is not known; allowed are {', '.join(LOGICAL_DTYPES)}")

    @property
    def n_bytes(self) -> int:
        """Bytes of keys, values and queries, which is what `advance` of `synthesize` adds up to."""
        vectors = 2 * self.n_kv_heads * self.n_tokens + self.n_query_heads * self.n_rows
        return self.n_layers * self.n_seqs * vectors * self.head_dim * LOGICAL_BYTES[self.dtype]


def synthesize(
    path: AnyPath, spec: SynthesisSpec, *, force: bool = False, advance: Callable[[int], None] | None = None
) -> None:
    """Returns nothing; writes the dump that `spec` describes, one block of BLOCK_TOKENS tokens in memory at a time.

    advance : called with the number of bytes just written. Errors : as `create_dump`.
    """
    metadata = DumpMetadata(
        logical_dtype=spec.dtype,
        n_layers=spec.n_layers,
        n_query_heads=spec.n_query_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        attention_scale=spec.head_dim**-0.5,
        rope_theta=0.0,
        model="synthetic",
        source=" ".join(f"{name}={value}" for name, value in asdict(spec).items()),
    )
    with create_dump(path, metadata, force=force, expected_bytes=spec.n_bytes) as writer:
        for number in range(spec.n_layers):
            layer = writer.add_layer(
                f"{number:03d}",
                layer_index=number,
                n_seqs=spec.n_seqs,
                n_tokens=spec.n_tokens,
                n_rows=spec.n_rows,
            )
            for kind in KINDS:
                _write_kind(layer, spec, number, kind, advance)
            if spec.n_rows:
                layer.write_positions(_positions(spec, number))


def _write_kind(
    layer: LayerWriter, spec: SynthesisSpec, number: int, kind: str, advance: Callable[[int], None] | None
) -> None:
    n_heads, length = (spec.n_query_heads, spec.n_rows) if kind == "queries" else (spec.n_kv_heads, spec.n_tokens)
    for seq, head in np.ndindex(spec.n_seqs, n_heads):
        for start in range(0, length, BLOCK_TOKENS):
            block = _block(spec, number, kind, seq, head, start, min(BLOCK_TOKENS, length - start))
            layer.write(kind, seq, head, start, block)
            if advance is not None:
                advance(block.size * LOGICAL_BYTES[spec.dtype])


def _block(
    spec: SynthesisSpec, layer: int, kind: str, seq: int, head: int, start: int, count: int
) -> NDArray[np.float32]:
    """Keys, values or queries, float32 (count, head_dim), of coordinates of about unit variance."""
    rng = _stream(spec, layer, KINDS.index(kind), seq, head, start // BLOCK_TOKENS)
    block = rng.standard_normal((count, spec.head_dim), dtype=np.float32)
    kv_head = head // (spec.n_query_heads // spec.n_kv_heads) if kind == "queries" else head
    mean_query, constant, outliers = _shared_by_head(spec, layer, kv_head)
    if kind == "queries":
        return block + mean_query
    is_sink = np.arange(start, start + count) < spec.sinks
    if kind == "values":
        block[is_sink] *= np.float32(SINK_VALUE_SCALE)
        return block
    share = spec.constant_share
    block = np.float32(math.sqrt(1 - share)) * block + np.float32(math.sqrt(share)) * constant
    block[:, outliers] *= np.float32(spec.outlier_scale)
    if spec.key_bias:
        block += np.float32(spec.key_bias) * constant
    # |mean_query| is MEAN_QUERY times the norm of a plain key, and sink_scale counts in such norms.
    block[is_sink] = np.float32(spec.sink_scale / MEAN_QUERY) * mean_query
    return block


def _shared_by_head(
    spec: SynthesisSpec, layer: int, kv_head: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """What all tokens of a head share: mean query and constant key, (head_dim,) of mean square 1; outlier channels."""
    rng = _stream(spec, layer, _SHARED, 0, kv_head, 0)
    directions = rng.standard_normal((2, spec.head_dim), dtype=np.float32)
    directions /= np.sqrt(np.mean(np.square(directions), axis=1, keepdims=True))
    channels = rng.permutation(spec.head_dim)[: spec.outlier_channels]
    return np.float32(MEAN_QUERY) * directions[0], directions[1], channels


def _positions(spec: SynthesisSpec, layer: int) -> NDArray[np.int64]:
    """Sorted positions, int64 (n_seqs, n_rows), in the last half of the tokens."""
    rng = _stream(spec, layer, _POSITIONS, 0, 0, 0)
    return np.sort(rng.integers(spec.n_tokens // 2, spec.n_tokens, (spec.n_seqs, spec.n_rows)), axis=1)


def _stream(spec: SynthesisSpec, *address: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(spec.seed, spawn_key=address)))
