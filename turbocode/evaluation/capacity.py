"""How long a context fits a GPU's memory with each codec: arithmetic from the formats, byte by byte."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turbocode.codecs import make_codec
from turbocode.errors import DataError, OptionError
from turbocode.text_input import read_text_input

FLOAT16_BYTES = 2
MAX_CONFIG_BYTES = 1 << 20
MAX_COUNT = 1 << 20  # of layers, heads and values
MAX_TOKENS = 1 << 40
_SHAPE = re.compile(r"([0-9]{1,7})x([0-9]{1,7})x([0-9]{1,7})", re.ASCII)
FULL, SLIDING = "full_attention", "sliding_attention"
# Layers of these types hold states of a fixed size, which are not counted, or nothing.
_WITHOUT_KEYS = ("linear_attention", "conv", "mlp", "moe")


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides on the size of its cache.

    layers : windows of the layers that hold keys and values, 0 for all tokens, with how many layers have each
    """

    layers: Mapping[int, int]
    n_kv_heads: int
    head_dim: int

    def to_json(self) -> dict[str, Any]:
        """The shape as a JSON object."""
        layers = [{"window": window, "n_layers": n} for window, n in self.layers.items()]
        return {"layers": layers, "n_kv_heads": self.n_kv_heads, "head_dim": self.head_dim}


def parse_model_shape(text: str) -> ModelShape:
    """The shape that LAYERSxKVHEADSxHEADDIM says, or the config.json of a model at that path.

    Raises OptionError for neither, NoInputError and DataError for the file.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        if text.endswith(".json") or os.sep in text:
            return read_model_config(text)
        raise OptionError(
            f"model shape {text!r} is neither LAYERSxKVHEADSxHEADDIM nor the path of a config.json",
            hint="for example 48x8x128",
        )
    layers, heads, dim = (int(part) for part in match.groups())
    return _checked({0: layers}, heads, dim, None)


def read_model_config(path: str | os.PathLike[str]) -> ModelShape:
    """The shape that a model's config.json says. Raises NoInputError and DataError."""
    try:
        config = json.loads(read_text_input(path, max_bytes=MAX_CONFIG_BYTES))
    except (json.JSONDecodeError, RecursionError):
        raise DataError("not JSON", file=path) from None
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    if not isinstance(config, dict):
        raise DataError("must be a JSON object", file=path)
    if config.get("kv_lora_rank"):
        raise DataError(
            "the model caches latents of its keys and values together, whose size is not known here", file=path
        )
    n_layers, n_heads = (_count(config, key, path) for key in ("num_hidden_layers", "num_attention_heads"))
    kv_heads = n_heads if config.get("num_key_value_heads") is None else _count(config, "num_key_value_heads", path)
    if config.get("head_dim") is not None:
        head_dim = _count(config, "head_dim", path)
    else:
        head_dim = _count(config, "hidden_size", path) // n_heads
    return _checked(_layers_of(config, n_layers, path), kv_heads, head_dim, path)


def _layers_of(config: dict[str, Any], n_layers: int, path: str | os.PathLike[str]) -> dict[int, int]:
    kinds = config.get("layer_types")
    window = config.get("sliding_window")
    if kinds is None:
        uses_window = isinstance(window, int) and window > 0 and config.get("use_sliding_window", True)
        return {int(window) if uses_window and window else 0: n_layers}
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise DataError(f"layer_types does not name {n_layers} layers", file=path)
    layers: dict[int, int] = {}
    for kind in kinds:
        if kind in _WITHOUT_KEYS:
            continue
        if kind not in (FULL, SLIDING):
            raise DataError(f"layer_types names {kind!r}, whose cache is not known here", file=path)
        seen = _count(config, "sliding_window", path) if kind == SLIDING else 0
        layers[seen] = layers.get(seen, 0) + 1
    return layers


def _count(config: dict[str, Any], key: str, path: str | os.PathLike[str]) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise DataError(f"{key} is {value!r}; a number from 1 to {MAX_COUNT} is needed", file=path)
    return value


