"""Packed caches with queries and the exact attention over them, for tests of attention kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from turbocode.codecs import Codec, make_codec
from turbocode.kernels.attention import reference

POISON = 0xCD


@dataclass(frozen=True)
class AttentionCase:
    """k, v : codecs; last : of each sequence and row, by default the last token; page : tokens of a page, 0 for none

    spare : tokens that the cache has room for beyond the last, which are poisoned
    """

    k: str = "turbo3"
    v: str = "turbo3"
    head_dim: int = 128
    n_seqs: int = 1
    n_heads: int = 4
    n_kv_heads: int = 1
    n_rows: int = 1
    n_tokens: int = 70
    last: tuple[tuple[int, ...], ...] | None = None
    window: int = 0
    softcap: float = 0.0
    page: int = 0
    spare: int = 0
    has_gains: bool = False
    dtype: str = "float32"
    norm: float = 2.0

    @property
    def scale(self) -> float:
        return float(self.head_dim) ** -0.5

    def codecs(self) -> tuple[Codec, Codec]:
        """Of keys and of values."""
        return make_codec(self.k, self.head_dim), make_codec(self.v, self.head_dim)

    def build(self, rng: np.random.Generator) -> dict[str, Any]:
        """What `build_blocks` gives, with output and lse as they should be, float64."""
        arrays = self.build_blocks(rng)
        key_codec, value_codec = self.codecs()
        keys, values = arrays.pop("blocks")
        output, lse = reference.decode_attention(
            arrays["queries"],
            key_codec.decode(keys),
            value_codec.decode(values),
            arrays["last_token"].astype(np.int64),
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )
        if arrays["gains"] is not None:
            output = output * arrays["gains"][None, :, None, None]
        return {**arrays, "output": output, "lse": lse}

    def build_blocks(self, rng: np.random.Generator) -> dict[str, Any]:
        """Host arrays: queries, keys, values, last_token, pages, gains; blocks: keys and values as first encoded."""
        key_codec, value_codec = self.codecs()
        shape = (self.n_seqs, self.n_kv_heads, self.n_tokens, self.head_dim)
        keys = (rng.standard_normal(shape) * self.norm).astype(np.float16)
        values = (rng.standard_normal(shape) * 30).astype(np.float16)
        values[:, :, :3] *= np.float16(0.01)  # norms of very different size, small ones first
        queries = rng.standard_normal((self.n_seqs, self.n_heads, self.n_rows, self.head_dim)).astype(self.dtype)
        blocks = [codec.encode(x)[0] for codec, x in ((key_codec, keys), (value_codec, values))]
        last = np.full((self.n_seqs, self.n_rows), self.n_tokens - 1) if self.last is None else np.array(self.last)
        gains = rng.uniform(0.5, 1.5, self.n_heads).astype(np.float32) if self.has_gains else None
        pages = None
        if self.page:
            n = -(-self.n_tokens // self.page)
            pages = rng.permutation(self.n_seqs * n).reshape(self.n_seqs, n).astype(np.int32)
            stored = [self._paged(part, pages) for part in blocks]
        else:
            stored = [self._roomy(part) for part in blocks]
        return {
            "queries": queries,
            "keys": stored[0],
            "values": stored[1],
            "last_token": last.astype(np.int32),
            "pages": pages,
            "gains": gains,
            "blocks": blocks,
        }

    def _roomy(self, blocks: Any) -> Any:
        cache = np.full((*blocks.shape[:2], self.n_tokens + self.spare, blocks.shape[-1]), POISON, np.uint8)
        cache[:, :, : self.n_tokens] = blocks
        return cache

    def _paged(self, blocks: Any, pages: Any) -> Any:
        cache = np.full((pages.size, self.n_kv_heads, self.page, blocks.shape[-1]), POISON, np.uint8)
        for seq, page in np.ndindex(*pages.shape):
            part = blocks[seq, :, page * self.page : (page + 1) * self.page]
            cache[pages[seq, page], :, : part.shape[1]] = part
        return cache

    def options(self) -> dict[str, Any]:
        """Keyword arguments of an attention call that are not arrays."""
        return {"scale": self.scale, "window": self.window, "softcap": self.softcap}


def relative_error(found: Any, expected: Any) -> float:
    """L2 norm of the difference over that of what is expected; 0 for two zeros, NaN passes nowhere."""
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(np.asarray(found, np.float64) - expected))
    return error / norm if norm > 0 else error
