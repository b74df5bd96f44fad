"""What runtimes need to read the blocks without turbocode (floor 4)."""

from turbocode.export.c_header import c_header, default_prefix
from turbocode.export.codec_source import codec_of_file, codec_of_spec

__all__ = ["c_header", "codec_of_file", "codec_of_spec", "default_prefix"]