def _checked(layers: dict[int, int], n_kv_heads: int, head_dim: int, path: str | os.PathLike[str] | None) -> ModelShape:
    if not layers or not all(1 <= n <= MAX_COUNT for n in (*layers.values(), n_kv_heads, head_dim)):
        message = f"{sum(layers.values())} layers, {n_kv_heads} KV heads, head_dim {head_dim}: 1 and more are needed"
        raise OptionError(message) if path is None else DataError(message, file=path)
    return ModelShape(layers, n_kv_heads, head_dim)


@dataclass(frozen=True)
class CachePlan:
    """How a cache is kept. key_bytes, value_bytes : of a packed vector; sinks, recent : tokens in float16

    page : tokens of a page, 1 where there are none: packed tokens are rounded up to whole pages
    """

    shape: ModelShape
    key_bytes: int
    value_bytes: int
    sinks: int = 0
    recent: int = 0
    page: int = 1

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a packed token takes in all layers that hold every token; 0 if all have windows."""
        return self.shape.layers.get(0, 0) * self.shape.n_kv_heads * (self.key_bytes + self.value_bytes)

    def n_bytes(self, n_tokens: int) -> int:
        """Bytes of one sequence of n_tokens tokens."""
        exact_bytes = 2 * self.shape.head_dim * FLOAT16_BYTES
        total = 0
        for window, n_layers in self.shape.layers.items():
            held = min(n_tokens, window) if window else n_tokens
            exact = min(held, self.sinks + self.recent)
            packed = -(-(held - exact) // self.page) * self.page
            total += n_layers * (packed * (self.key_bytes + self.value_bytes) + exact * exact_bytes)
        return self.shape.n_kv_heads * total

    def longest(self, n_bytes: int) -> int | None:
        """Tokens of the longest sequence that fits into n_bytes; None where every length does."""
        if self.n_bytes(MAX_TOKENS) <= n_bytes:
            return None
        low, high = 0, MAX_TOKENS
        while high - low > 1:
            middle = (low + high) // 2
            if self.n_bytes(middle) <= n_bytes:
                low = middle
            else:
                high = middle
        return low


def capacities(
    shape: ModelShape,
    pairs: Sequence[tuple[str, str]],
    *,
    vram: int,
    weights: int = 0,
    batch: int = 1,
    sinks: int = 0,
    recent: int = 0,
    page: int = 1,
) -> dict[str, Any]:
    """A JSON object: model, what was given, and of each pair of codecs the longest context.

    vram, weights : bytes of the GPU's memory, and of what else lies there; batch : sequences of the same length
    Of a pair: bits_per_value, bytes_per_token, tokens (without exact tokens), tokens_with_exact (with sinks and recent
    ones in float16), times_float16. Raises OptionError where nothing is left for a cache, or a codec does not fit.
    """
    left = vram - weights
    if left <= 0:
        raise OptionError(f"the weights take {weights} bytes, the GPU has {vram}: nothing is left for a cache")
    if min(batch, page) < 1 or min(sinks, recent) < 0:
        raise OptionError(
            f"batch {batch}, page {page}, sinks {sinks}, recent {recent}: allowed are 1, 1, 0, 0 and more"
        )
    exact_bytes = FLOAT16_BYTES * shape.head_dim
    float16 = CachePlan(shape, exact_bytes, exact_bytes, page=page).longest(left // batch)
    rows = []
    for k, v in pairs:
        codecs = [make_codec(name, shape.head_dim) for name in (k, v)]
        sizes = [codec.bytes_per_vector for codec in codecs]
        plain = CachePlan(shape, sizes[0], sizes[1], page=page)
        mixed = CachePlan(shape, sizes[0], sizes[1], sinks, recent, page)
        tokens = plain.longest(left // batch)
        rows.append(
            {
                "k": k,
                "v": v,
                "bits_per_value": sum(codec.bits_per_value for codec in codecs) / 2,
                "bytes_per_token": plain.bytes_per_token,
                "tokens": tokens,
                "tokens_with_exact": mixed.longest(left // batch),
                "times_float16": tokens / float16 if tokens is not None and float16 else None,
            }
        )
    return {
        "model": shape.to_json(),
        "vram_bytes": vram,
        "weights_bytes": weights,
        "batch": batch,
        "sinks": sinks,
        "recent": recent,
        "page": page,
        "codecs": rows,
    }
