"""The codec that a header is written for: named by a spec, or read out of a quantized file."""

from __future__ import annotations

import os
from dataclasses import replace

from turbocode.codebooks import CodebookSet
from turbocode.codebooks.catalog import read_codebook
from turbocode.codecs import Codec, MultirateCodec, PerHeadCodec, coder_from_description, make_codec, parse_codec
from turbocode.dumps import open_quantized
from turbocode.errors import OptionError
from turbocode.policies.resolve import is_codebook_file

SIDES = {"k": "keys", "v": "values"}


def codec_of_spec(
    text: str,
    head_dim: int,
    *,
    codebook: str | None = None,
    layer: int | None = None,
    side: str | None = None,
    head: int | None = None,
) -> Codec:
    """The codec that `text`, such as turbo3 or turbo3:norm=mse, names, with at most one codebook.

    codebook : name of a shipped one or path of a JSON file, instead of `codebook=` in the text
    layer, side (`k` or `v`), head : which codebook to take from a file with several
    Raises OptionError, NoInputError and DataError as `parse_codec`, `read_codebook` and `make_codec` do.
    """
    spec = parse_codec(text)
    if codebook is not None:
        if spec.codebook is not None:
            raise OptionError(f"codec {text!r} names a codebook, and --codebook names {codebook!r}; one is needed")
        spec = replace(spec, codebook=codebook)
    stored = None
    if spec.codebook is not None and is_codebook_file(spec.codebook):
        stored = read_codebook(spec.codebook)
    if not isinstance(stored, CodebookSet):
        if (layer, side, head) != (None, None, None):
            raise OptionError("--layer, --side and --head apply to --from and to files with several codebooks")
        return make_codec(spec, head_dim, codebooks=stored)
    if layer is None or side is None:
        raise OptionError(f"{spec.codebook} holds several codebooks; choose one", hint="--layer N --side k --head H")
    return make_codec(spec, head_dim, codebooks=stored.select(f"{layer:03d}", SIDES[side], head or 0))


def codec_of_file(
    path: str | os.PathLike[str], *, layer: int | None, side: str | None, head: int | None = None
) -> Codec | MultirateCodec:
    """The codec of the keys (side `k`) or values (`v`) of layer number `layer` of a quantized file, for one KV head.

    Raises OptionError for a layer or head that is not there, or where heads differ and none is chosen.
    """
    if layer is None or side is None:
        raise OptionError("--from needs --layer and --side", hint="for example --layer 0 --side k")
    with open_quantized(path, isolate=True) as source:
        n_heads = source.metadata.n_kv_heads
        stored = next((found for found in source.layers if int(found.name) == layer), None)
        if stored is None:
            names = [int(found.name) for found in source.layers]
            raise OptionError(f"layer {layer} is not in the file; layers are {names[0]} to {names[-1]}", file=path)
        chosen = stored.side(SIDES[side])
        codec = coder_from_description(chosen.codec, chosen.arrays(), file=os.fspath(path))
    if head is not None and not 0 <= head < n_heads:
        raise OptionError(f"head {head} is not in the file; KV heads are 0 to {n_heads - 1}", file=path)
    if isinstance(codec, PerHeadCodec):
        if head is None:
            raise OptionError(f"KV heads have codecs of their own, {codec.name}; choose one with --head", file=path)
        codec = codec.for_head(head)
    if not isinstance(codec, Codec | MultirateCodec):
        raise OptionError(
            f"{codec.name} has constants of its own; a header holds codecs without",
            file=path,
            hint=f"export the codec by name, such as turbocode export header {codec.name.rpartition('+')[2]}",
        )
    if codec.n_heads == 1:
        return codec
    if head is None:
        raise OptionError("every KV head has constants of its own; choose one with --head", file=path)
    return codec.for_head(head)
