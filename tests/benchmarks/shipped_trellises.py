"""Trains the shipped trellis codebooks: python tests/benchmarks/shipped_trellises.py OUT [--device cuda] [--only NAME].

Each is what the command in its provenance writes; tests/training holds one of them to that. Four processes at a time.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from turbocode.codebooks import trellis_codebook_name
from turbocode.formats import FORMAT_NAMES, block_format
from turbocode.training.trellis_codebook import TrellisTrainingSpec, train_trellis
from turbocode.training.trellis_data import GaussianGroups

N_PROCESSES = 6
RESTARTS = {8: 4, 9: 3, 10: 2}  # by states_log2; starts differ little, and large trellises take long


def shipped_specs() -> dict[str, TrellisTrainingSpec]:
    """What each shipped trellis codebook was trained with, largest first."""
    layouts = [layout for layout in map(block_format, FORMAT_NAMES) if layout.is_trellis]
    return {
        trellis_codebook_name(layout.bits, layout.states_log2, is_tail_biting=layout.is_tail_biting): (
            TrellisTrainingSpec(
                layout.bits,
                layout.states_log2,
                "ring" if layout.is_tail_biting else "free",
                restarts=RESTARTS.get(layout.states_log2, 1),
            )
        )
        for layout in sorted(layouts, key=lambda layout: -layout.states_log2)
    }


def train(name: str, device: str, out: Path) -> str:
    from importlib import import_module

    viterbi = import_module(f"turbocode.kernels.trellis.{'cuda' if device == 'cuda' else 'cpu'}").viterbi
    start = time.perf_counter()
    codebook, state = train_trellis(GaussianGroups(), shipped_specs()[name], viterbi=viterbi)
    (out / f"{name}.json").write_text(codebook.dumps())
    return f"{name}: {codebook.nmse:.6f}, {len(state.history)} iterations, {time.perf_counter() - start:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", action="append", choices=list(shipped_specs()))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.only or list(shipped_specs())
    workers = N_PROCESSES if arguments.device == "cuda" else 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(train, name, arguments.device, arguments.out) for name in names]
        for job in as_completed(jobs):
            print(job.result(), flush=True)


if __name__ == "__main__":
    main()
