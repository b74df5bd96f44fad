"""A quantized file back into a dump: what its blocks stand for, in float16, bfloat16 or float32."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from turbocode.codecs import coder_from_description
from turbocode.codecs.slab_coder import CpuSlabCoder, Job, SlabCoders
from turbocode.conversion.layers_below import LayersBelow
from turbocode.conversion.slabs import slabs
from turbocode.dumps import QuantizedFile, create_dump
from turbocode.errors import OptionError
from turbocode.formats.sides import SIDES

LOGICAL_DTYPES = ("float16", "bfloat16", "float32")
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_FLOAT16_MAX = np.float32(65504.0)


def dequantize_file(
    quantized: QuantizedFile,
    output: str | os.PathLike[str],
    *,
    max_memory: int,
    logical_dtype: str | None = None,
    device: int | None = None,
    force: bool = False,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write the decoded keys and values of `quantized` to `output`, a dump without queries; a JSON summary.

    logical_dtype : of the dump; by default that of the dump the file was made from. What passes 65504 in float16 is
    cut to it and counted in `saturated_values`.
    device : number of the GPU that decodes while the next slab is read and the last one written; None: the CPU decodes
    """
    metadata = quantized.metadata
    dtype = logical_dtype or metadata.logical_dtype
    if dtype not in LOGICAL_DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; allowed: {', '.join(LOGICAL_DTYPES)}")
    n_vectors = sum(layer.n_seqs * metadata.n_kv_heads * layer.n_tokens * len(SIDES) for layer in quantized.layers)
    n_bytes = n_vectors * metadata.head_dim * _BYTES[dtype]
    saturated, coders = 0, SlabCoders(device)
    described = replace(metadata, logical_dtype=dtype, sha256=None)
    codecs = {
        (layer.name, side): coder_from_description(stored.codec, stored.arrays(), file=quantized.path)
        for layer in quantized.layers
        for side, stored in ((side, layer.side(side)) for side in SIDES)
    }
    below = LayersBelow(quantized.layers, codecs, metadata.n_kv_heads, metadata.head_dim)
    with create_dump(output, described, force=force, inputs=[quantized.path], expected_bytes=n_bytes) as writer:
        for layer in quantized.layers:
            target = writer.add_layer(
                layer.name,
                layer_index=layer.layer_index,
                n_seqs=layer.n_seqs,
                n_tokens=layer.n_tokens,
                window=layer.window,
                softcap=layer.softcap,
            )
            for side in SIDES:
                stored, codec = layer.side(side), codecs[layer.name, side]
                size = below.slab_tokens(layer.name, side, 1, max_memory)
                fixed = coders.of(codec)
                under_way: deque[tuple[int, int, int, Job]] = deque()

                def write(seq: int, head: int, start: int, job: Job) -> int:
                    values, cut = job.result(), 0
                    below.put(layer.name, side, seq, head, start, values)  # noqa: B023
                    if dtype == "float16":
                        cut = int((np.abs(values) > _FLOAT16_MAX).sum())
                        np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX, out=values)
                    target.write(side, seq, head, start, values)  # noqa: B023  called in the same turn
                    if advance:
                        advance(len(values))
                    return cut

                for seq in range(layer.n_seqs):
                    for head in range(metadata.n_kv_heads):
                        for start, stop in slabs(layer.n_tokens, size):
                            if len(under_way) == fixed.depth:
                                saturated += write(*under_way.popleft())
                            bound = below.coder(layer.name, side, seq, start, stop)
                            coder = fixed if bound is codec else CpuSlabCoder(bound)
                            job = coder.submit_decode(stored.read(seq, head, start, stop), head)
                            under_way.append((seq, head, start, job))
                while under_way:
                    saturated += write(*under_way.popleft())
    return {
        "output": os.fspath(output),
        "logical_dtype": dtype,
        "n_vectors": n_vectors,
        "n_bytes": n_bytes,
        "saturated_values": saturated,
    }
