"""Machine code of kernels without a GPU: what the compiler says of it, and its instructions.

Numba asks the driver for the device to compile for; here it is told one (`_cuda.compiled_codes`). The code is the one
that a launch would load, through NVVM, link-time optimisation and nvJitLink.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbocode.kernels._cuda import compiled_codes

_FLOAT64 = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)|MUFU\.\w*64|F2F\.F(64|32\.F64)|I2F\.F64|F2I\.F64)")


@dataclass(frozen=True)
class MachineCode:
    """registers of a thread; spilled, stack : bytes; shared : bytes of a block; opcodes : of all instructions"""

    registers: int
    spilled: int
    stack: int
    shared: int
    opcodes: tuple[str, ...]

    @property
    def float64(self) -> list[str]:
        """Instructions that compute with float64."""
        return [opcode for opcode in self.opcodes if _FLOAT64.match(opcode)]


def disassembler() -> str | None:
    """The path of nvdisasm, from PyPI's nvidia-cuda-nvdisasm or a CUDA toolkit; None if there is none."""
    try:
        import nvidia.cu13

        for folder in nvidia.cu13.__path__:
            if (Path(folder) / "bin" / "nvdisasm").exists():
                return str(Path(folder) / "bin" / "nvdisasm")
    except ImportError:
        pass
    return shutil.which("nvdisasm")


def machine_codes(kernel: Any, n_args: int, capabilities: Sequence[tuple[int, int]]) -> list[MachineCode]:
    """The kernel compiled for GPUs of each compute capability."""
    return [_read(cubin, log) for cubin, log in compiled_codes(kernel, n_args, capabilities)[1]]


def _read(cubin: bytes, log: str) -> MachineCode:
    def number(pattern: str) -> int:
        match = re.search(pattern, log)
        return int(match[1]) if match else 0

    tool = disassembler()
    text = ""
    if tool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            text = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Za-z0-9_.]+)", text, re.MULTILINE)
    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return MachineCode(
        number(r"Used (\d+) registers"),
        spilled,
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes smem"),
        tuple(opcodes),
    )
