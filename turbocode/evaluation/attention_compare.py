"""Packed attention against the exact attention of a dump, layer by layer: the proof of a codec's quality."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Coder, EncodeReport, coder_from_description, has_packed_attention, run_tokens
from turbocode.codecs.attention import decode_attention, merge_attention
from turbocode.codecs.value_gain import ValueGain
from turbocode.conversion.layers_below import Blocks, LayersBelow
from turbocode.conversion.quantize import QuantizePlan
from turbocode.conversion.slabs import slabs
from turbocode.dumps import Dump, DumpLayer, QuantizedFile
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_error import HeadComparison
from turbocode.formats.sides import SIDES

MIN_TILE_TOKENS, MAX_TILE_TOKENS = 64, 4096
_FLOAT64_ARRAYS_PER_ROW = 10  # logits, weights and temporaries of a tile that exist at once
_FLOAT64_ARRAYS_PER_TOKEN = 8  # exact and coded keys and values in float32 and float64
TAIL = 99.9  # percentile that stands for the tail of the KL divergence

Attend = Callable[..., tuple[NDArray[np.float32], NDArray[np.float32]]]  # with the arguments of decode_attention


class BlockSource(Protocol):
    """Where the blocks of a comparison come from."""

    def codec(self, layer: str, side: str) -> Coder: ...

    def blocks(
        self, coder: Coder, layer: str, side: str, seq: int, head: int, start: int, exact: NDArray[Any]
    ) -> NDArray[np.uint8]:
        """Those of tokens start, start + 1, ..., which are `exact`; coder : the codec, ready for these tokens."""
        ...


@dataclass(frozen=True)
class EncodedNow:
    """Blocks encoded from the dump as they are needed."""

    plan: QuantizePlan

    def codec(self, layer: str, side: str) -> Coder:
        return self.plan.codecs[layer, side]

    def blocks(
        self, coder: Coder, layer: str, side: str, seq: int, head: int, start: int, exact: NDArray[Any]
    ) -> NDArray[np.uint8]:
        return coder.encode(exact, head)[0]


class StoredBlocks:
    """Blocks read from a quantized file. Raises DataError if it was not made from `dump`."""

    def __init__(self, quantized: QuantizedFile, dump: Dump) -> None:
        if quantized.dump_sha256 != dump.content_sha256():
            raise DataError(f"was not made from {dump.path}: the SHA-256 of the dump differs", file=quantized.path)
        self._sides = {(layer.name, side): layer.side(side) for layer in quantized.layers for side in SIDES}
        self._codecs = {
            key: coder_from_description(side.codec, side.arrays(), file=quantized.path)
            for key, side in self._sides.items()
        }

    def codec(self, layer: str, side: str) -> Coder:
        return self._codecs[layer, side]

    def blocks(
        self, coder: Coder, layer: str, side: str, seq: int, head: int, start: int, exact: NDArray[Any]
    ) -> NDArray[np.uint8]:
        return self._sides[layer, side].read(seq, head, start, start + len(exact))


@dataclass
class _Figures:
    """Per-row figures of the query heads of one layer, or of all."""

    kl: list[NDArray[np.float64]] = field(default_factory=list)
    logit_variance: list[NDArray[np.float64]] = field(default_factory=list)
    same_top: list[NDArray[np.float64]] = field(default_factory=list)
    squares: dict[str, float] = field(default_factory=dict)
    head_kl: dict[int, list[float]] = field(default_factory=dict)
    products: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def add_square(self, name: str, difference: NDArray[Any]) -> None:
        self.squares[name] = self.squares.get(name, 0.0) + float((difference * difference).sum())

    def add_products(self, head: int, exact: NDArray[Any], coded: NDArray[Any]) -> None:
        """Of the outputs of a query head: <exact, coded> and |coded|^2, of which the best gain follows."""
        sums = np.array([(exact * coded).sum(), np.square(coded, dtype=np.float64).sum()])
        self.products[head] = self.products.get(head, 0.0) + sums

    def best_gain(self) -> tuple[float, float]:
        """(the gain of all heads with the least output error, that error)."""
        product, square = sum(self.products.values(), np.zeros(2))
        of = self.squares["output"]
        if not (square and of):
            return 1.0, 0.0
        return float(product / square), float(np.sqrt(max(0.0, 1 - product * product / square / of)))

    def merge(self, other: _Figures) -> None:
        self.kl += other.kl
        self.logit_variance += other.logit_variance
        self.same_top += other.same_top
        for head, sums in other.products.items():
            self.products[head] = self.products.get(head, 0.0) + sums
        for name, value in other.squares.items():
            self.squares[name] = self.squares.get(name, 0.0) + value

    def _relative(self, error: str, of: str) -> float:
        return float(np.sqrt(self.squares[error] / self.squares[of])) if self.squares[of] else 0.0

    def to_json(self) -> dict[str, Any]:
        kl = np.concatenate(self.kl)
        best, error = self.best_gain()
        return {
            "n_rows": int(kl.size),
            "logit_error": float(np.sqrt(np.concatenate(self.logit_variance).mean())),
            "kl_mean": float(kl.mean()),
            "kl_median": float(np.median(kl)),
            "kl_p999": float(np.percentile(kl, TAIL)),
            "kl_max": float(kl.max()),
            "same_top": float(np.concatenate(self.same_top).mean()),
            "output_error": self._relative("packed", "output"),
            "output_error_k": self._relative("k", "output"),
            "output_error_v": self._relative("v", "output"),
            "kernel_error": self._relative("kernel", "output_kv") if "kernel" in self.squares else None,
            "best_v_gain": best,
            "best_v_gain_error": error,
        }


def compare_attention(
    dump: Dump,
    source: BlockSource,
    *,
    max_memory: int,
    attend: Attend = decode_attention,
    advance: Callable[[int], None] | None = None,
    gain: ValueGain = ValueGain(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """How attention over the blocks of `source` differs from the exact attention of `dump`; a JSON object.

    attend : computes the packed attention, on the CPU by default (codecs/host_attention.py: on a GPU)
    advance : called with the number of tokens just compared (per KV head)
    gain : factor on all outputs of coded values
    Figures, per layer and in total: logit_error (RMS of the logit error around its row mean), kl_mean / kl_median /
    kl_p999 / kl_max of KL(exact || coded) in nats, same_top (share of rows whose strongest token stays),
    output_error (relative L2 of the packed kernel's output), output_error_k and output_error_v (only K, only V coded),
    kernel_error (packed kernel against float64 attention over the decoded values; None where no kernel reads the
    blocks, whose decoded values then make the output), worst_head by mean KL, nmse_k and
    nmse_v (over the tokens that some query row sees). best_v_gain is the one factor on the packed outputs, before
    `gain`, that makes their error the least, best_v_gain_error that error; best_v_gain_by_head of each query head.
    Raises DataError if the dump has no queries.
    """
    if not any(layer.n_rows for layer in dump.layers):
        raise DataError("the dump holds no queries, so it has no attention to compare", file=dump.path)
    total, rows = _Figures(), []
    codecs = {(layer.name, side): source.codec(layer.name, side) for layer in dump.layers for side in SIDES}
    below = LayersBelow(dump.layers, codecs, dump.metadata.n_kv_heads, dump.metadata.head_dim)
    for layer in dump.layers:
        below.fill(layer.name, _all_blocks(layer, source), max_memory)
        if not layer.n_rows:
            continue
        figures, costs = _compare_layer(dump, layer, source, below, max_memory, attend, advance, gain)
        total.merge(figures)
        head_means = {head: float(np.mean(values)) for head, values in figures.head_kl.items()}
        worst = max(head_means, key=lambda head: head_means[head])
        k, v = (codecs[layer.name, side] for side in SIDES)
        rows.append(
            {
                "layer": layer.name,
                "k": k.name,
                "v": v.name,
                "bits_per_value": (k.bits_per_value + v.bits_per_value) / 2,
                "nmse_k": costs["keys"].nmse,
                "nmse_v": costs["values"].nmse,
                **figures.to_json(),
                "best_v_gain_by_head": [
                    float(product / square) if square else 1.0
                    for _, (product, square) in sorted(figures.products.items())
                ],
                "worst_head": {"head": worst, "kl_mean": head_means[worst]},
            }
        )
    bits = float(np.mean([row["bits_per_value"] for row in rows]))
    return {"dump": dump.path, "layers": rows, "total": {"bits_per_value": bits, **total.to_json()}}


def _all_blocks(layer: DumpLayer, source: BlockSource) -> Blocks:
    """The blocks of a whole layer, for LayersBelow.fill."""

    def blocks(coder: Coder, side: str, seq: int, head: int, start: int, stop: int) -> NDArray[np.uint8]:
        return source.blocks(coder, layer.name, side, seq, head, start, layer.read(side, seq, head, start, stop))

    return blocks


def _compare_layer(
    dump: Dump,
    layer: DumpLayer,
    source: BlockSource,
    below: LayersBelow,
    max_memory: int,
    attend: Attend,
    advance: Callable[[int], None] | None,
    gain: ValueGain,
) -> tuple[_Figures, dict[str, EncodeReport]]:
    metadata = dump.metadata
    q_per_kv = metadata.n_query_heads // metadata.n_kv_heads
    figures, costs = _Figures(), {side: EncodeReport() for side in SIDES}
    positions = layer.query_positions()
    tile = tile_tokens(q_per_kv * layer.n_rows, metadata.head_dim, max_memory)
    for seq in range(layer.n_seqs):
        last = np.tile(positions[seq], q_per_kv)
        for head in range(metadata.n_kv_heads):
            codecs = {side: source.codec(layer.name, side).for_head(head) for side in SIDES}
            heads = range(head * q_per_kv, (head + 1) * q_per_kv)
            queries = np.stack([layer.read("queries", seq, h) for h in heads]).astype(np.float64)
            comparison = HeadComparison(
                queries.reshape(-1, metadata.head_dim),
                last,
                scale=metadata.attention_scale,
                window=layer.window,
                softcap=layer.softcap,
            )
            is_packed = all(has_packed_attention(codec) for codec in codecs.values())
            packed = _PackedHead(queries, positions[seq], metadata.attention_scale, layer, attend)
            run = math.lcm(*(run_tokens(codec) for codec in codecs.values()))
            for start, stop in slabs(int(positions[seq].max()) + 1, max(tile // run, 1) * run):
                exact, decoded, blocks = {}, {}, {}
                # To the end of a run: its tokens are decoded together, those that no row sees too.
                end = min(-(-stop // run) * run, layer.n_tokens)
                for side in SIDES:
                    coder = below.coder(layer.name, side, seq, start, end)
                    whole = layer.read(side, seq, head, start, end)
                    blocks[side] = source.blocks(coder, layer.name, side, seq, head, start, whole)
                    decoded[side] = coder.decode(blocks[side], head)[: stop - start]
                    exact[side] = whole[: stop - start]
                    costs[side].add(EncodeReport.of_vectors(exact[side], decoded[side])[0])
                comparison.add(start, exact["keys"], exact["values"], decoded["keys"], decoded["values"])
                if is_packed:
                    packed.add(start, codecs, blocks)
                if advance:
                    advance(stop - start)
            result = comparison.result()
            plain = packed.output().reshape(-1, metadata.head_dim) if is_packed else result["output_kv"]
            seen = positions[seq] + 1
            seen = np.minimum(seen, layer.window) if layer.window else seen
            factor = gain.of(seen, metadata.n_query_heads)[heads.start : heads.stop].reshape(-1, 1)
            output = factor * plain
            result["output_kv"], result["output_v"] = factor * result["output_kv"], factor * result["output_v"]
            figures.kl.append(result["kl"])
            figures.logit_variance.append(result["logit_variance"])
            figures.same_top.append(result["same_top"])
            figures.add_square("output", result["output"])
            figures.add_square("output_kv", result["output_kv"])
            figures.add_square("packed", output - result["output"])
            if is_packed:
                figures.add_square("kernel", output - result["output_kv"])
            figures.add_square("k", result["output_k"] - result["output"])
            figures.add_square("v", result["output_v"] - result["output"])
            for index, h in enumerate(heads):
                rows = slice(index * layer.n_rows, (index + 1) * layer.n_rows)
                figures.head_kl.setdefault(h, []).append(float(result["kl"][rows].mean()))
                figures.add_products(h, result["output"][rows], plain[rows])
    return figures, costs


class _PackedHead:
    """The packed kernel over the slabs of one KV head, merged by log-sum-exp as a cache in pieces is."""

    def __init__(
        self, queries: NDArray[np.float64], positions: NDArray[np.int64], scale: float, layer: DumpLayer, attend: Attend
    ) -> None:
        self._attend = attend
        self._queries = queries[None].astype(np.float32)
        self._positions, self._scale, self._layer = positions[None], scale, layer
        self._merged: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def add(self, start: int, codecs: dict[str, Coder], blocks: dict[str, NDArray[np.uint8]]) -> None:
        """Attend over the blocks (n, bytes_per_vector) of tokens start, start + 1, ..."""
        piece = self._attend(
            self._queries,
            codecs["keys"],
            blocks["keys"][None, None],
            codecs["values"],
            blocks["values"][None, None],
            self._positions,
            scale=self._scale,
            window=self._layer.window,
            softcap=self._layer.softcap,
            first_token=start,
        )
        pieces = [piece] if self._merged is None else [self._merged, piece]
        self._merged = merge_attention(np.stack([p[0] for p in pieces]), np.stack([p[1] for p in pieces]))

    def output(self) -> NDArray[np.float32]:
        """The merged output, float32 (1, n_query_heads of this KV head, n_rows, head_dim)."""
        assert self._merged is not None
        return self._merged[0]


def tile_tokens(n_rows: int, head_dim: int, max_memory: int) -> int:
    """Tokens compared at once under a memory limit. Raises OptionError where even a small tile does not fit."""
    per_token = 8 * (n_rows * _FLOAT64_ARRAYS_PER_ROW + head_dim * _FLOAT64_ARRAYS_PER_TOKEN)
    tokens = min(MAX_TILE_TOKENS, max_memory // per_token)
    if tokens < MIN_TILE_TOKENS:
        raise OptionError(
            f"{max_memory} bytes of memory do not hold {MIN_TILE_TOKENS} tokens for {n_rows} query rows",
            hint=f"--max-memory {MIN_TILE_TOKENS * per_token} is enough",
        )
    return int(tokens)
