"""Calibration files: what was fitted on a dump, per layer and side, as JSON attributes and small arrays.

    /layers/NNN/{keys,values}/NAME    JSON attribute `about`; datasets, the arrays

NAME is free: a chain of transforms (`mean`, `mean.balance`) or a codec that is fitted as a whole. The file is read
whole and checked like every file from elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from turbocode.dumps.atomic import AnyPath
from turbocode.dumps.dump_writer import put_metadata
from turbocode.dumps.hdf5 import CHECKSUMMED_SUPERBLOCK
from turbocode.dumps.hdf5_output import HDF5Output, hdf5_output, put_json, put_text
from turbocode.dumps.inventory import Inventory
from turbocode.dumps.metadata import DumpMetadata, check_preamble, layer_names, read_metadata
from turbocode.dumps.quantized_schema import read_digest, read_json
from turbocode.dumps.source import Source
from turbocode.dumps.stored_arrays import ArrayFacts, array_facts, read_arrays, write_arrays
from turbocode.errors import DataError, OptionError
from turbocode.formats.sides import SIDES

CALIBRATION_FORMAT = "turbocode-calibration"
CALIBRATION_VERSION = 1
Key = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class CalibrationEntry:
    """What was fitted for one layer and side under one name: a JSON object and arrays of 2 to 4 axes."""

    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """path; metadata and dump_sha256 of what it was fitted on; provenance; entries by (layer `000`, side, name)."""

    path: str
    metadata: DumpMetadata
    dump_sha256: str
    provenance: dict[str, Any]
    entries: dict[Key, CalibrationEntry]

    def names(self, layer: str, side: str) -> list[str]:
        """What is stored for a layer and side."""
        return [name for found, kind, name in self.entries if (found, kind) == (layer, side)]

    def entry(self, layer: str, side: str, name: str) -> CalibrationEntry:
        """What is stored under a name. Raises DataError, saying what is there, where nothing is."""
        found = self.entries.get((layer, side, name))
        if found is None:
            there = ", ".join(self.names(layer, side)) or "nothing"
            raise DataError(
                f"{name} was not calibrated; stored are {there}",
                file=self.path,
                object=f"/layers/{layer}/{side}",
                hint=(
                    "turbocode tune DUMP --bits 3 -o RECIPE"
                    if name == "multirate"
                    else f"turbocode calibrate DUMP -o FILE --{side[0]} {name.replace('.', '+')}"
                ),
            )
        return found


@contextmanager
def create_calibration(
    path: AnyPath,
    metadata: DumpMetadata,
    *,
    provenance: dict[str, Any],
    dump_sha256: str,
    force: bool = False,
    inputs: Iterable[AnyPath] = (),
) -> Iterator[CalibrationWriter]:
    """Context giving a CalibrationWriter; the file appears under `path` when the context ends well.

    metadata, dump_sha256 : of the dump that is fitted on; provenance : a JSON object
    Errors : as `atomic_output`.
    """
    with hdf5_output(path, force=force, inputs=inputs) as output:
        put_text(output.file, "format", CALIBRATION_FORMAT)
        output.file.attrs["format_version"] = CALIBRATION_VERSION
        put_metadata(output.file, metadata)
        put_json(output.file, "provenance", provenance)
        put_text(output.file, "dump_sha256", dump_sha256)
        for number in range(metadata.n_layers):
            output.file.create_group(f"layers/{number:03d}")
        yield CalibrationWriter(output, metadata)
        output.file.attrs["complete"] = 1


class CalibrationWriter:
    """Adds entries in any order."""

    def __init__(self, output: HDF5Output, metadata: DumpMetadata) -> None:
        self._output, self._metadata = output, metadata

    def write(
        self, layer: str, side: str, name: str, about: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Write one entry; `about` is a JSON object. Raises OptionError for a layer or side that is not there."""
        if side not in SIDES or f"layers/{layer}" not in self._output.file:
            raise OptionError(f"{side} of layer {layer} do not exist; there are {self._metadata.n_layers} layers")
        group = self._output.file.require_group(f"layers/{layer}/{side}").create_group(name)
        put_json(group, "about", about)
        write_arrays(self._output, group, arrays)


def read_calibration(path: str | os.PathLike[str], *, isolate: bool = False) -> Calibration:
    """The whole calibration file. Errors : NoInputError, DataError, LockedError, DeviceError."""
    with Source(path, isolate=isolate) as source:
        inventory = source.inventory
        check_preamble(inventory, CALIBRATION_FORMAT, CALIBRATION_VERSION)
        if inventory.superblock < CHECKSUMMED_SUPERBLOCK:
            inventory.refuse("/", "metadata have no checksums; calibration files are written with libver v110")
        metadata = read_metadata(inventory)
        entries = {}
        for layer in layer_names(inventory, metadata.n_layers):
            for side in inventory.children(f"/layers/{layer}"):
                if side not in SIDES:
                    inventory.refuse(f"/layers/{layer}/{side}", "is neither keys nor values")
                for name in inventory.children(f"/layers/{layer}/{side}"):
                    group = f"/layers/{layer}/{side}/{name}"
                    inventory.require_group(group)
                    about, facts = read_json(inventory, group, "about"), array_facts(inventory, group)
                    _check_heads(inventory, metadata, facts)
                    entries[layer, side, name] = CalibrationEntry(about, read_arrays(source, facts))
        return Calibration(
            source.path,
            metadata,
            read_digest(inventory, "/", "dump_sha256"),
            read_json(inventory, "/", "provenance"),
            entries,
        )


def _check_heads(inventory: Inventory, metadata: DumpMetadata, facts: Mapping[str, ArrayFacts]) -> None:
    for fact in facts.values():
        if fact.shape[0] not in (1, metadata.n_kv_heads):
            inventory.refuse(
                fact.path, f"first axis has {fact.shape[0]} entries; one for each of {metadata.n_kv_heads} KV heads"
            )
