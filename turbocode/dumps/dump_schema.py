"""Checks that an inventory is a KV dump, version 1, and says what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from turbocode.dumps.hdf5 import CHECKSUMMED_SUPERBLOCK
from turbocode.dumps.inventory import DatasetFacts, Inventory
from turbocode.dumps.metadata import (
    DumpMetadata,
    LayerMetadata,
    check_preamble,
    layer_names,
    read_layer_metadata,
    read_metadata,
)
from turbocode.dumps.value_types import STORED_AS
from turbocode.formats.sides import SIDES

DUMP_FORMAT = "turbocode-kv-dump"
DUMP_VERSION = 1
KINDS = ("keys", "values", "queries")
# Small index datasets may be held whole: 256 MiB of int64 positions or int32 tokens.
MAX_INDEX_VALUES = 1 << 25


def fisher_name(side: str) -> str:
    """The dataset of a layer that holds the Fisher information of `keys` or `values`."""
    return f"{side}_fisher"


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a dump: its attributes, its counts (n_rows 0 without queries) and its datasets by kind.

    has_fisher : whether the Fisher information of keys and values is there; it is no part of the digest
    """

    name: str
    metadata: LayerMetadata
    n_seqs: int
    n_tokens: int
    n_rows: int
    datasets: dict[str, DatasetFacts]
    positions: DatasetFacts | None
    has_fisher: bool


@dataclass(frozen=True)
class DumpFacts:
    """A dump as announced: metadata, layers, tokens (None if absent), integrity checksummed or unverified."""

    metadata: DumpMetadata
    layers: tuple[LayerFacts, ...]
    tokens: DatasetFacts | None
    integrity: str


def read_dump_facts(inventory: Inventory) -> DumpFacts:
    """DumpFacts of a guarded file; DataError names what is missing or disagrees with the metadata."""
    check_preamble(inventory, DUMP_FORMAT, DUMP_VERSION)
    metadata = read_metadata(inventory)
    layers = tuple(_layer(inventory, metadata, name) for name in layer_names(inventory, metadata.n_layers))
    first = layers[0]
    for layer in layers[1:]:
        if (layer.n_seqs, layer.n_tokens) != (first.n_seqs, first.n_tokens):
            inventory.refuse(
                f"/layers/{layer.name}/keys",
                f"holds {layer.n_seqs} sequences of {layer.n_tokens} tokens; "
                f"layer 000 holds {first.n_seqs} of {first.n_tokens}",
            )
    tokens = inventory.datasets.get("/tokens")
    if tokens is not None:
        _check(inventory, "/tokens", tokens, (first.n_seqs, first.n_tokens), ("int32",))
    checksummed = inventory.superblock >= CHECKSUMMED_SUPERBLOCK and all(
        facts.fletcher32 for layer in layers for facts in layer.datasets.values()
    )
    return DumpFacts(metadata, layers, tokens, "checksummed" if checksummed else "unverified")


def _layer(inventory: Inventory, metadata: DumpMetadata, name: str) -> LayerFacts:
    path = f"/layers/{name}"
    stored = STORED_AS[metadata.logical_dtype]
    keys = inventory.require_dataset(f"{path}/keys")
    if len(keys.shape) != 4:
        inventory.refuse(
            f"{path}/keys", f"shape is {keys.shape}; expected four axes: sequence, head, token, coordinate"
        )
    n_seqs, _, n_tokens, _ = keys.shape
    cache_shape = (n_seqs, metadata.n_kv_heads, n_tokens, metadata.head_dim)
    datasets = {"keys": keys, "values": inventory.require_dataset(f"{path}/values")}
    for kind, facts in datasets.items():
        _check(inventory, f"{path}/{kind}", facts, cache_shape, stored)
    queries = inventory.datasets.get(f"{path}/queries")
    positions = inventory.datasets.get(f"{path}/query_positions")
    if (queries is None) != (positions is None):
        inventory.refuse(path, "queries and query_positions must both be there or both be absent")
    n_rows = 0
    if queries is not None and positions is not None:
        if len(queries.shape) != 4:
            inventory.refuse(
                f"{path}/queries", f"shape is {queries.shape}; expected four axes: sequence, head, row, coordinate"
            )
        n_rows = queries.shape[2]
        query_shape = (n_seqs, metadata.n_query_heads, n_rows, metadata.head_dim)
        _check(inventory, f"{path}/queries", queries, query_shape, stored)
        _check(inventory, f"{path}/query_positions", positions, (n_seqs, n_rows), ("int64",))
        datasets["queries"] = queries
    has_fisher = _has_fisher(inventory, metadata, path)
    about = read_layer_metadata(inventory, path)
    return LayerFacts(name, about, n_seqs, n_tokens, n_rows, datasets, positions, has_fisher)


def _has_fisher(inventory: Inventory, metadata: DumpMetadata, path: str) -> bool:
    found = {side: inventory.datasets.get(f"{path}/{fisher_name(side)}") for side in SIDES}
    if (found["keys"] is None) != (found["values"] is None):
        inventory.refuse(
            path, f"{fisher_name('keys')} and {fisher_name('values')} must both be there or both be absent"
        )
    for side, facts in found.items():
        if facts is not None:
            shape = (metadata.n_kv_heads, metadata.head_dim, metadata.head_dim)
            _check(inventory, f"{path}/{fisher_name(side)}", facts, shape, ("float32",))
    return found["keys"] is not None


def _check(
    inventory: Inventory, path: str, facts: DatasetFacts, shape: tuple[int, ...], types: tuple[str, ...]
) -> None:
    if facts.shape != shape:
        inventory.refuse(path, f"shape is {facts.shape}; expected {shape}")
    if facts.value_type.name not in types:
        inventory.refuse(path, f"type is {facts.value_type.name}; expected {' or '.join(types)}")
    if len(shape) == 2 and facts.shape[0] * facts.shape[1] > MAX_INDEX_VALUES:
        inventory.refuse(path, f"shape {facts.shape} is too large; at most {MAX_INDEX_VALUES} entries are allowed")
