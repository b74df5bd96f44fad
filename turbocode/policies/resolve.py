"""From a codec as written to the codec of one layer's keys or values, with its trained codebooks."""

from __future__ import annotations

from pathlib import Path

from turbocode.codebooks import Codebook
from turbocode.codebooks.catalog import read_codebook
from turbocode.codecs import Codec, CodecSpec, make_codec


def resolve_codec(spec: CodecSpec, head_dim: int, *, layer: str, side: str, n_kv_heads: int) -> Codec:
    """The codec of one side (`keys` or `values`) of layer `layer` (three digits).

    A codebook that is a file may hold one codebook, or a set from which layer, side and KV head pick.
    Raises OptionError (unknown name, wrong number of bits), NoInputError and DataError (the file).
    """
    if spec.codebook is None or not is_codebook_file(spec.codebook):
        return make_codec(spec, head_dim)
    stored = read_codebook(spec.codebook)
    if isinstance(stored, Codebook):
        return make_codec(spec, head_dim, codebooks=stored)
    per_head = [stored.select(layer, side, head) for head in range(n_kv_heads)]
    is_shared = all(codebook is per_head[0] for codebook in per_head)
    return make_codec(spec, head_dim, codebooks=per_head[:1] if is_shared else per_head)


def is_codebook_file(name: str) -> bool:
    """Whether `codebook=name` means a file: it has a folder or a suffix, which no shipped codebook's name has."""
    return Path(name).name != name or bool(Path(name).suffix)
