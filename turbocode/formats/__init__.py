"""Block formats: the bytes (floor 0)."""

from turbocode.formats.block_format import FLOAT16_MAX, FLOAT16_TINY, BlockFormat, Layout
from turbocode.formats.catalog import FORMAT_NAMES, GROUP_SIZES, block_format, group_size_for

__all__ = [
    "FLOAT16_MAX",
    "FLOAT16_TINY",
    "FORMAT_NAMES",
    "GROUP_SIZES",
    "BlockFormat",
    "Layout",
    "block_format",
    "group_size_for",
]
