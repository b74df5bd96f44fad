"""Writes quantized files, version 1; docs/quantized-file.md describes them field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.atomic import AnyPath
from turbocode.dumps.dump_writer import put_layer, put_metadata
from turbocode.dumps.hdf5 import h5py
from turbocode.dumps.hdf5_output import HDF5Output, hdf5_output, put_json, put_text
from turbocode.dumps.metadata import DumpMetadata
from turbocode.dumps.quantized_schema import ARRAYS, QUANTIZED_FORMAT, QUANTIZED_VERSION
from turbocode.dumps.stored_arrays import write_arrays
from turbocode.errors import OptionError, OutputError
from turbocode.formats.sides import SIDES


@contextmanager
def create_quantized(
    path: AnyPath,
    metadata: DumpMetadata,
    *,
    recipe: dict[str, Any],
    provenance: dict[str, Any],
    dump_sha256: str | Callable[[], str],
    force: bool = False,
    inputs: Iterable[AnyPath] = (),
    expected_bytes: int | None = None,
) -> Iterator[QuantizedWriter]:
    """Context giving a QuantizedWriter; the file appears under `path` when the context ends well.

    metadata, dump_sha256 : of the dump that is quantized, the digest as text or as a function that is called at the end
    recipe, provenance : JSON objects
    Errors : as `atomic_output`; OutputError where a side was not written whole.
    """
    with hdf5_output(path, force=force, inputs=inputs, expected_bytes=expected_bytes) as output:
        file = output.file
        put_text(file, "format", QUANTIZED_FORMAT)
        file.attrs["format_version"] = QUANTIZED_VERSION
        put_metadata(file, metadata)
        put_json(file, "recipe", recipe)
        put_json(file, "provenance", provenance)
        writer = QuantizedWriter(output, metadata)
        yield writer
        writer.finish()
        put_text(file, "dump_sha256", dump_sha256 if isinstance(dump_sha256, str) else dump_sha256())
        file.attrs["complete"] = 1


class QuantizedWriter:
    """Adds the layers of a quantized file, 000 first."""

    def __init__(self, output: HDF5Output, metadata: DumpMetadata) -> None:
        self._output = output
        self.metadata = metadata
        self._layers: list[QuantizedLayerWriter] = []

    def add_layer(
        self, name: str, *, layer_index: int, n_seqs: int, n_tokens: int, window: int = 0, softcap: float = 0.0
    ) -> QuantizedLayerWriter:
        """QuantizedLayerWriter of the next layer."""
        if len(self._layers) >= self.metadata.n_layers:
            raise OptionError(f"layer {name!r} was added; metadata announces {self.metadata.n_layers} layers")
        group = put_layer(
            self._output.file, len(self._layers), name, layer_index=layer_index, window=window, softcap=softcap
        )
        layer = QuantizedLayerWriter(self._output, group, (n_seqs, self.metadata.n_kv_heads, n_tokens))
        self._layers.append(layer)
        return layer

    def finish(self) -> None:
        """Check that everything announced was written; called by `create_quantized`."""
        if len(self._layers) != self.metadata.n_layers:
            raise OutputError(f"{len(self._layers)} layers were added; metadata announces {self.metadata.n_layers}")
        for layer in self._layers:
            layer.check_finished()


class QuantizedLayerWriter:
    """Adds the keys and the values of one layer."""

    def __init__(self, output: HDF5Output, group: h5py.Group, shape: tuple[int, int, int]) -> None:
        self._output, self._group, self._shape = output, group, shape
        self._sides: dict[str, SideWriter] = {}

    def add_side(
        self,
        side: str,
        *,
        codec: dict[str, Any],
        bytes_per_vector: int,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        widths: Sequence[int] | None = None,
    ) -> SideWriter:
        """SideWriter of the keys or the values, whose blocks `codec` describes; arrays : what it refers to by name.

        widths : bytes of a vector of each KV head where they differ: rows of all heads are then written, as head 0
        """
        if side not in SIDES or side in self._sides:
            raise OptionError(f"side {side!r} was added; allowed are keys and values, once each")
        group = self._group.create_group(side)
        n_seqs, n_heads, n_tokens = self._shape
        rows = (n_heads, bytes_per_vector) if widths is None else (1, sum(widths))
        writer = SideWriter(self._output, group, (n_seqs, rows[0], n_tokens, rows[1]), codec)
        if arrays:
            write_arrays(self._output, group.create_group(ARRAYS), arrays)
        self._sides[side] = writer
        return writer

    def check_finished(self) -> None:
        for side in SIDES:
            if side not in self._sides or not self._sides[side].finished:
                raise OutputError(f"{self._group.name}/{side} was not finished")


class SideWriter:
    """Writes blocks in C order (sequence, head, token), then the report."""

    def __init__(self, output: HDF5Output, group: h5py.Group, shape: tuple[int, ...], codec: dict[str, Any]) -> None:
        self._group = group
        self.finished = False
        put_json(group, "codec", codec)
        self._blocks = output.dataset(group, "blocks", shape, "u1")

    def write(self, seq: int, head: int, start: int, blocks: NDArray[np.uint8]) -> None:
        """Append `blocks`, uint8 (n, bytes_per_vector); OptionError for another type or order."""
        if blocks.dtype != np.uint8:
            raise OptionError(f"blocks are {blocks.dtype}; uint8 is expected")
        self._blocks.write((seq, head), start, blocks)

    def finish(self, report: dict[str, Any]) -> None:
        """Seal the blocks with their SHA-256 and write the report, a JSON object."""
        self._blocks.finish()
        put_json(self._group, "report", report)
        self.finished = True
