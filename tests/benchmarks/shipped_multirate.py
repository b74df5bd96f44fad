"""Trains the shipped codebook of the multi-rate trellis: python tests/benchmarks/shipped_multirate.py OUT."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from turbocode.training.multirate_codebook import EXPECTED_NMSE, MultirateTrainingSpec, train_multirate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--iterations", type=int, default=MultirateTrainingSpec.iterations)
    arguments = parser.parse_args()

    def show(iteration: int, nmse: np.ndarray) -> None:
        print(iteration, " ".join(f"{ratio:.4f}" for ratio in nmse / EXPECTED_NMSE[1:]), flush=True)

    codebook = train_multirate(
        MultirateTrainingSpec(iterations=arguments.iterations),
        command="python tests/benchmarks/shipped_multirate.py OUT",
        after_iteration=show,
    )
    (arguments.out / f"{codebook.name}.json").write_text(codebook.dumps())


if __name__ == "__main__":
    main()
