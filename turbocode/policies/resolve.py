"""From a codec as written to the codec of one layer's keys or values, with its trained codebooks."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbocode.codebooks import CodebookSet
from turbocode.codebooks.catalog import read_codebook
from turbocode.codecs import (
    Codec,
    CodecSpec,
    Coder,
    PerHeadCodec,
    TransformedCodec,
    make_codec,
    multirate_from_calibration,
)
from turbocode.dumps import Calibration, read_calibration
from turbocode.errors import DataError, NoInputError, OptionError
from turbocode.policies.recipe import Recipe
from turbocode.transforms import FittedChain, load_chain

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resolve_coder(recipe: Recipe, number: int, side: str, head_dim: int, n_kv_heads: int) -> Coder:
    """What the recipe codes one side (`keys` or `values`) of layer `number` with: a codec, behind its transforms.

    Raises OptionError for what does not fit the layer, NoInputError and DataError for the files that are named.
    """
    layer, specs = f"{number:03d}", recipe.codecs_for(number, side, n_kv_heads)
    spec, names = specs[0], recipe.transforms_for(number, side)
    if any(other != spec for other in specs):
        return _resolve_heads(recipe, specs, number, side, head_dim)
    if spec.is_calibrated:
        if names:
            raise OptionError(f"{spec.name} has a basis of its own: transforms {', '.join(names)} do not go with it")
        entry = _fitting_calibration(recipe, "multirate codecs", head_dim, n_kv_heads).entry(layer, side, spec.name)
        return multirate_from_calibration(entry.about, entry.arrays, n_kv_heads, head_dim, file=recipe.calibration)
    codec = resolve_codec(spec, head_dim, layer=layer, side=side, n_kv_heads=n_kv_heads)
    chain = _resolve_chain(recipe, number, side, head_dim, n_kv_heads)
    return codec if chain is None else TransformedCodec(codec, chain)


def _resolve_heads(recipe: Recipe, specs: tuple[CodecSpec, ...], number: int, side: str, head_dim: int) -> PerHeadCodec:
    """The codecs of the heads of a side that have not all the same. Raises OptionError for one fitted to all heads."""
    layer, n_kv_heads = f"{number:03d}", len(specs)
    for spec in specs:
        if spec.is_calibrated:
            raise OptionError(
                f"{spec.name} is fitted to all heads of {side} of layer {number}, and not for some of them"
            )
    codecs = {spec: resolve_codec(spec, head_dim, layer=layer, side=side, n_kv_heads=n_kv_heads) for spec in set(specs)}
    chain = _resolve_chain(recipe, number, side, head_dim, n_kv_heads)
    each = [codecs[spec] for spec in specs]
    return PerHeadCodec(tuple(codec if chain is None else TransformedCodec(codec, chain) for codec in each))


def _resolve_chain(recipe: Recipe, number: int, side: str, head_dim: int, n_kv_heads: int) -> FittedChain | None:
    """The transforms of one side of layer `number`, None for none. Errors as resolve_coder."""
    layer, names = f"{number:03d}", recipe.transforms_for(number, side)
    if not names:
        return None
    calibration = _fitting_calibration(recipe, f"transforms {', '.join(names)}", head_dim, n_kv_heads)

    def stored(key: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        found = calibration.entry(layer, side, key)
        return found.about, found.arrays

    return load_chain(names, stored, n_kv_heads, head_dim)


def _fitting_calibration(recipe: Recipe, what: str, head_dim: int, n_kv_heads: int) -> Calibration:
    """The recipe's calibration, which `what` needs. Raises OptionError where there is none or it is another model's."""
    if recipe.calibration is None:
        raise OptionError(
            f"{what} need a calibration file",
            hint="add `calibration: FILE` to the recipe; turbocode calibrate and turbocode tune write such files",
        )
    calibration = calibration_of(recipe)
    about = calibration.metadata
    if (about.head_dim, about.n_kv_heads) != (head_dim, n_kv_heads):
        raise OptionError(
            f"was calibrated for {about.n_kv_heads} KV heads of {about.head_dim} values; "
            f"these are {n_kv_heads} of {head_dim}",
            file=recipe.calibration,
        )
    return calibration


def calibration_of(recipe: Recipe) -> Calibration:
    """The calibration file of a recipe, read once. Raises NoInputError, and DataError for another file."""
    assert recipe.calibration is not None
    path = Path(recipe.calibration)
    try:
        state = path.stat()
    except OSError:
        raise NoInputError("calibration file does not exist", file=path) from None
    return _read(recipe.calibration, recipe.calibration_sha256, (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=4)
def _read(path: str, sha256: str | None, state: tuple[int, ...]) -> Calibration:
    """The file's content; `state` tells when it is another one under the same name."""
    found = read_calibration(path)
    if sha256 is not None:
        with Path(path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != sha256:
            raise DataError("is not the calibration that the recipe was made with: its sha256 differs", file=path)
    return found


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
