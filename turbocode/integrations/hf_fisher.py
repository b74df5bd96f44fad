"""How much a language model's predictions mind errors of its keys and values: their Fisher information, measured.

A small error e of one key changes the next-token distributions by a KL divergence of 1/2 e^T F e nats, summed over the
positions that read it, with F = E[g g^T] and g the gradient of the log-probability of a token drawn from the model's
own prediction (Amari, natural gradient; not of the token that came next, which would be the empirical Fisher matrix).
What the queries weigh, what the output projection weighs and how much a layer matters to the end are all in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError
from turbocode.formats.sides import SIDES
from turbocode.integrations.hf_attention import AttentionCall, attention_by
from turbocode.integrations.hf_model import LanguageModel
from turbocode.integrations.hf_packages import torch

_LOGIT_BYTES = 256 << 20  # of float32 logits whose gradients exist at once


class FisherMeter:
    """Sums of outer products of the gradients of every cached key and value, window by window.

    model : whose weights stay as they are; seed : of the drawn tokens
    """

    def __init__(self, model: LanguageModel, seed: int = 0) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[tuple[int, str], NDArray[np.float64]] = {}
        self._n_tokens = 0

    def add(self, window: NDArray[np.int64]) -> None:
        """Count one window of tokens (n,), a sequence of its own: one run forward and one back.

        Raises DataError for gradients that are not finite.
        """
        seen: dict[int, AttentionCall] = {}
        owners = {shape.layer_index for shape in self._model.layers}

        def watch(call: AttentionCall) -> tuple[Any, Any]:
            if call.layer_index in owners:
                call.keys.retain_grad()
                call.values.retain_grad()
                seen[call.layer_index] = call
            return call.plain()

        with attention_by(self._model.model, watch), self._model.differentiable():
            states = self._model.states(window)
            states.backward(self._gradient_of_states(states.detach()))
        for layer_index, call in seen.items():
            for side, tensor in zip(SIDES, (call.keys, call.values), strict=True):
                gradient = tensor.grad[0].double()
                product = (gradient.transpose(1, 2) @ gradient).cpu().numpy()
                if not np.isfinite(product).all():
                    raise DataError(
                        f"a gradient of the {side} of layer {layer_index} is not finite",
                        hint="try --compute-dtype float32",
                    )
                key = (layer_index, side)
                self._sums[key] = self._sums[key] + product if key in self._sums else product
        self._n_tokens += len(window)

    def _gradient_of_states(self, states: Any) -> Any:
        """d sum(log p(drawn tokens)) / d states, both (n, width): a block of positions at a time."""
        gradient = torch.empty_like(states)
        rows = max(1, _LOGIT_BYTES // (4 * self._model.n_words))
        for start in range(0, len(states), rows):
            block = states[start : start + rows].clone().requires_grad_(True)
            log_p = torch.log_softmax(self._model.head(block).float(), dim=-1)
            drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=self._generator).to(log_p.device)
            log_p.gather(1, drawn).sum().backward()
            gradient[start : start + rows] = block.grad
        return gradient

    def metric(self, layer_index: int, side: str) -> NDArray[np.float64]:
        """E[g g^T] of a layer's `keys` or `values`, (n_kv_heads, head_dim, head_dim), in nats per squared unit."""
        return self._sums[layer_index, side] / self._n_tokens
