"""What is in a file: shapes, bytes, and for a dump the statistics that decide how hard its keys and values are to code.

Numba is not imported and only a sample is read, so that `turbocode inspect` answers within a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from turbocode.dumps import Dump, DumpLayer, QuantizedFile, file_kind, open_dump, open_quantized
from turbocode.dumps.calibration import Calibration, read_calibration
from turbocode.dumps.isolation import rehearse
from turbocode.dumps.value_types import LOGICAL_BYTES
from turbocode.errors import OptionError
from turbocode.evaluation.vector_statistics import VectorStatistics
from turbocode.formats.sides import SIDES

SAMPLE_VALUES = 1 << 22  # values looked at in all unless the caller says how many tokens
MIN_SAMPLE_TOKENS = 64  # a layer, however many layers and heads there are
STRETCHES = 8  # of tokens that the sample of one sequence comes from
MAX_STRETCH_TOKENS = 4096  # read at once where chunks are larger, or where there are none
MAX_HEAD_VALUES = 1 << 22  # of one head's sample in memory
Advance = Callable[[int], None]


def inspect_file(
    path: str | os.PathLike[str],
    *,
    sample_tokens: int | None = None,
    nonfinite: str = "error",
    advance: Advance | None = None,
) -> dict[str, Any]:
    """A JSON object on a file of ours: `kind`, `metadata`, `bytes`, and `layers` with a row for each side.

    Of a calibration file, a row lists what was fitted: `name`, `about`, `bytes`, and `arrays` with dtype and shape.

    sample_tokens : tokens of a dump read in each layer, spread over its sequences; None picks a number that keeps the
        time short. `sample` in the result says how many of how many were read.
    nonfinite : as in `open_dump`; advance : called with the number of sides just finished
    Errors : NoInputError, DataError, LockedError, DeviceError, OptionError.
    """
    if sample_tokens is not None and sample_tokens < 1:
        raise OptionError(f"{sample_tokens} sample tokens; allowed is 1 and more")
    rehearse(os.fspath(path))
    kind = file_kind(path)
    if kind == "quantized":
        with open_quantized(path) as file:
            return _inspect_quantized(file)
    if kind == "calibration":
        return _inspect_calibration(read_calibration(path))
    with open_dump(path, nonfinite=nonfinite) as dump:
        return _inspect_dump(dump, sample_tokens, advance or (lambda n: None))


def _inspect_dump(dump: Dump, sample_tokens: int | None, advance: Advance) -> dict[str, Any]:
    metadata = dump.metadata
    values_per_token = metadata.n_kv_heads * metadata.head_dim
    if sample_tokens is None:
        sample_tokens = max(MIN_SAMPLE_TOKENS, SAMPLE_VALUES // (2 * metadata.n_layers * values_per_token))
    sample_tokens = min(sample_tokens, max(1, MAX_HEAD_VALUES // metadata.head_dim))
    layers = []
    tokens_read = tokens_total = side_bytes = 0
    for layer in dump.layers:
        stretches = sample_stretches(layer.n_seqs, layer.n_tokens, layer.chunk_tokens, sample_tokens)
        tokens_read += sum(stretch.n_tokens for stretch in stretches)
        tokens_total += layer.n_seqs * layer.n_tokens
        n_bytes = layer.n_seqs * layer.n_tokens * values_per_token * LOGICAL_BYTES[metadata.logical_dtype]
        side_bytes += n_bytes
        entry: dict[str, Any] = {
            "layer": layer.name,
            "layer_index": layer.layer_index,
            "window": layer.window,
            "softcap": layer.softcap,
            "shape": [layer.n_seqs, metadata.n_kv_heads, layer.n_tokens, metadata.head_dim],
            "query_rows": layer.n_rows,
        }
        for side in SIDES:
            entry[side] = {"bytes": n_bytes, **_side_statistics(layer, side, stretches, metadata.n_kv_heads)}
            advance(1)
        layers.append(entry)
    tokens = dump.tokens()
    return {
        "kind": "dump",
        "file": dump.path,
        "metadata": asdict(metadata),
        "integrity": dump.integrity,
        "bytes": {"file": dump.n_bytes, "keys": side_bytes, "values": side_bytes},
        "tokens": None if tokens is None else list(tokens.shape),
        "sample": {"tokens_read": tokens_read, "tokens_total": tokens_total, "nonfinite": dump.nonfinite_replaced},
        "layers": layers,
    }


class Stretch(NamedTuple):
    """Every step-th token of one sequence from start to stop; a whole chunk, because less takes as long to read."""

    seq: int
    start: int
    stop: int
    step: int

    @property
    def n_tokens(self) -> int:
        return -(-(self.stop - self.start) // self.step)


def sample_stretches(n_seqs: int, n_tokens: int, chunk_tokens: int, sample_tokens: int) -> list[Stretch]:
    """Where to read at most `sample_tokens` tokens of a layer in all, evenly over sequences and positions.

    Every sequence that is read is read from its first token on, where attention sinks are.
    """
    n_read = min(n_seqs, sample_tokens)
    quota = sample_tokens // n_read
    length = min(chunk_tokens, MAX_STRETCH_TOKENS)
    n_chunks = -(-n_tokens // length)
    n_stretches = n_chunks if n_tokens <= quota else min(n_chunks, STRETCHES, quota)
    step = -(-min(n_tokens, n_stretches * length) // quota)
    stretches = []
    for i in range(n_read):
        left = quota
        for k in range(n_stretches):
            start = k * n_chunks // n_stretches * length
            stop = min(start + length, n_tokens, start + step * left)
            if stop > start:
                stretches.append(Stretch(i * n_seqs // n_read, start, stop, step))
                left -= stretches[-1].n_tokens
    return stretches


def _side_statistics(layer: DumpLayer, side: str, stretches: list[Stretch], n_kv_heads: int) -> dict[str, Any]:
    statistics = VectorStatistics()
    for head in range(n_kv_heads):
        pieces = [layer.read(side, s.seq, head, s.start, s.stop)[:: s.step] for s in stretches]
        statistics.add_head(np.concatenate(pieces))
    return statistics.to_json()


def _inspect_quantized(file: QuantizedFile) -> dict[str, Any]:
    metadata = file.metadata
    value_bits = 8 * LOGICAL_BYTES[metadata.logical_dtype]
    layers = []
    block_bytes = dict.fromkeys(SIDES, 0)
    original_bytes = 0
    for layer in file.layers:
        n_vectors = layer.n_seqs * layer.n_tokens * metadata.n_kv_heads
        original_bytes += 2 * n_vectors * metadata.head_dim * value_bits // 8
        entry: dict[str, Any] = {
            "layer": layer.name,
            "layer_index": layer.layer_index,
            "window": layer.window,
            "softcap": layer.softcap,
            "shape": [layer.n_seqs, metadata.n_kv_heads, layer.n_tokens, metadata.head_dim],
        }
        for name in SIDES:
            side = layer.side(name)
            n_bytes = layer.n_seqs * layer.n_tokens * side.row_bytes
            block_bytes[name] += n_bytes
            bits = 8 * side.row_bytes / (metadata.n_kv_heads * metadata.head_dim)
            entry[name] = {
                "bytes": n_bytes,
                "bits_per_value": bits,
                "compression": value_bits / bits,
                "codec": {key: side.codec.get(key) for key in ("codec", "rotation", "norm_mode")},
                "n_codebooks": len(side.codec.get("codebooks") or []),
                "report": side.report,
            }
        layers.append(entry)
    return {
        "kind": "quantized",
        "file": file.path,
        "metadata": asdict(metadata),
        "dump_sha256": file.dump_sha256,
        "bytes": {
            "file": file.n_bytes,
            **block_bytes,
            "original": original_bytes,
            "compression": original_bytes / sum(block_bytes.values()),
            "compression_of_file": original_bytes / file.n_bytes,
        },
        "recipe": file.recipe,
        "provenance": file.provenance,
        "layers": layers,
    }


def _inspect_calibration(file: Calibration) -> dict[str, Any]:
    layers: dict[str, dict[str, Any]] = {}
    n_bytes = dict.fromkeys(SIDES, 0)
    for (layer, side, name), entry in file.entries.items():
        size = sum(array.nbytes for array in entry.arrays.values())
        arrays = {key: {"dtype": str(array.dtype), "shape": list(array.shape)} for key, array in entry.arrays.items()}
        row = layers.setdefault(layer, {"layer": layer, **{key: [] for key in SIDES}})
        row[side].append({"name": name, "about": entry.about, "bytes": size, "arrays": arrays})
        n_bytes[side] += size
    return {
        "kind": "calibration",
        "file": file.path,
        "metadata": asdict(file.metadata),
        "dump_sha256": file.dump_sha256,
        "bytes": {"file": Path(file.path).stat().st_size, **n_bytes},
        "provenance": file.provenance,
        "layers": list(layers.values()),
    }
