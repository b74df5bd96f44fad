"""What coding the cache does to a language model: the same text, once with an exact cache and once with each coded one.

All runs of a comparison go through the model in the same way, in the same chunks, so that an exact cache differs by
exactly nothing. Every run, the exact one too, hands its keys and values through a cache made of coded layers, and what
a token attends to is what the cache gives back: of a coded cache that is decoded values, those of fresh tokens too.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import has_packed_attention
from turbocode.errors import OptionError
from turbocode.evaluation.divergence_statistics import by_position, summarise
from turbocode.evaluation.machine import cpu_model, usable_cores
from turbocode.evaluation.token_divergence import ReferenceBlock, TokenFigures, block_rows
from turbocode.formats.sides import SIDES
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_cache import bits_per_value, coded_layers
from turbocode.integrations.hf_model import LanguageModel
from turbocode.integrations.hf_packages import torch, transformers
from turbocode.integrations.packed_attention import attend_packed
from turbocode.policies import EXACT_CACHE, CachePolicy

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class EvaluationMode:
    """How text goes through the model.

    chunk : tokens that enter the cache at once; None: a whole window
    packed : attention by the kernels that read packed blocks, instead of the model's own over decoded values
    first : position from which on predictions are scored; None: the middle of the window
    """

    chunk: int | None = None
    packed: bool = False
    first: int | None = None

    def __str__(self) -> str:
        entry = (
            "one pass" if self.chunk is None else f"chunks of {self.chunk:,}" if self.chunk > 1 else "token by token"
        )
        return f"{entry}, packed attention" if self.packed else entry


def evaluate_policies(
    model: LanguageModel,
    windows: NDArray[np.int64],
    policies: Sequence[CachePolicy],
    mode: EvaluationMode,
    *,
    max_memory: int,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What each policy does to the model's predictions, beside an exact cache; a JSON object.

    windows : tokens int64 (n_windows, context), each a sequence of its own; position t predicts token t + 1
    advance : called with 1 after each run of a window
    The keys of the result: model, mode, n_windows, context, first and last scored position, compute_dtype, codecs (one
    a policy: name, bits_per_value, sinks, residual, what `summarise` gives, seconds, by_position), base_seconds,
    seconds, machine, versions.
    Raises OptionError for codecs that do not fit the model, or a mode that a policy cannot be measured in.
    """
    n_windows, context = windows.shape
    first = context // 2 if mode.first is None else mode.first
    _check(model, policies, mode, context, first)
    rows = block_rows(model.n_words, max_memory)
    _check_memory(model, len(policies), context - 1 - first, max_memory)
    started = time.monotonic()
    seconds = np.zeros(1 + len(policies))
    bits = np.zeros(len(policies))
    parts: list[list[TokenFigures]] = [[] for _ in policies]
    for window in windows:
        states = []
        for number, policy in enumerate((EXACT_CACHE, *policies)):
            begun = time.monotonic()
            hidden, cache = _run(model, window, policy, mode, first)
            seconds[number] += time.monotonic() - begun
            states.append(hidden)
            if number:
                bits[number - 1] = bits_per_value(cache)
            if advance:
                advance(1)
        for start in range(0, context - 1 - first, rows):
            block = slice(start, min(start + rows, context - 1 - first))
            targets = window[first + 1 :][block]
            reference = ReferenceBlock(model.logits(states[0][block]), targets)
            for number in range(len(policies)):
                parts[number].append(reference.compare(model.logits(states[number + 1][block])))
    positions = np.tile(np.arange(first, context - 1), n_windows)
    codecs = []
    for number, policy in enumerate(policies):
        figures = TokenFigures.joined(parts[number])
        codecs.append(
            {
                "name": policy.name,
                "bits_per_value": float(bits[number]),
                "sinks": policy.sinks,
                "residual": policy.residual,
                **summarise(figures),
                "seconds": float(seconds[number + 1]),
                "by_position": by_position(figures, positions),
            }
        )
    return {
        "model": model.label,
        "mode": str(mode),
        "n_windows": n_windows,
        "context": context,
        "first": first,
        "last": context - 2,
        "compute_dtype": str(model.model.dtype).removeprefix("torch."),
        "codecs": codecs,
        "base_seconds": float(seconds[0]),
        "seconds": time.monotonic() - started,
        "machine": {"cpu": cpu_model(), "cores": usable_cores(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            **{name: version(name) for name in ("turbocode", "numpy")},
        },
    }


def _run(
    model: LanguageModel, window: NDArray[np.int64], policy: CachePolicy, mode: EvaluationMode, first: int
) -> tuple[Any, Any]:
    """(hidden states of the scored positions, the cache afterwards) of one window through one policy's cache."""
    is_packed = mode.packed and policy is not EXACT_CACHE
    layers = coded_layers(model.config, policy, holds_blocks=is_packed, reads=not is_packed)
    cache = transformers.Cache(layers=layers)
    with attention_by(model.model, attend_packed(cache)) if is_packed else nullcontext():
        hidden = model.hidden(window, cache, chunk=mode.chunk, first=first)
    return hidden[:-1], cache


def _check(
    model: LanguageModel, policies: Sequence[CachePolicy], mode: EvaluationMode, context: int, first: int
) -> None:
    """Raise OptionError for what would fail, or mean nothing, after minutes of work."""
    if not policies:
        raise OptionError("no codec is given")
    if mode.chunk is not None and mode.chunk < 1:
        raise OptionError(f"chunk is {mode.chunk}; allowed is 1 and more")
    if not 0 <= first <= context - 2:
        raise OptionError(f"scoring starts at position {first}; allowed is 0 to {context - 2}")
    for policy in policies:
        policy = policy.for_layers([shape.window for shape in model.layers])
        if policy.residual and mode.chunk is None:
            raise OptionError(
                f"in one pass no token is ever among the latest {policy.residual}", hint="--chunk 1 measures a residual"
            )
        for number, shape in enumerate(model.layers):
            for side, dim in zip(SIDES, (shape.key_dim, shape.value_dim), strict=True):
                codec = policy.codec_for(number, side, dim, shape.n_kv_heads)
                if mode.packed and codec is not None and not has_packed_attention(codec):
                    raise OptionError(f"{policy.name}: packed attention does not read blocks of {codec.name}")
                if mode.packed and codec is None:
                    raise OptionError(f"{policy.name}: packed attention reads blocks, and exact {side} have none")
    if mode.packed and any(shape.has_sinks for shape in model.layers):
        raise OptionError("the model's softmax counts learned sinks, which packed attention does not know")
    if mode.packed and model.model.device.type not in ("cpu", "cuda"):
        raise OptionError(
            f"the model is on {model.model.device}; packed attention has kernels for cpu and cuda", hint="--device cpu"
        )


def _check_memory(model: LanguageModel, n_policies: int, n_scored: int, max_memory: int) -> None:
    needed = (n_policies + 1) * n_scored * model.text_config.hidden_size * FLOAT32_BYTES
    if needed > max_memory:
        raise OptionError(
            f"{max_memory} bytes of memory do not hold hidden states of {n_policies} codecs at {n_scored:,} positions",
            hint="fewer codecs in one run, a shorter --context or a larger --max-memory",
        )
