"""KV dumps and quantized files in HDF5: a guarded reader, an atomic writer, synthetic dumps."""

from turbocode.dumps.atomic import DiskFullError, atomic_output, check_output, write_text_atomically
from turbocode.dumps.calibration import (
    Calibration,
    CalibrationEntry,
    CalibrationWriter,
    create_calibration,
    read_calibration,
)
from turbocode.dumps.dump import Dump, DumpLayer, open_dump
from turbocode.dumps.dump_writer import DumpWriter, LayerWriter, create_dump
from turbocode.dumps.kind import file_kind
from turbocode.dumps.metadata import DumpMetadata
from turbocode.dumps.quantized import QuantizedFile, QuantizedLayer, QuantizedSide, open_quantized
from turbocode.dumps.quantized_writer import QuantizedLayerWriter, QuantizedWriter, SideWriter, create_quantized
from turbocode.dumps.synthesize import SynthesisSpec, synthesize

__all__ = [
    "Calibration",
    "CalibrationEntry",
    "CalibrationWriter",
    "DiskFullError",
    "Dump",
    "DumpLayer",
    "DumpMetadata",
    "DumpWriter",
    "LayerWriter",
    "QuantizedFile",
    "QuantizedLayer",
    "QuantizedLayerWriter",
    "QuantizedSide",
    "QuantizedWriter",
    "SideWriter",
    "SynthesisSpec",
    "atomic_output",
    "check_output",
    "create_calibration",
    "create_dump",
    "create_quantized",
    "file_kind",
    "open_dump",
    "open_quantized",
    "read_calibration",
    "synthesize",
    "write_text_atomically",
]
