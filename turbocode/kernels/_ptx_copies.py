"""Copies from global to shared memory that go on while the thread does other things, and how to wait for them.

Per lane, 16 bytes each, waited for in groups (compute capability 8.0); or a whole run by one lane, which a barrier in
shared memory waits for (9.0).
"""

from __future__ import annotations

from typing import Any

from turbocode.kernels import _cuda
from turbocode.kernels._ptx import instruction, u32, u64

copy_async_whole = instruction(
    "cp.async.cg.shared.global [$0], [$1], 16;",
    None,
    (u32, u64),
    lambda target, source: _cuda.copies.later(target, source),
    touches_memory=True,
)
close_copies = instruction("cp.async.commit_group;", None, (), lambda: _cuda.copies.close(), touches_memory=True)


def wait_for_copies(n_left: int) -> Any:
    """The instruction that waits until all closed groups of the thread's copies but the last n_left have arrived."""
    return instruction(
        f"cp.async.wait_group {n_left};", None, (), lambda: _cuda.copies.wait(n_left), touches_memory=True
    )


# A barrier: 8 bytes of shared memory. Its phase ends when `count` arrivals and all expected bytes are there.
begin_barrier = instruction(
    "mbarrier.init.shared::cta.b64 [$0], $1;",
    None,
    (u32, u32),
    lambda address, count: _cuda.copies.begin_barrier(address, count),
    touches_memory=True,
)
fence_barriers = instruction("fence.mbarrier_init.release.cluster;", None, (), lambda: None, touches_memory=True)
# What this thread wrote in shared memory comes before what bulk copies write there, once a barrier has been passed.
fence_bulk_copies = instruction("fence.proxy.async.shared::cta;", None, (), lambda: None, touches_memory=True)
arrive_expecting = instruction(
    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;",
    None,
    (u32, u32),
    lambda address, n_bytes: _cuda.copies.expect(address, n_bytes),
    touches_memory=True,
)
arrive = instruction(
    "mbarrier.arrive.shared::cta.b64 _, [$0];",
    None,
    (u32,),
    lambda address: _cuda.copies.expect(address, 0),
    touches_memory=True,
)
arrive_after_copies = instruction(
    "cp.async.mbarrier.arrive.shared::cta.b64 [$0];",
    None,
    (u32,),
    lambda address: _cuda.copies.arrive_after_copies(address),
    touches_memory=True,
)
copy_bulk = instruction(
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];",
    None,
    (u32, u64, u32, u32),
    lambda target, source, n_bytes, address: _cuda.copies.copy_bulk(target, source, n_bytes, address),
    touches_memory=True,
)
# Waits until the phase of a parity has ended; all lanes of a warp call it together.
pass_phase = instruction(
    "{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; @!p bra again;}",
    None,
    (u32, u32),
    lambda address, parity: _cuda.copies.pass_phase(address, parity),
    touches_memory=True,
    is_collective=True,
)
