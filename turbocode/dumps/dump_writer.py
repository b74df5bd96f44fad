"""Writes KV dumps, version 1: any writer of a dump in turbocode goes through here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.atomic import AnyPath
from turbocode.dumps.dump_schema import DUMP_FORMAT, DUMP_VERSION, fisher_name
from turbocode.dumps.hdf5 import h5py
from turbocode.dumps.hdf5_output import HDF5Output, hdf5_output, put_text
from turbocode.dumps.metadata import DumpMetadata
from turbocode.dumps.value_types import nonfinite_mask, to_bits
from turbocode.errors import DataError, OptionError

_DISK_DTYPE = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}


@contextmanager
def create_dump(
    path: AnyPath,
    metadata: DumpMetadata,
    *,
    force: bool = False,
    inputs: Iterable[AnyPath] = (),
    expected_bytes: int | None = None,
) -> Iterator[DumpWriter]:
    """Context giving a DumpWriter; the dump appears under `path` when the context ends well.

    Errors : as `atomic_output`; OutputError where a layer or a part of one was not written.
    """
    with hdf5_output(path, force=force, inputs=inputs, expected_bytes=expected_bytes) as output:
        file = output.file
        put_text(file, "format", DUMP_FORMAT)
        file.attrs["format_version"] = DUMP_VERSION
        put_metadata(file, metadata)
        writer = DumpWriter(output, metadata)
        yield writer
        writer.finish()
        file.attrs["complete"] = 1


def put_metadata(file: h5py.File, metadata: DumpMetadata) -> None:
    """Write the fields of a DumpMetadata as root attributes; None is left out."""
    for name, value in asdict(metadata).items():
        if isinstance(value, str):
            put_text(file, name, value)
        elif value is not None:
            file.attrs[name] = value


def put_layer(file: h5py.File, number: int, name: str, *, layer_index: int, window: int, softcap: float) -> h5py.Group:
    """Group `layers/name` with its attributes; OptionError unless `name` is the number due, in three digits."""
    if name != f"{number:03d}":
        raise OptionError(f"layer {name!r} was added; {number:03d} is next")
    if layer_index < 0 or window < 0 or not 0 <= softcap < float("inf"):
        raise OptionError(
            f"layer {name}: layer_index {layer_index}, window {window}, softcap {softcap}; none may be negative"
        )
    group = file.create_group(f"layers/{name}")
    group.attrs["layer_index"] = layer_index
    group.attrs["window"] = window
    group.attrs["softcap"] = float(softcap)
    return group


class DumpWriter:
    """Adds the layers of a dump, 000 first, and its tokens."""

    def __init__(self, output: HDF5Output, metadata: DumpMetadata) -> None:
        self._output = output
        self.metadata = metadata
        self._layers: list[LayerWriter] = []
        self._tokens_shape: tuple[int, ...] | None = None

    def add_layer(
        self,
        name: str,
        *,
        layer_index: int,
        n_seqs: int,
        n_tokens: int,
        n_rows: int = 0,
        window: int = 0,
        softcap: float = 0.0,
    ) -> LayerWriter:
        """LayerWriter of the next layer; n_rows 0 means no queries."""
        if len(self._layers) >= self.metadata.n_layers:
            raise OptionError(f"layer {name!r} was added; metadata announces {self.metadata.n_layers} layers")
        group = put_layer(
            self._output.file, len(self._layers), name, layer_index=layer_index, window=window, softcap=softcap
        )
        layer = LayerWriter(self._output, group, self.metadata, n_seqs, n_tokens, n_rows)
        self._layers.append(layer)
        return layer

    def write_tokens(self, tokens: NDArray[Any]) -> None:
        """Write the token ids, (n_seqs, n_tokens)."""
        _write_index(self._output, self._output.file, "tokens", tokens, "<i4")
        self._tokens_shape = tokens.shape

    def finish(self) -> None:
        """Check that everything announced was written; called by `create_dump`."""
        if len(self._layers) != self.metadata.n_layers:
            raise OptionError(f"{len(self._layers)} layers were added; metadata announces {self.metadata.n_layers}")
        shapes = {(layer.n_seqs, layer.n_tokens) for layer in self._layers}
        if self._tokens_shape is not None:
            shapes.add((self._tokens_shape[0], self._tokens_shape[1]))
        if len(shapes) != 1:
            raise OptionError(f"layers and tokens have different (n_seqs, n_tokens): {sorted(shapes)}")
        for layer in self._layers:
            layer.finish()


class LayerWriter:
    """Writes keys, values and queries of one layer, each in C order: sequence, head, token."""

    def __init__(
        self, output: HDF5Output, group: h5py.Group, metadata: DumpMetadata, n_seqs: int, n_tokens: int, n_rows: int
    ) -> None:
        self._output, self._group, self._metadata = output, group, metadata
        self.n_seqs, self.n_tokens, self.n_rows = n_seqs, n_tokens, n_rows
        self._has_positions = False
        dtype, width = _DISK_DTYPE[metadata.logical_dtype], metadata.head_dim
        shapes = dict.fromkeys(("keys", "values"), (n_seqs, metadata.n_kv_heads, n_tokens, width))
        if n_rows:
            shapes["queries"] = (n_seqs, metadata.n_query_heads, n_rows, width)
        self._datasets = {kind: output.dataset(group, kind, shape, dtype) for kind, shape in shapes.items()}

    def write(self, kind: str, seq: int, head: int, start: int, values: NDArray[Any]) -> None:
        """Append `values`, (n, head_dim) floats, rounded to the dump's logical dtype.

        kind : keys, values or queries. Errors : OptionError out of order; DataError for a value that is not finite.
        """
        if kind not in self._datasets:
            raise OptionError(f"kind {kind!r} was written; this layer has {', '.join(self._datasets)}")
        logical = self._metadata.logical_dtype
        bits = to_bits(values, logical)
        bad = nonfinite_mask(bits, logical)
        if bad.any():
            row = start + int(np.argwhere(bad)[0][0])
            raise DataError(
                f"value is not finite as {logical} at sequence {seq}, head {head}, position {row}",
                object=f"{self._group.name}/{kind}",
            )
        stored = bits if logical == "bfloat16" else bits.view(f"f{bits.itemsize}")
        self._datasets[kind].write((seq, head), start, stored)

    def write_positions(self, positions: NDArray[Any]) -> None:
        """Write the query positions, integers (n_seqs, n_rows) in 0..n_tokens-1."""
        expected = (self.n_seqs, self.n_rows)
        if positions.shape != expected:
            raise OptionError(f"query positions of shape {positions.shape} were written; expected {expected}")
        if positions.min() < 0 or positions.max() >= self.n_tokens:
            found = f"{positions.min()} to {positions.max()}"
            raise OptionError(f"query positions are {found}; allowed is 0 to {self.n_tokens - 1}")
        _write_index(self._output, self._group, "query_positions", positions, "<i8")
        self._has_positions = True

    def write_fisher(self, side: str, metric: NDArray[Any]) -> None:
        """Write E[g g^T] of `keys` or `values`, finite floats (n_kv_heads, head_dim, head_dim); both sides or none."""
        shape = (self._metadata.n_kv_heads, self._metadata.head_dim, self._metadata.head_dim)
        if metric.shape != shape or not np.isfinite(metric).all():
            raise OptionError(f"Fisher information of shape {metric.shape} was written; expected finite {shape}")
        dataset = self._output.dataset(self._group, fisher_name(side), shape, "<f4")
        for head, rows in enumerate(metric):
            dataset.write((head,), 0, rows)
        dataset.finish()

    def finish(self) -> None:
        """Seal the datasets with their SHA-256; errors if anything is missing."""
        for dataset in self._datasets.values():
            dataset.finish()
        if self.n_rows and not self._has_positions:
            raise OptionError(f"{self._group.name}: queries were written without query_positions")


def _write_index(output: HDF5Output, group: Any, name: str, values: NDArray[Any], dtype: str) -> None:
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise OptionError(f"{name}: integers of shape (n_seqs, n) are expected, not {values.dtype} {values.shape}")
    limits = np.iinfo(dtype)
    if values.size and (int(values.min()) < limits.min or int(values.max()) > limits.max):
        raise OptionError(f"{name}: values from {values.min()} to {values.max()} do not fit {dtype}")
    dataset = output.dataset(group, name, values.shape, dtype)
    dataset.write((), 0, values)
    dataset.finish()
