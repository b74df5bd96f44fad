"""Checks that an inventory is a quantized file, version 1; docs/quantized-file.md describes it field by field."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from turbocode.dumps.hdf5 import CHECKSUMMED_SUPERBLOCK
from turbocode.dumps.inventory import Inventory
from turbocode.dumps.metadata import (
    DumpMetadata,
    LayerMetadata,
    check_preamble,
    layer_names,
    read_layer_metadata,
    read_metadata,
)
from turbocode.dumps.stored_arrays import ArrayFacts, array_facts
from turbocode.formats.sides import SIDES

QUANTIZED_FORMAT = "turbocode-quantized"
QUANTIZED_VERSION = 1
ARRAYS = "arrays"  # the group of a side's constants
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class SideFacts:
    """Keys or values of one layer: path of the blocks, their shape, codec and report as JSON objects, SHA-256.

    arrays : what the codec's description refers to by name
    widths : bytes of a vector of each KV head, where a row of the blocks holds those of all heads; else None
    """

    path: str
    shape: tuple[int, ...]
    codec: dict[str, Any]
    report: dict[str, Any]
    sha256: str
    arrays: dict[str, ArrayFacts]
    widths: tuple[int, ...] | None


@dataclass(frozen=True)
class QuantizedLayerFacts:
    """One layer: name, attributes, and both sides, which agree in sequences and tokens."""

    name: str
    metadata: LayerMetadata
    sides: dict[str, SideFacts]


@dataclass(frozen=True)
class QuantizedFacts:
    """A quantized file as announced: the dump's metadata and digest, recipe, provenance, layers."""

    metadata: DumpMetadata
    dump_sha256: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    layers: tuple[QuantizedLayerFacts, ...]


def read_quantized_facts(inventory: Inventory) -> QuantizedFacts:
    """QuantizedFacts of a guarded file; DataError names what is missing, damaged or disagrees with the metadata."""
    check_preamble(inventory, QUANTIZED_FORMAT, QUANTIZED_VERSION)
    if inventory.superblock < CHECKSUMMED_SUPERBLOCK:
        inventory.refuse("/", "metadata have no checksums; quantized files are written with libver v110")
    metadata = read_metadata(inventory)
    layers = tuple(_layer(inventory, metadata, name) for name in layer_names(inventory, metadata.n_layers))
    return QuantizedFacts(
        metadata=metadata,
        dump_sha256=read_digest(inventory, "/", "dump_sha256"),
        recipe=read_json(inventory, "/", "recipe"),
        provenance=read_json(inventory, "/", "provenance"),
        layers=layers,
    )


def _layer(inventory: Inventory, metadata: DumpMetadata, name: str) -> QuantizedLayerFacts:
    path = f"/layers/{name}"
    sides = {side: _side(inventory, metadata, f"{path}/{side}") for side in SIDES}
    keys, values = sides["keys"].shape, sides["values"].shape
    if (keys[0], keys[2]) != (values[0], values[2]):
        inventory.refuse(f"{path}/values/blocks", f"shape {values} disagrees with that of the keys, {keys}")
    return QuantizedLayerFacts(name, read_layer_metadata(inventory, path), sides)


def _side(inventory: Inventory, metadata: DumpMetadata, path: str) -> SideFacts:
    inventory.require_group(path)
    where = f"{path}/blocks"
    blocks = inventory.require_dataset(where)
    if blocks.value_type.name != "uint8":
        inventory.refuse(where, f"type is {blocks.value_type.name}; expected uint8")
    codec = read_json(inventory, path, "codec")
    widths = _widths(inventory, path, codec, metadata.n_kv_heads)
    n_rows = metadata.n_kv_heads if widths is None else 1
    if len(blocks.shape) != 4 or blocks.shape[1] != n_rows or (widths and sum(widths) != blocks.shape[3]):
        expected = f"(sequences, {n_rows}, tokens, {sum(widths) if widths else 'bytes'})"
        inventory.refuse(where, f"shape is {blocks.shape}; expected {expected}")
    if not blocks.fletcher32:
        inventory.refuse(where, "blocks have no fletcher32 checksum")
    return SideFacts(
        where,
        blocks.shape,
        codec,
        read_json(inventory, path, "report"),
        read_digest(inventory, where, "sha256"),
        array_facts(inventory, f"{path}/{ARRAYS}") if f"{path}/{ARRAYS}" in inventory.groups else {},
        widths,
    )


def _widths(inventory: Inventory, path: str, codec: dict[str, Any], n_heads: int) -> tuple[int, ...] | None:
    """The widths that a codec's description names, None for none. Raises DataError for what are no widths."""
    if "widths" not in codec:
        return None
    found = codec["widths"]
    is_list = isinstance(found, list) and len(found) == n_heads and all(type(n) is int and n > 0 for n in found)
    if not is_list:
        inventory.refuse(path, f"codec: widths must be {n_heads} positive numbers, one for each KV head")
    return tuple(found)


def read_digest(inventory: Inventory, path: str, name: str) -> str:
    """A string attribute that is a SHA-256 in hex. Raises DataError."""
    value = inventory.label(path, name)
    if len(value) != 64 or not _HEX.issuperset(value):
        inventory.refuse(path, f"attribute {name!r} must be a SHA-256 in 64 hex digits")
    return value


def read_json(inventory: Inventory, path: str, name: str) -> dict[str, Any]:
    """A JSON attribute that matches its checksum. Raises DataError."""
    text = inventory.text(path, name)
    if hashlib.sha256(text.encode()).hexdigest() != read_digest(inventory, path, f"{name}_sha256"):
        inventory.refuse(path, f"attribute {name!r} does not match its checksum: the file is damaged")

    def no_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not allowed")

    try:
        document = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        inventory.refuse(path, f"attribute {name!r} is not valid JSON")
    if not isinstance(document, dict):
        inventory.refuse(path, f"attribute {name!r} must be a JSON object")
    return document
