"""Block formats: the bytes (floor 0)."""

from turbocode.formats.block_format import FLOAT16_MAX, FLOAT16_TINY, BlockFormat, Layout
from turbocode.formats.catalog import FORMAT_NAMES, GROUP_SIZES, block_format, group_size_for
from turbocode.formats.multirate_format import MultirateFormat

__all__ = [
    "FLOAT16_MAX",
    "FLOAT16_TINY",
    "FORMAT_NAMES",
    "GROUP_SIZES",
    "BlockFormat",
    "Layout",
    "MultirateFormat",
    "block_format",
    "group_size_for",
]
