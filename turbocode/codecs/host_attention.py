"""Attention on a GPU over blocks that lie in host memory: for checking and comparing, not for speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.attention import by_head, with_offsets, without_unseen
from turbocode.codecs.codec import Codec
from turbocode.codecs.coder import Coder, plain_codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.multirate_codec import MultirateCodec
from turbocode.codecs.transformed import TransformedCodec
from turbocode.errors import OptionError

MAX_KEPT = 64  # pairs of codecs whose tables stay on the GPU


class HostAttention:
    """What `decode_attention` computes, with the same arguments, by the kernels of one GPU.

    The fast kernels multiply in float16: outputs are within 1e-3 of float64 attention over the decoded values (relative
    L2), where the CPU's are within 1e-5.
    """

    def __init__(self, device: int) -> None:
        from turbocode.kernels._graph import Gpu

        self._gpu = Gpu(device)
        self._attentions: dict[tuple[int, int], tuple[GpuAttention, Any, Any]] = {}

    def __call__(
        self,
        queries: NDArray[Any],
        key_codec: Coder,
        key_blocks: NDArray[np.uint8],
        value_codec: Coder,
        value_blocks: NDArray[np.uint8],
        last_token: NDArray[np.integer[Any]],
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        first_token: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(output, lse) float32. Raises OptionError for shapes that disagree, and for what the GPU cannot attend to."""
        queries, n_kv_heads = np.asarray(queries, np.float32), key_blocks.shape[1]
        offsets = by_head(key_codec, key_codec.logit_offset, queries, n_kv_heads)
        if softcap and offsets is not None:
            raise OptionError(
                f"{key_codec.name} under a softcap needs its means added to logits, which the GPU does not do",
                hint="--device cpu",
            )
        if isinstance(key_codec, TransformedCodec):
            queries = by_head(key_codec, key_codec.to_queries, queries, n_kv_heads)
        elif isinstance(key_codec, MultirateCodec):
            queries = by_head(key_codec, key_codec.rotate, queries, n_kv_heads)
        given = queries, key_blocks, value_blocks, np.asarray(last_token, np.int32)
        arrays = [self._on_gpu(array) for array in given]
        out, lse = (self._gpu.empty(shape, "float32") for shape in (queries.shape, queries.shape[:-1]))
        self._attention(_plain(key_codec), _plain(value_codec))(
            *arrays,
            scale=scale,
            window=window,
            softcap=softcap,
            first_token=first_token or 0,
            out=out,
            lse=lse,
            stream=self._gpu.stream,
        )
        found = np.empty(queries.shape, np.float32), np.empty(queries.shape[:-1], np.float32)
        for source, target in zip((out, lse), found, strict=True):
            self._gpu.download(source, target)
        self._gpu.wait()
        output, sums = found
        if isinstance(value_codec, TransformedCodec):
            output = without_unseen(by_head(value_codec, value_codec.to_outputs, output, n_kv_heads), sums)
        elif isinstance(value_codec, MultirateCodec):
            output = without_unseen(by_head(value_codec, value_codec.unrotate, output, n_kv_heads), sums)
        return output, with_offsets(sums, offsets, scale)

    def _on_gpu(self, host: NDArray[Any]) -> Any:
        array = self._gpu.empty(host.shape, str(host.dtype))
        self._gpu.upload(np.ascontiguousarray(host), array)
        self._gpu.wait()
        return array

    def _attention(self, key_codec: Codec | MultirateCodec, value_codec: Codec | MultirateCodec) -> GpuAttention:
        key = id(key_codec), id(value_codec)
        if key not in self._attentions:
            if len(self._attentions) >= MAX_KEPT:
                self._attentions.clear()
            # With its codecs, so that no other codec gets their number.
            self._attentions[key] = GpuAttention(key_codec, value_codec), key_codec, value_codec
        return self._attentions[key][0]


def _plain(coder: Coder) -> Codec | MultirateCodec:
    codec = coder if isinstance(coder, MultirateCodec) else plain_codec(coder)
    if codec is None:
        raise OptionError(f"the GPU does not attend to blocks of {coder.name}", hint="--device cpu")
    return codec
