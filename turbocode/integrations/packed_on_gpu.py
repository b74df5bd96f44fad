"""Attention of a model on a GPU over the packed blocks of one layer's cache, run by run, merged by log-sum-exp."""

from __future__ import annotations

from typing import Any

from turbocode.codecs import Codec, Coder
from turbocode.codecs.gpu_attention import GpuAttention, merge_on_gpu
from turbocode.errors import OptionError
from turbocode.integrations.hf_attention import AttentionCall
from turbocode.integrations.hf_packages import torch

Run = tuple[Coder, Any]
ROWS_AT_ONCE = 64  # later rows of a prompt see more tokens: in pieces, early ones do not go through all of them
MAX_KEPT = 512  # prepared calls; each length of a cache makes one


class PackedOnGpu:
    """Keeps the attention of each pair of codecs."""

    def __init__(self) -> None:
        self._attentions: dict[tuple[int, int], tuple[GpuAttention, Codec, Codec]] = {}
        self._n_calls = 0

    def attend(self, call: AttentionCall, runs: list[tuple[Run, Run]], n_seen: int) -> Any:
        """Output (B, H, R, D) in the queries' dtype; their last row is token n_seen - 1.

        runs : keys beside values, blocks in the memory of the queries' GPU
        """
        queries = call.queries.detach()
        n_seqs, _, n_rows, _ = queries.shape
        first_row = n_seen - n_rows
        first = n_seen - sum(key_run[1].shape[2] for key_run, _ in runs)
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        last = torch.arange(first_row, n_seen, dtype=torch.int32, device=queries.device).repeat(n_seqs, 1)
        for start in range(0, n_rows, ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, n_rows))
            self._rows(call, queries[:, :, rows], last[:, rows].contiguous(), runs, first, out[:, :, rows])
        return out

    def _rows(
        self, call: AttentionCall, queries: Any, last: Any, runs: list[tuple[Run, Run]], first: int, out: Any
    ) -> None:
        shape = queries.shape
        is_one = len(runs) == 1
        parts = None if is_one else torch.empty((len(runs), *shape), dtype=torch.float32, device=queries.device)
        lses = torch.empty((len(runs), *shape[:-1]), dtype=torch.float32, device=queries.device)
        for number, ((key_codec, keys), (value_codec, values)) in enumerate(runs):
            self._attention(key_codec, value_codec)(
                *(queries, keys, values, last),
                scale=call.scale,
                window=call.window,
                softcap=call.softcap,
                first_token=first,
                out=out if parts is None else parts[number],
                lse=lses[number],
            )
            first += keys.shape[2]
        if parts is not None:
            out.copy_(merge_on_gpu(parts, lses)[0])

    def _attention(self, key_codec: Coder, value_codec: Coder) -> GpuAttention:
        if not isinstance(key_codec, Codec) or not isinstance(value_codec, Codec):
            odd = value_codec if isinstance(key_codec, Codec) else key_codec
            raise OptionError(
                f"packed attention of a model on a GPU does not know {odd.name}",
                hint="leave --packed out, or run the model with --device cpu",
            )
        self._n_calls += 1
        if self._n_calls > MAX_KEPT:
            self._attentions.clear()
            self._n_calls = 0
        key = id(key_codec), id(value_codec)
        if key not in self._attentions:
            # With its codecs, so that no other codec gets their number.
            self._attentions[key] = GpuAttention(key_codec, value_codec), key_codec, value_codec
        return self._attentions[key][0]
