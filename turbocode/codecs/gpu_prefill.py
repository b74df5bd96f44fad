"""Attention of a long prompt over its own packed cache in GPU memory."""

from __future__ import annotations

from typing import Any

from turbocode.codecs.codec import Codec
from turbocode.codecs.gpu_sides import gpu_sides
from turbocode.codecs.multirate_codec import MultirateCodec


def has_prefill(key_codec: Codec | MultirateCodec, value_codec: Codec | MultirateCodec) -> bool:
    """Whether there is a `GpuPrefill` of two codecs of one head_dim."""
    from turbocode.kernels.attention.prefill_cuda import is_known_side

    return all(isinstance(c, Codec) and is_known_side(c.block_format, c.head_dim) for c in (key_codec, value_codec))


class GpuPrefill:
    """Attends a prompt over the blocks of two codecs; arrays are those of torch, CuPy or numba-cuda, as for `GpuCodec`.

    key_codec, value_codec : what the blocks are, any two of one head_dim, a multiple of 16 up to 256
    Raises OptionError for other head_dim, and for groups of 40 values.
    """

    def __init__(self, key_codec: Codec, value_codec: Codec) -> None:
        from turbocode.kernels.attention.prefill_cuda import PrefillAttention

        self.key_codec, self.value_codec = key_codec, value_codec
        self._attend = PrefillAttention(*gpu_sides(key_codec, value_codec), key_codec.head_dim)

    def __call__(
        self,
        queries: Any,
        key_blocks: Any,
        value_blocks: Any,
        last_token: Any = None,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        first_token: int = 0,
        pages: Any = None,
        gains: Any = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        """(output, lse) of `queries` over a packed cache: type and shape of queries, and float32 without head_dim.

        queries : (n_seqs, n_query_heads, n_rows, head_dim) of float16, bfloat16 or float32; query head h reads KV head
            h // (n_query_heads // n_kv_heads); values beyond what float16 holds are not allowed
        key_blocks, value_blocks : uint8 (n_seqs, n_kv_heads, n_tokens, bytes_per_vector); with pages (n_pages,
            n_kv_heads, page_tokens, bytes_per_vector), page_tokens being 16, 32, 64, ...
        last_token : int32 (n_seqs, n_rows): row r sees tokens 0..last_token, of these the last `window` (0: all); -1
            sees none and gives 0 and -inf. None: the rows are the cache's last tokens, in order (causal attention)
        first_token : position of the first block, where the blocks are a piece of a longer cache (with last_token)
        pages : int32 (n_seqs, pages of the longest sequence): where each page of a sequence lies (with last_token)
        scale : factor on <q, k>, above 0; softcap : logits become softcap * tanh(logits / softcap), 0 for none
        gains : float32 (n_query_heads,) factors on the outputs
        Raises OptionError for shapes and dtypes that do not fit.
        """
        return self._attend(
            queries,
            key_blocks,
            value_blocks,
            last_token,
            scale=scale,
            window=window,
            softcap=softcap,
            first_token=first_token,
            pages=pages,
            gains=gains,
            out=out,
            lse=lse,
            stream=stream,
        )
