"""From a codec as written to the codec of one layer's keys or values, with its trained codebooks."""

from __future__ import annotations

from pathlib import Path

from turbocode.codebooks import CodebookSet
from turbocode.codebooks.catalog import read_codebook
from turbocode.codecs import Codec, CodecSpec, make_codec
from turbocode.errors import OptionError


def resolve_codec(spec: CodecSpec, head_dim: int, *, layer: str, side: str, n_kv_heads: int) -> Codec:
    """The codec of one side (`keys` or `values`) of layer `layer` (three digits).

    A codebook that is a file may hold one codebook, or a set from which layer, side and KV head pick.
    Raises OptionError (unknown name, wrong number of bits), NoInputError and DataError (the file).
    """
    if spec.codebook is None or not is_codebook_file(spec.codebook):
        return make_codec(spec, head_dim)
    stored = read_codebook(spec.codebook)
    if not isinstance(stored, CodebookSet):
        return _checked(make_codec(spec, head_dim, codebooks=stored), spec)
    per_head = [stored.select(layer, side, head) for head in range(n_kv_heads)]
    is_shared = all(codebook is per_head[0] for codebook in per_head)
    return _checked(make_codec(spec, head_dim, codebooks=per_head[:1] if is_shared else per_head), spec)


def _checked(codec: Codec, spec: CodecSpec) -> Codec:
    """The codec, unless a codebook says that it was trained for another rotation or group size."""
    used = {"rotation": codec.rotation.kind, "group_size": codec.block_format.group_size}
    for codebook in codec.codebooks:
        for key, value in used.items():
            trained = codebook.provenance.get(key, value)
            if trained != value:
                raise OptionError(
                    f"codebook {codebook.name} was trained with {key.replace('_', ' ')} {trained}; {spec} has {value}",
                    hint="train one for this codec, or give the codec the rotation of the codebook",
                )
    return codec


def is_codebook_file(name: str) -> bool:
    """Whether `codebook=name` means a file: it has a folder or a suffix, which no shipped codebook's name has."""
    return Path(name).name != name or bool(Path(name).suffix)
