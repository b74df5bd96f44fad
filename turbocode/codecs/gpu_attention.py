"""Attention over caches of packed blocks that stay in GPU memory."""

from __future__ import annotations

from typing import Any

from turbocode.codecs.codec import Codec
from turbocode.codecs.gpu_sides import gpu_sides
from turbocode.codecs.multirate_codec import MultirateCodec
from turbocode.errors import OptionError
from turbocode.kernels.attention.lookup import TableKind
from turbocode.kernels.attention.skipping import EVERYTHING, Skipping


class GpuAttention:
    """Attends over the blocks of two codecs; arrays are those of torch, CuPy or numba-cuda, as for `GpuCodec`.

    key_codec, value_codec : what the blocks are, any two of one head_dim. The basis of a multirate codec is left to the
        caller: queries come as its `rotate` gives them, outputs go to its `unrotate`, lse lacks its `logit_offset`
    is_plain : use the readable kernel, without tensor cores, which also serves the few group sizes that the fast one
        does not know (40, for head_dim 40 or 120, and multirate blocks whose head_dim is no multiple of 32): slower,
        and nearly float32 in its sums
    skipping : what may be left out because it hardly counts, see kernels/attention/skipping.py. The fast kernel
        compares weights times the norm of their value, and saves work where that holds for 32 tokens and all queries
    tables : where the fast kernel looks centroids up, on the side or sides where that is possible, instead of where it
        is fastest: kernels/attention/lookup.py. Raises OptionError at the first call if it is on neither
    """

    def __init__(
        self,
        key_codec: Codec | MultirateCodec,
        value_codec: Codec | MultirateCodec,
        *,
        is_plain: bool = False,
        skipping: Skipping = EVERYTHING,
        tables: TableKind | None = None,
    ) -> None:
        from turbocode.kernels.attention.attend_variant import is_direct
        from turbocode.kernels.attention.cuda import DecodeAttention
        from turbocode.kernels.attention.plain_cuda import PlainAttention

        self.key_codec, self.value_codec = key_codec, value_codec
        is_known = all(is_direct(codec.block_format) for codec in (key_codec, value_codec))
        self.is_plain = is_plain or not is_known
        kind = PlainAttention if self.is_plain else DecodeAttention
        self._attend = kind(*gpu_sides(key_codec, value_codec), key_codec.head_dim)
        self._attend.skipping = skipping.check()
        if isinstance(self._attend, DecodeAttention):
            self._attend.tables = tables
        elif tables is not None:
            raise OptionError(f"the plain kernel has no tables of the kind {tables.value}; only the fast one has")

    def __call__(
        self,
        queries: Any,
        key_blocks: Any,
        value_blocks: Any,
        last_token: Any,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        first_token: int = 0,
        pages: Any = None,
        gains: Any = None,
        n_blocks: int | None = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        """(output, lse) of `queries` over a packed cache: type and shape of queries, and float32 without head_dim.

        queries : (n_seqs, n_query_heads, n_rows, head_dim) of float16, bfloat16 or float32; query head h reads KV head
            h // (n_query_heads // n_kv_heads); n_rows are the new tokens of a step, one or, verifying a draft, several
        key_blocks, value_blocks : uint8 (n_seqs, n_kv_heads, n_tokens, bytes_per_vector); with pages (n_pages,
            n_kv_heads, page_tokens, bytes_per_vector), page_tokens being 16, 32, 64, ...
        last_token : int32 (n_seqs, n_rows): row r sees tokens 0..last_token, of these the last `window` (0: all); -1
            sees none and gives 0 and -inf. It is read on the GPU, so that a captured graph goes on working
        first_token : position of the first block, where the blocks are a piece of a longer cache
        pages : int32 (n_seqs, pages of the longest sequence): where each page of a sequence lies
        scale : factor on <q, k>; softcap : logits become softcap * tanh(logits / softcap), 0 for none
        gains : float32 (n_query_heads,) factors on the outputs (the V gain alpha at decode time)
        n_blocks : thread blocks that share the work, chosen from the device by default
        out, lse : where to write; a call with both allocates nothing once it has been made before
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
            n_blocks=n_blocks,
            out=out,
            lse=lse,
            stream=stream,
        )


def merge_on_gpu(outputs: Any, lses: Any, *, out: Any = None, lse: Any = None, stream: Any = None) -> tuple[Any, Any]:
    """(output, lse) over a whole cache from those of its pieces, stacked on the first axis, on their GPU.

    Pieces may be stretches of tokens, the float16 tokens that a cache keeps beside the packed ones, or what several
    GPUs found. outputs : (n_parts, ..., head_dim); lses : float32 (n_parts, ...)
    """
    from turbocode.kernels.attention.plain_cuda import merge

    return merge(outputs, lses, out=out, lse=lse, stream=stream)
