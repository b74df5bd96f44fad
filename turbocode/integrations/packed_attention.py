"""A model that attends to packed blocks: the attention kernels of turbocode in the place of the model's own.

Nothing is decoded as a whole, and no query meets a key or value that is not in the cache: new tokens are encoded first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Codec, decode_attention, make_codec, merge_attention
from turbocode.errors import DataError, OptionError
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_attention import AttentionCall, Handler
from turbocode.integrations.hf_packages import torch


def attend_packed(cache: Any) -> Handler:
    """What `attention_by` needs for a cache made of `coded_layers(..., reads=False)`; on the CPU, without padding.

    The handler raises OptionError for attention that the kernels do not compute.
    """

    def handler(call: AttentionCall) -> tuple[Any, Any]:
        if call.has_sinks:
            raise OptionError(f"layer {call.layer_index} has a learned sink, which packed attention does not know")
        layer = cache.layers[call.layer_index]
        output = _attend(call, layer.sides["keys"], layer.sides["values"], layer.cumulative_length)
        return torch.from_numpy(output).to(call.queries.dtype).transpose(1, 2), None

    return handler


def _attend(call: AttentionCall, keys: CodedSide, values: CodedSide, n_seen: int) -> NDArray[np.float32]:
    """Output float32 (B, H, R, D) of the queries over every run of tokens that has a codec of its own."""
    queries = call.queries.float().cpu().numpy()
    n_seqs, _, n_rows, head_dim = queries.shape
    last = np.tile(np.arange(n_seen - n_rows, n_seen), (n_seqs, 1))
    first = n_seen - keys.n_tokens
    pieces = []
    for key_part, value_part in zip(_runs(keys, head_dim), _runs(values, head_dim), strict=True):
        if key_part[1].shape[2] != value_part[1].shape[2]:
            raise DataError("keys and values are cut into different runs of tokens")
        pieces.append(
            decode_attention(
                queries,
                *key_part,
                *value_part,
                last,
                scale=call.scale,
                window=call.window,
                softcap=call.softcap,
                first_token=first,
            )
        )
        first += key_part[1].shape[2]
    if len(pieces) == 1:
        return pieces[0][0]
    return merge_attention(np.stack([piece[0] for piece in pieces]), np.stack([piece[1] for piece in pieces]))[0]


def _runs(side: CodedSide, head_dim: int) -> list[tuple[Codec, NDArray[np.uint8]]]:
    return [
        (codec if codec is not None else make_codec("f16", head_dim), blocks.cpu().numpy())
        for codec, blocks in side.packed_parts()
    ]
