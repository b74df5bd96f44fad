"""Every kernel, compiled for every architecture without a GPU: registers, spills, float64, instructions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from turbocode.kernels._compile import disassembler, machine_codes
from turbocode.kernels.kernel_table import kernel_table

ENTRIES = {entry.name: entry for entry in kernel_table()}
DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.mark.parametrize("name", ENTRIES)
def test_machine_code(name: str) -> None:
    entry = ENTRIES[name]
    assert disassembler(), "install nvidia-cuda-nvdisasm"
    codes = machine_codes(entry.make(), entry.n_args, entry.architectures)
    for architecture, code in zip(entry.architectures, codes, strict=True):
        assert code.stack == 0 and code.spilled == 0, architecture
        assert 0 < code.registers <= entry.max_registers, architecture
        assert code.shared <= entry.max_shared, architecture
        assert len(code.opcodes) > 50 and code.float64 == [], architecture
        for pattern in entry.opcodes:
            assert any(re.match(pattern, opcode) for opcode in code.opcodes), (architecture, pattern)


def test_default_trellises_need_at_most_8_kib_a_group() -> None:
    from turbocode.codecs import make_codec
    from turbocode.kernels.trellis import Trellis
    from turbocode.kernels.trellis.search_lanes import lane_search
    from turbocode.kernels.trellis.tensor_layout import GROUPS, layout

    for name in ("trellis1", "trellis2", "trellis3", "trellis4", "turbo1_tcq", "turbo2_tcq", "turbo3_tcq"):
        trellis = Trellis.of_format(make_codec(name, 128).block_format)
        found = lane_search(trellis, 128, trellis.approach(128) if trellis.is_tail_biting else 0)
        assert ENTRIES[f"encode {name} 128 fp16"].max_shared <= 8192 * found.per_block, name
        assert layout(trellis, 128).n_bytes / GROUPS <= 8192, name


def test_the_document_names_every_kernel() -> None:
    text = DOCUMENT.read_text()
    assert [name for name in ENTRIES if f"`{name}`" not in text] == []
