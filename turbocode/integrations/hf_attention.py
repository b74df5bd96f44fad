"""Puts a function of ours in the place of a model's attention, by way of transformers' attention interface.

The interface hands over queries, keys and values as the cache holds them, after RoPE, with scale, window and softcap:
whatever a model's architecture is, here it looks the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from turbocode.errors import OptionError
from turbocode.integrations.hf_packages import transformers

EAGER, SDPA = "eager", "sdpa"
_sdpa = transformers.AttentionInterface()[SDPA]


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention. B sequences, H query heads, J KV heads, R rows, T tokens, D head_dim.

    layer_index : the model's number of the layer
    queries (B, H, R, D), keys and values (B, J, T, ...) : tensors, after RoPE
    scale : factor on <q, k>; window : tokens seen, 0 for all; softcap : 0 for none
    has_sinks : whether the softmax counts a learned extra logit; plain : the model's own attention of this call
    """

    layer_index: int
    queries: Any
    keys: Any
    values: Any
    scale: float
    window: int
    softcap: float
    has_sinks: bool
    plain: Callable[[], tuple[Any, Any]]


Handler = Callable[[AttentionCall], tuple[Any, Any]]
_handlers: list[Handler] = []


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, Any]:
    """What transformers calls in the place of `eager` or `sdpa`."""
    scale = options.get("scaling")
    window, softcap = options.get("sliding_window"), options.get("softcap")
    is_eager = module.config._attn_implementation.endswith(EAGER)
    function = sys.modules[type(module).__module__].eager_attention_forward if is_eager else _sdpa
    call = AttentionCall(
        int(module.layer_idx),
        query,
        key,
        value,
        float(query.shape[-1] ** -0.5 if scale is None else scale),
        int(window or 0),
        float(softcap or 0.0),
        options.get("s_aux") is not None,
        lambda: function(module, query, key, value, attention_mask, **options),
    )
    return _handlers[-1](call)


def _name(kind: str) -> str:
    return f"turbocode_{kind}"


for _kind in (EAGER, SDPA):
    transformers.AttentionInterface.register(_name(_kind), _attend)
    transformers.AttentionMaskInterface.register(_name(_kind), transformers.AttentionMaskInterface()[_kind])


@contextmanager
def attention_by(model: Any, handler: Handler) -> Iterator[None]:
    """Context in which `handler` answers every attention of `model`: (output (B, R, H, D), weights or None).

    Raises OptionError for a model whose attention is neither eager nor sdpa.
    """
    before = model.config._attn_implementation
    if before not in (EAGER, SDPA):
        raise OptionError(f"the model attends by {before}; {EAGER} or {SDPA} is needed")
    model.set_attn_implementation(_name(before))
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.pop()
        model.set_attn_implementation(before)
