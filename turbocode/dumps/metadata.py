"""What a dump says about itself: the model's shape and how its attention reads the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from turbocode.dumps.inventory import Inventory
from turbocode.dumps.value_types import STORED_AS
from turbocode.errors import DataError, OptionError

MAX_LAYERS = 1000
MAX_HEADS = 1 << 16
MAX_HEAD_DIM = 1 << 16
MAX_LABEL = 4096
LOGICAL_DTYPES = tuple(STORED_AS)
_E = TypeVar("_E", OptionError, DataError)


@dataclass(frozen=True)
class DumpMetadata:
    """Root attributes of a dump.

    logical_dtype : float16, bfloat16 or float32, the dtype of keys, values and queries
    attention_scale : factor on q.k; rope_theta : 0 where there is no RoPE
    model, source, sha256 : where it came from, None if not known
    Errors : OptionError for a field out of range.
    """

    logical_dtype: str
    n_layers: int
    n_query_heads: int
    n_kv_heads: int
    head_dim: int
    attention_scale: float
    rope_theta: float
    model: str | None = None
    source: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.logical_dtype not in LOGICAL_DTYPES:
            allowed = ", ".join(LOGICAL_DTYPES)
            raise OptionError(f"logical_dtype {self.logical_dtype!r} is not known; allowed are {allowed}")
        for name, high in (
            ("n_layers", MAX_LAYERS),
            ("n_query_heads", MAX_HEADS),
            ("n_kv_heads", MAX_HEADS),
            ("head_dim", MAX_HEAD_DIM),
        ):
            if not 1 <= getattr(self, name) <= high:
                raise OptionError(f"{name} is {getattr(self, name)}; allowed is 1 to {high}")
        if self.n_query_heads % self.n_kv_heads:
            raise OptionError(f"n_query_heads {self.n_query_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if not (math.isfinite(self.attention_scale) and self.attention_scale > 0):
            raise OptionError(f"attention_scale is {self.attention_scale}; it must be positive and finite")
        if not (math.isfinite(self.rope_theta) and self.rope_theta >= 0):
            raise OptionError(f"rope_theta is {self.rope_theta}; it must be 0 or positive, and finite")
        for name in ("model", "source", "sha256"):
            label = getattr(self, name)
            if label is not None and (len(label) > MAX_LABEL or not label.isprintable()):
                raise OptionError(f"{name} must be at most {MAX_LABEL} printable characters")


def check_preamble(inventory: Inventory, expected_format: str, version: int) -> None:
    """Returns nothing; DataError unless the root says `format`, a known `format_version` and `complete`."""
    found = inventory.label("/", "format")
    if found != expected_format:
        inventory.refuse("/", f"format is {found!r}; expected {expected_format!r}")
    number = inventory.integer("/", "format_version", 1, (1 << 63) - 1)
    if number > version:
        inventory.refuse(
            "/",
            f"format_version {number} is newer than {version}, the version known here",
            hint="python -m pip install --upgrade turbocode",
        )
    if not inventory.has_attribute("/", "complete"):
        inventory.refuse("/", "attribute 'complete' is missing: its writer did not finish", hint="write the file again")
    inventory.integer("/", "complete", 1, 1)


def read_metadata(inventory: Inventory) -> DumpMetadata:
    """DumpMetadata from the root attributes; DataError for one that is missing, of another type or out of range."""
    labels = {
        name: inventory.label("/", name, MAX_LABEL) if inventory.has_attribute("/", name) else None
        for name in ("model", "source", "sha256")
    }
    try:
        return DumpMetadata(
            logical_dtype=inventory.label("/", "logical_dtype"),
            n_layers=inventory.integer("/", "n_layers", 1, MAX_LAYERS),
            n_query_heads=inventory.integer("/", "n_query_heads", 1, MAX_HEADS),
            n_kv_heads=inventory.integer("/", "n_kv_heads", 1, MAX_HEADS),
            head_dim=inventory.integer("/", "head_dim", 1, MAX_HEAD_DIM),
            attention_scale=inventory.number("/", "attention_scale", 0.0, 1e9),
            rope_theta=inventory.number("/", "rope_theta", 0.0, 1e30),
            **labels,
        )
    except OptionError as failure:
        raise DataError(failure.message, file=inventory.file, object="/") from None


def layer_names(inventory: Inventory, n_layers: int) -> list[str]:
    """Names 000, 001, ... of the layers; DataError unless exactly these `n_layers` groups are there."""
    inventory.require_group("/layers")
    expected = [f"{number:03d}" for number in range(n_layers)]
    found = inventory.children("/layers")
    if found != expected:
        odd = next((name for name in found if name not in expected), None)
        missing = next((name for name in expected if name not in found), None)
        what = f"layer {missing} is missing" if missing else f"{odd!r} is not one of them"
        inventory.refuse("/layers", f"{n_layers} layers are announced, {len(found)} found; {what}")
    for name in expected:
        inventory.require_group(f"/layers/{name}")
    return expected


@dataclass(frozen=True)
class LayerMetadata:
    """layer_index: the model's own number; window: 0 is full attention; softcap: 0 is none."""

    layer_index: int
    window: int
    softcap: float


def read_layer_metadata(inventory: Inventory, path: str) -> LayerMetadata:
    """LayerMetadata of the group at `path`; DataError for an attribute that is missing or out of range."""
    return LayerMetadata(
        layer_index=inventory.integer(path, "layer_index", 0, (1 << 31) - 1),
        window=inventory.integer(path, "window", 0, (1 << 62)),
        softcap=inventory.number(path, "softcap", 0.0, 1e30),
    )
