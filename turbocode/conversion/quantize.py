"""A dump into a quantized file: read, encode, write, one slab of one head after another."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Coder, EncodeReport, plain_codec, row_bytes, row_widths
from turbocode.codecs.slab_coder import CpuSlabCoder, Job, SlabCoders
from turbocode.conversion.layers_below import LayersBelow
from turbocode.conversion.slabs import places
from turbocode.dumps import Dump, create_quantized
from turbocode.formats.block_format import FLOAT16_BITS
from turbocode.formats.sides import SIDES
from turbocode.policies import Recipe, resolve_coder
from turbocode.provenance import provenance

AnyPath = str | os.PathLike[str]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class QuantizePlan:
    """Which codec every layer and side gets, and what the result will weigh.

    codecs : (layer name, side) -> Coder; n_values : values in the cache; n_bytes : bytes of their blocks
    constant_bits : bits of the codecs' constants that these values answer for
    """

    codecs: dict[tuple[str, str], Coder]
    n_values: int
    n_bytes: int
    constant_bits: float

    @property
    def bits_per_value(self) -> float:
        """Bits of blocks a value, and its share of the constants, counted as Coder.constant_bits."""
        return (8 * self.n_bytes + self.constant_bits) / self.n_values

    @property
    def compression(self) -> float:
        """How many times smaller than float16."""
        return FLOAT16_BITS / self.bits_per_value


def plan_quantize(dump: Dump, recipe: Recipe) -> QuantizePlan:
    """The plan of `recipe` for `dump`. Raises OptionError for codecs that do not fit its head_dim or its layers."""
    metadata = dump.metadata
    recipe = recipe.for_layers([layer.window for layer in dump.layers])
    codecs: dict[tuple[str, str], Coder] = {}
    n_vectors = n_bytes = 0
    constant_bits = 0.0
    for number, layer in enumerate(dump.layers):
        for side in SIDES:
            codec = resolve_coder(recipe, number, side, metadata.head_dim, metadata.n_kv_heads)
            codecs[layer.name, side] = codec
            count = layer.n_seqs * metadata.n_kv_heads * layer.n_tokens
            n_vectors += count
            n_bytes += layer.n_seqs * layer.n_tokens * row_bytes(codec, metadata.n_kv_heads)
            constant_bits += count * metadata.head_dim * codec.constant_bits
    return QuantizePlan(codecs, n_vectors * metadata.head_dim, n_bytes, constant_bits)


def quantize_dump(
    dump: Dump,
    output: AnyPath,
    recipe: Recipe,
    *,
    max_memory: int,
    device: int | None = None,
    force: bool = False,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Write `dump` coded by `recipe` to `output`; what it cost, as a JSON object.

    max_memory : bytes that slabs may use; advance : called with the number of vectors just written
    device : number of the GPU that codes while the next slab is read and the last one written; None: the CPU codes
    The keys of the result: layers (per layer and side: codec, nmse, mean_cosine, bits_per_value, ...), total.
    Raises DataError (non-finite values), OutputError, StorageError; the output appears whole or not at all.
    """
    plan = plan_quantize(dump, recipe)
    rows: list[dict[str, Any]] = []
    coders, n_kv_heads = SlabCoders(device), dump.metadata.n_kv_heads
    below = LayersBelow(dump.layers, plan.codecs, n_kv_heads, dump.metadata.head_dim)
    with (
        _digest_in_background(dump) as dump_sha256,
        create_quantized(
            output,
            dump.metadata,
            recipe=recipe.model_dump(exclude_none=True),
            provenance=provenance("turbocode quantize"),
            dump_sha256=dump_sha256,
            force=force,
            inputs=[dump.path],
            expected_bytes=plan.n_bytes,
        ) as writer,
    ):
        for layer in dump.layers:
            target = writer.add_layer(
                layer.name,
                layer_index=layer.layer_index,
                n_seqs=layer.n_seqs,
                n_tokens=layer.n_tokens,
                window=layer.window,
                softcap=layer.softcap,
            )
            for side in SIDES:
                codec = plan.codecs[layer.name, side]
                widths = row_widths(codec)
                size = below.slab_tokens(layer.name, side, layer.chunk_tokens, max_memory)
                blocks = target.add_side(
                    side,
                    codec=codec.describe(),
                    bytes_per_vector=codec.bytes_per_vector,
                    arrays=codec.arrays(),
                    widths=widths,
                )
                row: list[NDArray[np.uint8]] = []
                report, fixed = EncodeReport(), coders.of(codec)
                under_way: deque[tuple[int, int, int, Job]] = deque()

                def write(seq: int, head: int, start: int, job: Job) -> None:
                    encoded, cost = job.result()
                    report.add(cost)  # noqa: B023  called in the same turn
                    if widths is None:  # noqa: B023
                        blocks.write(seq, head, start, encoded)  # noqa: B023
                    else:
                        row.append(encoded)  # noqa: B023
                        if len(row) == n_kv_heads:  # noqa: B023
                            blocks.write(seq, 0, start, np.concatenate(row, axis=1))  # noqa: B023
                            row.clear()  # noqa: B023
                    if below.wants(layer.name, side):  # noqa: B023
                        bound = below.coder(layer.name, side, seq, start, start + len(encoded))  # noqa: B023
                        below.put(layer.name, side, seq, head, start, bound.decode(encoded, head))  # noqa: B023
                    if advance:
                        advance(len(encoded))

                everything = places(layer.n_seqs, n_kv_heads, layer.n_tokens, size, is_by_row=widths is not None)
                for seq, head, start, stop in everything:
                    if len(under_way) == fixed.depth:
                        write(*under_way.popleft())
                    bound = below.coder(layer.name, side, seq, start, stop)
                    coder = fixed if bound is codec else CpuSlabCoder(bound)
                    job = coder.submit_encode(layer.read(side, seq, head, start, stop), head)
                    under_way.append((seq, head, start, job))
                while under_way:
                    write(*under_way.popleft())
                blocks.finish(report.to_json())
                rows.append(_row(layer.name, side, codec, report))
    total = {
        "n_values": plan.n_values,
        "n_bytes": plan.n_bytes,
        "bits_per_value": plan.bits_per_value,
        "compression": plan.compression,
        "saturated_vectors": sum(row["saturated_vectors"] for row in rows),
        "nonfinite_replaced": dump.nonfinite_replaced,
    }
    return {"output": os.fspath(output), "layers": rows, "total": total}


class _Abandoned(Exception):
    """The digest is not wanted any more."""


@contextmanager
def _digest_in_background(dump: Dump) -> Iterator[Callable[[], str]]:
    """Context giving a function that waits for the dump's digest, which a thread takes while the caller encodes."""
    is_over = threading.Event()

    def advance(n_bytes: int) -> None:
        if is_over.is_set():
            raise _Abandoned

    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(dump.content_sha256, advance)
        try:
            yield digest.result
        finally:
            is_over.set()


def _row(layer: str, side: str, codec: Coder, report: EncodeReport) -> dict[str, Any]:
    plain = plain_codec(codec)
    return {
        "layer": layer,
        "side": side,
        "codec": codec.name,
        "rotation": plain.rotation.kind if plain else None,
        "norm_mode": plain.norm_mode if plain and plain.block_format.has_codebook else None,
        "bits_per_value": codec.bits_per_value,
        **report.to_json(),
    }
