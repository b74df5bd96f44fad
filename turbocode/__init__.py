"""turbocode: makes the KV cache of large language models smaller and proves what that costs.

Importing this package does no work: its names are loaded when they are first used.

    >>> import numpy as np, turbocode
    >>> codec = turbocode.make_codec("turbo3", head_dim=128)
    >>> blocks, report = codec.encode(np.ones((4, 128), dtype=np.float16))
    >>> blocks.shape, codec.bits_per_value
    ((4, 50), 3.125)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbocode.codebooks import Codebook, load_codebook, read_codebook
    from turbocode.codecs import (
        CODEC_NAMES,
        Codec,
        codec_from_description,
        decode_attention,
        make_codec,
        merge_attention,
    )
    from turbocode.dumps import create_dump, open_dump, open_quantized
    from turbocode.errors import TurbocodeError
    from turbocode.formats import FORMAT_NAMES, BlockFormat, block_format

__version__ = "0.1.0"

_HOMES = {
    "codebooks": ("Codebook", "load_codebook", "read_codebook"),
    "codecs": (
        "CODEC_NAMES",
        "Codec",
        "codec_from_description",
        "decode_attention",
        "make_codec",
        "merge_attention",
    ),
    "dumps": ("create_dump", "open_dump", "open_quantized"),
    "errors": ("TurbocodeError",),
    "formats": ("FORMAT_NAMES", "BlockFormat", "block_format"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CODEC_NAMES",
    "FORMAT_NAMES",
    "BlockFormat",
    "Codebook",
    "Codec",
    "TurbocodeError",
    "__version__",
    "block_format",
    "codec_from_description",
    "create_dump",
    "decode_attention",
    "load_codebook",
    "make_codec",
    "merge_attention",
    "open_dump",
    "open_quantized",
    "read_codebook",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'turbocode' has no attribute {name!r}")
    return getattr(importlib.import_module(f"turbocode.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
