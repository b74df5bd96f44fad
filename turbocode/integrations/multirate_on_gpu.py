"""The basis of a multirate codec on a GPU: what queries become before its blocks are read, and outputs afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.codecs import MultirateCodec
from turbocode.integrations.hf_packages import torch


class MultirateHeads:
    """The constants of a codec's KV heads as tensors, float32: back (J, D, D), sigma and mean (J, 1, D).

    Query head h belongs to KV head h // (H // J); queries and outputs are (B, H, R, D).
    """

    def __init__(self, codec: MultirateCodec, device: Any) -> None:
        heads = [codec.head_constants(head) for head in range(codec.n_heads)]
        stacked = (
            np.stack([head.back for head in heads]),
            np.stack([head.side.sigma for head in heads])[:, None],
            np.stack([head.mean for head in heads])[:, None],
        )
        self._back, self._sigma, self._mean = (torch.from_numpy(array).to(device) for array in stacked)

    def _by_head(self, vectors: Any) -> Any:
        """(B, J, H / J * R, D) float32 of (B, H, R, D)."""
        n_seqs, n_heads, n_rows, d = vectors.shape
        n_kv_heads = len(self._back)
        return vectors.float().reshape(n_seqs, n_kv_heads, n_heads // n_kv_heads * n_rows, d)

    def queries(self, queries: Any) -> Any:
        """Queries for logits over the key blocks: sigma B^T q."""
        turned = torch.matmul(self._by_head(queries), self._back.transpose(1, 2)) * self._sigma
        return turned.reshape(queries.shape).contiguous()

    def offsets(self, queries: Any) -> Any:
        """<q, mean>, (B, H, R), which these logits lack."""
        return (self._by_head(queries) * self._mean).sum(dim=-1).reshape(queries.shape[:-1])

    def outputs(self, outputs: Any, lse: Any) -> Any:
        """Outputs over the value blocks in the model's basis; 0 where a row saw no token, whose lse is -inf."""
        turned = torch.matmul(self._by_head(outputs) * self._sigma, self._back) + self._mean
        return turned.reshape(outputs.shape).masked_fill(torch.isneginf(lse)[..., None], 0.0)
