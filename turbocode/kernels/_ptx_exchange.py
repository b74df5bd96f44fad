"""Instructions by which thread blocks of one launch hand each other results through global memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels._ptx import f32, instruction, u32, u64


def _add_to(address: Any, value: Any) -> int:
    old = int(address.read(np.uint32, 1)[0])
    address.write(np.uint32, (old + int(value) & 0xFFFFFFFF,))
    return old


add_u32 = instruction("atom.global.add.u32 $0, [$1], $2;", u32, (u64, u32), _add_to, touches_memory=True)
# Orders what came before it before what comes after it, as all threads of the GPU see them.
fence = instruction("fence.acq_rel.gpu;", None, (), lambda: None, touches_memory=True)
# Read past the first cache, which does not see what other multiprocessors write.
load_f32x4_fresh = instruction(
    "ld.global.cg.v4.f32 {$0, $1, $2, $3}, [$4];",
    (f32,) * 4,
    (u64,),
    lambda a: tuple(a.read(np.float32, 4)),
    touches_memory=True,
)
store_f32x4 = instruction(
    "st.global.v4.f32 [$0], {$1, $2, $3, $4};",
    None,
    (u64, f32, f32, f32, f32),
    lambda a, *values: a.write(np.float32, values),
    touches_memory=True,
)
