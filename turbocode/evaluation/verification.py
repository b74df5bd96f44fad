"""Whether a file is what it says: checksums, blocks that decode, finite values, figures that can be repeated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from turbocode.codecs import Coder, coder_from_description, row_widths, run_tokens
from turbocode.conversion.layers_below import LayersBelow
from turbocode.dumps import (
    Dump,
    DumpLayer,
    QuantizedFile,
    QuantizedLayer,
    file_kind,
    open_dump,
    open_quantized,
    read_calibration,
)
from turbocode.dumps.isolation import rehearse
from turbocode.errors import DataError, OptionError, QualityError, TurbocodeError
from turbocode.formats.sides import SIDES
from turbocode.transforms import TRANSFORMS, FittedChain, FittedTransform

SLAB_BYTES = 1 << 22  # of float32 values decoded at a time
NMSE_TOLERANCE = 1e-4  # relative; sums are taken in another order than when the file was written
NMSE_FLOOR = 1e-9  # absolute, for codecs that lose next to nothing
Advance = Callable[[int], None]


@dataclass
class _Findings:
    """What is wrong so far; `damaged` counts what cannot be read, apart from what reads and disagrees."""

    rows: list[dict[str, str]] = field(default_factory=list)
    damaged: int = 0

    def mismatch(self, where: str, problem: str) -> None:
        self.rows.append({"object": where, "problem": problem})

    def damage(self, where: str, error: DataError) -> None:
        self.damaged += 1
        self.mismatch(error.object or where, error.message)


def verify_file(
    path: str | os.PathLike[str], *, against: str | os.PathLike[str] | None = None, advance: Advance | None = None
) -> dict[str, Any]:
    """A JSON object: `ok`, `checks` (what was done, how often) and `findings` (object and problem of each).

    A dump or a calibration is read whole: checksums and finite values. Of a quantized file every stored sha256 is
    computed again and every block decoded; against : the dump it was made of, whose digest and NMSE have to be the
    stored ones.
    advance : called with the number of bytes just looked at
    Errors : NoInputError, LockedError, OptionError; DataError where the file as a whole cannot be read.
    """
    report = advance or (lambda n: None)
    rehearse(os.fspath(path))
    kind = file_kind(path)
    findings = _Findings()
    if kind == "calibration":
        if against is not None:
            raise OptionError("a calibration is verified by itself; --against is for quantized files", file=path)
        checks = _verify_calibration(path)
    elif kind == "dump":
        if against is not None:
            raise OptionError("a dump is verified by itself; --against is for quantized files", file=path)
        with open_dump(path) as dump:
            checks = _verify_dump(dump, findings, report)
    elif against is None:
        with open_quantized(path) as file:
            checks = _verify_quantized(file, None, findings, report)
    else:
        with open_quantized(path) as file, open_dump(against, nonfinite="zero", isolate=True) as dump:
            checks = _verify_quantized(file, dump, findings, report)
    return {
        "kind": kind,
        "file": os.fspath(path),
        "against": None if against is None else os.fspath(against),
        "ok": not findings.rows,
        "damaged": findings.damaged,
        "checks": checks,
        "findings": findings.rows,
    }


def verification_error(result: dict[str, Any]) -> TurbocodeError | None:
    """The error that a result of `verify_file` amounts to: DataError for damage, QualityError for a mismatch."""
    if result["ok"]:
        return None
    first = result["findings"][0]
    count = len(result["findings"])
    kind = DataError if result["damaged"] else QualityError
    more = f" (and {count - 1} more)" if count > 1 else ""
    return kind(f"{first['problem']}{more}", file=result["file"], object=first["object"])


def _verify_calibration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read everything, which compares every checksum, and build every chain of transforms. Raises DataError."""
    found = read_calibration(path)
    about, n_arrays = found.metadata, 0
    for (layer, side, name), entry in found.entries.items():
        n_arrays += len(entry.arrays)
        last = name.rpartition(".")[2]
        if last in TRANSFORMS:
            try:
                FittedChain((FittedTransform(last, entry.about, entry.arrays),), about.n_kv_heads, about.head_dim)
            except DataError as error:
                raise DataError(error.message, file=found.path, object=f"/layers/{layer}/{side}/{name}") from None
    return {"entries": len(found.entries), "sha256_compared": n_arrays}


