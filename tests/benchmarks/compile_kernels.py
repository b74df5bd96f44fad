"""Compiles kernels into the cache on all cores, so that what is timed or tested afterwards does not wait for that.

    python tests/benchmarks/compile_kernels.py [NAME ...]

NAME : part of the names in kernels/kernel_table.py; without any, all of them. For the GPU of this machine.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time


def compile_one(job: tuple[str, tuple[int, int]]) -> str:
    """Compile the kernel of that name; what became of it."""
    from turbocode.kernels._cuda import compile_ahead
    from turbocode.kernels.kernel_table import kernel_table

    name, capability = job
    entry = next(entry for entry in kernel_table() if entry.name == name)
    start = time.perf_counter()
    is_kept = compile_ahead(entry.make(), entry.n_args, capability)
    return f"{name}: {time.perf_counter() - start:.1f} s" + ("" if is_kept else ", cannot be kept")


def main() -> None:
    from turbocode.kernels._graph import Gpu
    from turbocode.kernels.kernel_table import kernel_table

    wanted = sys.argv[1:]
    names = [e.name for e in kernel_table() if not wanted or any(part in e.name for part in wanted)]
    capability = Gpu(0).compute_capability
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(len(names), os.cpu_count() or 1)) as pool:
        for line in pool.imap_unordered(compile_one, [(name, capability) for name in names]):
            print(line, flush=True)
    print(f"{len(names)} kernels in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
