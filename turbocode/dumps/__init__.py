"""KV dumps and quantized files in HDF5: a guarded reader, an atomic writer, synthetic dumps."""

from turbocode.dumps.dump import Dump, DumpLayer, open_dump
from turbocode.dumps.metadata import DumpMetadata

__all__ = ["Dump", "DumpLayer", "DumpMetadata", "open_dump"]
