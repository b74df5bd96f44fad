"""Attention of a model on a GPU over the packed blocks of one layer's cache, run by run, merged by log-sum-exp.

A prompt is attended over the packed cache that holds it, as on the CPU: its tokens are encoded before anyone sees them.
"""

from __future__ import annotations

from typing import Any

from turbocode.codecs import Codec, Coder, MultirateCodec
from turbocode.codecs.gpu_any_rows import AnyRows
from turbocode.codecs.gpu_attention import merge_on_gpu
from turbocode.errors import OptionError
from turbocode.integrations.hf_attention import AttentionCall
from turbocode.integrations.hf_packages import torch
from turbocode.integrations.multirate_on_gpu import MultirateHeads

Run = tuple[Coder, Any]
ROWS_AT_ONCE = 64  # later rows see more tokens: in pieces, decode attention of early ones does not go through all
PROMPT_VECTORS = 1 << 16  # queries of all heads that prefill, which knows what rows see, attends at once: float32 parts
MAX_KEPT = 512  # prepared calls; each length of a cache makes one


class PackedOnGpu:
    """Keeps the attention of each pair of codecs."""

    def __init__(self) -> None:
        self._attentions: dict[tuple[int, int], tuple[AnyRows, Coder, Coder]] = {}
        self._bases: dict[tuple[int, str], tuple[MultirateHeads, MultirateCodec]] = {}
        self._n_calls = 0

    def attend(self, call: AttentionCall, runs: list[tuple[Run, Run]], n_seen: int) -> Any:
        """Output (B, H, R, D) in the queries' dtype; their last row is token n_seen - 1.

        runs : keys beside values, blocks in the memory of the queries' GPU
        """
        queries = call.queries.detach()
        n_seqs, n_heads, n_rows, _ = queries.shape
        first_row = n_seen - n_rows
        first = n_seen - sum(key_run[1].shape[2] for key_run, _ in runs)
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        last = torch.arange(first_row, n_seen, dtype=torch.int32, device=queries.device).repeat(n_seqs, 1)
        at_once = min(n_rows, max(PROMPT_VECTORS // (n_seqs * n_heads), ROWS_AT_ONCE))
        pairs = [(key_run[0], value_run[0]) for key_run, value_run in runs]
        if not all(self._attention(*pair).is_prompt(n_seqs, n_heads, at_once) for pair in pairs):
            at_once = ROWS_AT_ONCE
        for start in range(0, n_rows, at_once):
            rows = slice(start, min(start + at_once, n_rows))
            self._rows(call, queries[:, :, rows], last[:, rows].contiguous(), runs, first, out[:, :, rows])
        return out

    def _rows(
        self, call: AttentionCall, queries: Any, last: Any, runs: list[tuple[Run, Run]], first: int, out: Any
    ) -> None:
        self._n_calls += len(runs)
        if self._n_calls > MAX_KEPT:
            self._attentions.clear()
            self._n_calls = 0
        shape = queries.shape
        is_one = len(runs) == 1
        parts = None if is_one else torch.empty((len(runs), *shape), dtype=torch.float32, device=queries.device)
        lses = torch.empty((len(runs), *shape[:-1]), dtype=torch.float32, device=queries.device)
        for number, ((key_codec, keys), (value_codec, values)) in enumerate(runs):
            target, lse = out if parts is None else parts[number], lses[number]
            key_heads, value_heads = (self._heads(codec, queries.device) for codec in (key_codec, value_codec))
            if key_heads is not None and call.softcap:
                raise OptionError(
                    f"{key_codec.name} under a softcap needs its means added to logits, which the GPU does not do",
                    hint="leave --packed out, or run the model with --device cpu",
                )
            is_turned = key_heads is not None or value_heads is not None
            room = torch.empty(shape, dtype=torch.float32, device=queries.device) if is_turned else target
            self._attention(key_codec, value_codec)(
                *(queries if key_heads is None else key_heads.queries(queries), keys, values, last),
                scale=call.scale,
                window=call.window,
                softcap=call.softcap,
                first_token=first,
                out=room,
                lse=lse,
            )
            if is_turned:
                target.copy_(room if value_heads is None else value_heads.outputs(room, lse))
            if key_heads is not None:
                lse.add_(key_heads.offsets(queries), alpha=call.scale)
            first += keys.shape[2]
        if parts is not None:
            out.copy_(merge_on_gpu(parts, lses)[0])

    def _heads(self, codec: Coder, device: Any) -> MultirateHeads | None:
        """The basis of a multirate codec on a device, made once; None for other codecs."""
        if not isinstance(codec, MultirateCodec):
            return None
        key = id(codec), str(device)
        if key not in self._bases:
            self._bases[key] = MultirateHeads(codec, device), codec  # with its codec, as below
        return self._bases[key][0]

    def _attention(self, key_codec: Coder, value_codec: Coder) -> AnyRows:
        known = Codec | MultirateCodec
        if not isinstance(key_codec, known) or not isinstance(value_codec, known):
            odd = value_codec if isinstance(key_codec, known) else key_codec
            raise OptionError(
                f"packed attention of a model on a GPU does not know {odd.name}",
                hint="leave --packed out, or run the model with --device cpu",
            )
        key = id(key_codec), id(value_codec)
        if key not in self._attentions:
            # With its codecs, so that no other codec gets their number.
            self._attentions[key] = AnyRows(key_codec, value_codec), key_codec, value_codec
        return self._attentions[key][0]
