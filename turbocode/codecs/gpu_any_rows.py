"""Attention over packed blocks in GPU memory by the kernel that suits the number of query rows.

Decode attention divides a cache's tokens among all of a GPU's multiprocessors and goes through them once for every 16
rows of a KV head; prefill goes through them once for 128, but each of its blocks alone.
"""

from __future__ import annotations

from typing import Any

from turbocode.codecs.codec import Codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.gpu_prefill import GpuPrefill, has_prefill
from turbocode.codecs.multirate_codec import MultirateCodec

MOST_IN_A_STEP = 8  # rows of a step, which never are a prompt
BLOCK_ROWS = 128  # query rows of a block of prefill
ENOUGH_BLOCKS = 0.75  # of prefill for each multiprocessor, from which on it is faster: docs/log.md


class AnyRows:
    """GpuAttention for a few new tokens, GpuPrefill for a prompt that keeps the GPU busy, where the codecs have it."""

    def __init__(self, key_codec: Codec | MultirateCodec, value_codec: Codec | MultirateCodec) -> None:
        self.key_codec, self.value_codec = key_codec, value_codec
        self._step = GpuAttention(key_codec, value_codec)
        self._prompt: GpuPrefill | None = None
        self._has_prefill = has_prefill(key_codec, value_codec)

    def is_prompt(self, n_seqs: int, n_heads: int, n_rows: int, n_kv_heads: int) -> bool:
        """Whether so many rows of so many query heads are attended by GpuPrefill: full blocks, enough for the GPU."""
        from turbocode.kernels._cuda import multiprocessors

        rows = n_heads // n_kv_heads * n_rows
        if not self._has_prefill or n_rows <= MOST_IN_A_STEP or rows < BLOCK_ROWS:
            return False
        return n_seqs * n_kv_heads * -(-rows // BLOCK_ROWS) >= ENOUGH_BLOCKS * multiprocessors()

    def __call__(
        self, queries: Any, key_blocks: Any, value_blocks: Any, last_token: Any, **options: Any
    ) -> tuple[Any, Any]:
        """What both give; options : those that both take. A prompt allocates an array of the queries' size."""
        is_prompt = False  # and of arrays of other shapes the step says what is wrong
        if len(queries.shape) == len(key_blocks.shape) == 4 and key_blocks.shape[1]:
            n_seqs, n_heads, n_rows, _ = queries.shape
            is_prompt = self.is_prompt(n_seqs, n_heads, n_rows, key_blocks.shape[1])
        if not is_prompt:
            return self._step(queries, key_blocks, value_blocks, last_token, **options)
        if self._prompt is None:
            assert isinstance(self.key_codec, Codec) and isinstance(self.value_codec, Codec)
            self._prompt = GpuPrefill(self.key_codec, self.value_codec)
        return self._prompt(queries, key_blocks, value_blocks, last_token, **options)
