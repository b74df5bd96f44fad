"""How far attention on a GPU is from float64 attention over the decoded values, on some heads of a large cache.

Blocks are decoded by the exact decoder, tile by tile, and attended to in float64: by torch on the GPU where torch is
there, by NumPy else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.evaluation.gpu_memory import GpuMemory

TILE_TOKENS = 1 << 16
MAX_HEADS = 4  # KV heads that are looked at, each of some sequence
# Relative L2 error that float16 tensor cores may make, and sums in float32 (both round outputs to float16).
ERROR_BOUND = 1e-3

Tile = Callable[[int, int], Any]


def some_heads(n_seqs: int, n_kv_heads: int, seed: int) -> list[tuple[int, int]]:
    """(sequence, KV head) of up to MAX_HEADS heads, ascending; all of them if there are no more."""
    n = n_seqs * n_kv_heads
    chosen = np.random.default_rng(seed).permutation(n)[:MAX_HEADS]
    return [divmod(int(number), n_kv_heads) for number in sorted(chosen)]


def exact_output(
    module: Any, queries: Any, keys: Tile, values: Tile, n_tokens: int, scale: float, tile: int = TILE_TOKENS
) -> Any:
    """Float64 attention (n_rows, head_dim) of float64 `queries` (n_rows, head_dim) over all tokens.

    module : numpy or torch, whose arrays these are; keys, values : from (first, stop) to float64 (stop - first,
    head_dim), taken once each, in order, keys first
    """
    top: Any = None
    total: Any = None
    output: Any = None
    for start in range(0, n_tokens, tile):
        stop = min(start + tile, n_tokens)
        s = scale * (queries @ keys(start, stop).T)
        peak = module.amax(s, -1)
        new_top = peak if top is None else module.maximum(top, peak)
        weights = module.exp(s - new_top[:, None])
        added, attended = weights.sum(-1), weights @ values(start, stop)
        if top is None:
            total, output = added, attended
        else:
            kept = module.exp(top - new_top)
            total, output = total * kept + added, output * kept[:, None] + attended
        top = new_top
    return output / total[:, None]


class ExactAttention:
    """Float64 attention over some heads of packed caches, and how far outputs are from it.

    memory : where the arrays are; heads : as `some_heads` gives them; queries : (n_seqs, n_heads, 1, head_dim)
    """

    def __init__(
        self, memory: GpuMemory, heads: Sequence[tuple[int, int]], queries: Any, n_kv_heads: int, scale: float
    ) -> None:
        self._memory, self._heads, self._scale = memory, heads, scale
        self._queries = list(self._rows(memory.host(queries), n_kv_heads))
        self._n_kv_heads = n_kv_heads

    def outputs(self, key_codec: Codec, key_blocks: Any, value_codec: Codec, value_blocks: Any) -> NDArray[np.float64]:
        """(heads, query heads of each, head_dim) float64."""
        found, torch = [], self._memory.torch
        self._memory.gpu.wait()
        for queries, (seq, head) in zip(self._queries, self._heads, strict=True):
            keys, values = (
                self._tiles(codec.for_head(head), blocks, seq, head)
                for codec, blocks in ((key_codec, key_blocks), (value_codec, value_blocks))
            )
            n_tokens = key_blocks.shape[2]
            if torch is None:
                found.append(exact_output(np, queries, keys, values, n_tokens, self._scale))
            else:
                rows = torch.from_numpy(queries).to(self._memory.device)
                found.append(exact_output(torch, rows, keys, values, n_tokens, self._scale).cpu().numpy())
        return np.stack(found)

    def _tiles(self, codec: Codec, blocks: Any, seq: int, head: int) -> Tile:
        memory = self._memory
        if memory.torch is None:
            stored = memory.host(blocks)[seq, head]  # the whole cache is copied: only without torch
            return lambda start, stop: codec.decode(stored[start:stop]).astype(np.float64)
        decoder, torch = GpuCodec(codec), memory.torch

        def tile(start: int, stop: int) -> Any:
            part = blocks[seq, head, start:stop].clone()
            return decoder.decode(part, dtype="float32").to(torch.float64)

        return tile

    def error(self, out: Any, expected: NDArray[np.float64]) -> float:
        """Relative L2 error of an attention's output (n_seqs, n_heads, 1, head_dim), of the heads that were chosen."""
        found = np.stack(list(self._rows(self._memory.host(out), self._n_kv_heads)))
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    def _rows(self, rows: NDArray[Any], n_kv_heads: int) -> Iterator[NDArray[np.float64]]:
        per_head = rows.shape[1] // n_kv_heads
        for seq, head in self._heads:
            yield rows[seq, head * per_head : (head + 1) * per_head, 0].astype(np.float64)
