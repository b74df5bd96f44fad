"""A model that attends to packed blocks: the attention kernels of turbocode in the place of the model's own.

Nothing is decoded as a whole, and no query meets a key or value that is not in the cache: new tokens are encoded first.
A model on a GPU is attended by the GPU's kernels, on the blocks where they are.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Codec, decode_attention, make_codec, merge_attention
from turbocode.errors import DataError, OptionError
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_attention import AttentionCall, Handler
from turbocode.integrations.hf_packages import torch
from turbocode.integrations.packed_on_gpu import PackedOnGpu, Run


def attend_packed(cache: Any) -> Handler:
    """What `attention_by` needs for a cache made of `coded_layers(..., reads=False)`, without padding.

    On the CPU outputs are nearly those of float32. On a GPU the kernels multiply in float16: within 1e-3 (relative L2)
    of attention over the decoded values. The handler raises OptionError for attention that the kernels do not compute.
    """
    on_gpu = PackedOnGpu()

    def handler(call: AttentionCall) -> tuple[Any, Any]:
        if call.has_sinks:
            raise OptionError(f"layer {call.layer_index} has a learned sink, which packed attention does not know")
        layer = cache.layers[call.layer_index]
        runs = paired_runs(layer.sides["keys"], layer.sides["values"], call.queries.shape[-1])
        if uses_gpu(call.queries):
            return on_gpu.attend(call, runs, layer.cumulative_length).transpose(1, 2), None
        output = _attend(call, runs, layer.cumulative_length)
        return torch.from_numpy(output).to(call.queries.dtype).transpose(1, 2), None

    return handler


def uses_gpu(queries: Any) -> bool:
    """Whether attention of these queries is computed on a GPU."""
    return bool(queries.is_cuda)


def paired_runs(keys: CodedSide, values: CodedSide, head_dim: int) -> list[tuple[Run, Run]]:
    """The runs of tokens that have a codec of their own, keys beside values: (codec, blocks (B, J, T, bytes)) each.

    Raises DataError where keys and values are cut into different runs.
    """
    pairs = list(zip(_runs(keys, head_dim), _runs(values, head_dim), strict=True))
    if any(key_run[1].shape[2] != value_run[1].shape[2] for key_run, value_run in pairs):
        raise DataError("keys and values are cut into different runs of tokens")
    return pairs


def _attend(call: AttentionCall, runs: list[tuple[Run, Run]], n_seen: int) -> NDArray[np.float32]:
    """Output float32 (B, H, R, D) of the queries, whose last row is token n_seen - 1, over all runs."""
    queries = call.queries.float().cpu().numpy()
    n_seqs, _, n_rows, _ = queries.shape
    last = np.tile(np.arange(n_seen - n_rows, n_seen), (n_seqs, 1))
    first = n_seen - sum(key_run[1].shape[2] for key_run, _ in runs)
    pieces = []
    for (key_codec, key_blocks), (value_codec, value_blocks) in runs:
        pieces.append(
            decode_attention(
                queries,
                key_codec,
                key_blocks.cpu().numpy(),
                value_codec,
                value_blocks.cpu().numpy(),
                last,
                scale=call.scale,
                window=call.window,
                softcap=call.softcap,
                first_token=first,
            )
        )
        first += key_blocks.shape[2]
    if len(pieces) == 1:
        return pieces[0][0]
    return merge_attention(np.stack([piece[0] for piece in pieces]), np.stack([piece[1] for piece in pieces]))[0]


@functools.cache
def _float16(head_dim: int) -> Codec:
    return make_codec("f16", head_dim)


def _runs(side: CodedSide, head_dim: int) -> list[Run]:
    return [(_float16(head_dim) if codec is None else codec, blocks) for codec, blocks in side.packed_parts()]
