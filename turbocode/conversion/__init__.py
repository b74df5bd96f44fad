"""Conversion (floor 4): a dump into a quantized file and back, in slabs that fit the memory allowed."""

from turbocode.conversion.danger import Danger, dangerous_keys
from turbocode.conversion.dequantize import dequantize_file
from turbocode.conversion.quantize import QuantizePlan, plan_quantize, quantize_dump

__all__ = ["Danger", "QuantizePlan", "dangerous_keys", "dequantize_file", "plan_quantize", "quantize_dump"]