def _verify_dump(dump: Dump, findings: _Findings, advance: Advance) -> dict[str, Any]:
    n_vectors = 0
    for layer in dump.layers:
        kinds = SIDES if layer.n_rows == 0 else (*SIDES, "queries")
        for kind in kinds:
            length = layer.n_rows if kind == "queries" else layer.n_tokens
            n_heads = dump.metadata.n_query_heads if kind == "queries" else dump.metadata.n_kv_heads
            where = f"/layers/{layer.name}/{kind}"
            try:
                for seq, head, start, stop in _slabs(layer.n_seqs, n_heads, length, dump.metadata.head_dim):
                    advance(layer.read(kind, seq, head, start, stop).nbytes)
                    n_vectors += stop - start
            except DataError as error:
                findings.damage(where, error)
        try:
            layer.query_positions()
        except DataError as error:
            findings.damage(f"/layers/{layer.name}/query_positions", error)
        for side in SIDES:
            try:
                layer.read_fisher(side)
            except DataError as error:
                findings.damage(f"/layers/{layer.name}/{side}_fisher", error)
    checks: dict[str, Any] = {"integrity": dump.integrity, "vectors_read": n_vectors, "content_sha256": None}
    if not findings.rows:
        checks["content_sha256"] = dump.content_sha256()
    return checks


def _verify_quantized(file: QuantizedFile, dump: Dump | None, findings: _Findings, advance: Advance) -> dict[str, Any]:
    checks = {"sha256_compared": 0, "vectors_decoded": 0, "figures_compared": 0}
    source_layers: dict[str, DumpLayer] = {}
    if dump is not None:
        if dump.content_sha256() != file.dump_sha256:
            findings.mismatch("/", f"was made of another dump than {dump.path}: their sha256 differ")
        else:
            source_layers = {layer.name: layer for layer in dump.layers}
    codecs = {(layer.name, side): _codec_or_error(file, layer, side) for layer in file.layers for side in SIDES}
    sound = {key: found for key, found in codecs.items() if not isinstance(found, DataError)}
    below = LayersBelow(file.layers, sound, file.metadata.n_kv_heads, file.metadata.head_dim)
    for layer in file.layers:
        for side in SIDES:
            codec, source = codecs[layer.name, side], source_layers.get(layer.name)
            try:
                _verify_side(file, layer, side, codec, below, source, findings, checks, advance)
            except DataError as error:
                findings.damage(f"/layers/{layer.name}/{side}", error)
    return checks


def _codec_or_error(file: QuantizedFile, layer: QuantizedLayer, side: str) -> Coder | DataError:
    stored = layer.side(side)
    try:
        return coder_from_description(stored.codec, stored.arrays(), file=file.path)
    except DataError as error:
        return error


def _verify_side(
    file: QuantizedFile,
    layer: QuantizedLayer,
    name: str,
    codec: Coder | DataError,
    below: LayersBelow,
    source: DumpLayer | None,
    findings: _Findings,
    checks: dict[str, int],
    advance: Advance,
) -> None:
    side = layer.side(name)
    where = f"/layers/{layer.name}/{name}"
    if side.compute_sha256() != side.stored_sha256:
        findings.mismatch(where, "sha256 of the blocks differs from the stored one")
    checks["sha256_compared"] += 1
    if isinstance(codec, DataError):
        raise codec
    head_dim, n_kv_heads = file.metadata.head_dim, file.metadata.n_kv_heads
    fits = (codec.bytes_per_vector, row_widths(codec)) == (side.bytes_per_vector, side.widths)
    if not fits or codec.head_dim != head_dim:
        findings.mismatch(where, f"blocks of {side.bytes_per_vector} bytes a vector do not fit codec {codec.name}")
        return
    energy = error = 0.0
    n_nonfinite = 0
    for seq, head, start, stop in _slabs(layer.n_seqs, n_kv_heads, layer.n_tokens, head_dim, run_tokens(codec)):
        blocks = side.read(seq, head, start, stop)
        decoded = below.coder(layer.name, name, seq, start, stop).decode(blocks, head)
        below.put(layer.name, name, seq, head, start, decoded)
        n_nonfinite += int(np.count_nonzero(~np.isfinite(decoded)))
        if source is not None:
            exact = source.read(name, seq, head, start, stop).astype(np.float64)
            energy += float(np.vdot(exact, exact))
            exact -= decoded
            error += float(np.vdot(exact, exact))
        checks["vectors_decoded"] += stop - start
        advance(blocks.nbytes)
    if n_nonfinite:
        findings.mismatch(where, f"{n_nonfinite} decoded values are not finite")
    stored = side.report.get("nmse")
    if source is not None and isinstance(stored, (int, float)):
        checks["figures_compared"] += 1
        nmse = error / energy if energy > 0 else 0.0
        if not math.isclose(nmse, stored, rel_tol=NMSE_TOLERANCE, abs_tol=NMSE_FLOOR):
            findings.mismatch(where, f"NMSE is {nmse:.6g}; stored is {stored:.6g}")


def _slabs(n_seqs: int, n_heads: int, length: int, head_dim: int, run: int = 1) -> Iterator[tuple[int, int, int, int]]:
    """(seq, head, start, stop) that cover a dataset, each of about SLAB_BYTES as float32 and of whole runs."""
    step = max(1, SLAB_BYTES // (4 * head_dim * run)) * run
    for seq in range(n_seqs):
        for head in range(n_heads):
            for start in range(0, length, step):
                yield seq, head, start, min(start + step, length)
