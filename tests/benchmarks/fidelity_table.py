"""Prints the tables of docs/fidelity.md from the documents that `turbocode evaluate --json` wrote.

python tests/benchmarks/fidelity_table.py docs/benchmarks/fidelity-lm-hd128.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Mean and median KL divergence on lm-hd128 that a separate program of this project got before this one was written,
# with Gaussian codebooks, other random signs, and the trellis tables of the CUDA forks; by the codec nearest to it.
EARLIER = {
    "q4_0": (0.00551, 0.003467),
    "q4_0_rot": (0.00439, 0.002892),
    "turbo4:codebook=gaussian-4": (0.00516, 0.003272),
    "turbo3:codebook=gaussian-3": (0.02173, 0.013337),
    "turbo3:codebook=gaussian-3,rotation=none": (0.05149, 0.024644),
    "turbo2:codebook=gaussian-2": (0.08738, 0.054848),
    "turbo3_tcq:norm=l2": (0.01141, 0.007367),
    "turbo2_tcq:norm=l2": (0.05264, 0.032748),
}
COLUMNS = "| codec | bits per value | KL mean | KL median | KL 99.9 % | same top-1 | perplexity |"


def row(codec: dict[str, Any]) -> str:
    """One line of the table: KL in nats, the standard error of its mean behind it."""
    cells = [
        f"`{codec['name']}`",
        f"{codec['bits_per_value']:.4g}",
        f"{codec['kl_mean']:.5f} ± {codec['kl_mean_error']:.5f}",
        f"{codec['kl_median']:.6f}",
        f"{codec['kl_p999']:.4f}",
        f"{100 * codec['same_top']:.2f} %",
        f"{100 * (codec['ppl_ratio'] - 1):+.2f} %",
    ]
    return f"| {' | '.join(cells)} |"


def table(document: dict[str, Any]) -> list[str]:
    """The lines of one model's table."""
    return [COLUMNS, "| --- | --- | --- | --- | --- | --- | --- |", *(row(codec) for codec in document["codecs"])]


def comparison(document: dict[str, Any]) -> list[str]:
    """The lines of the table that sets a run on lm-hd128 beside the earlier figures."""
    lines = ["| codec | KL mean, earlier | KL median, earlier | mean | median |", "| --- | --- | --- | --- | --- |"]
    codecs = {codec["name"]: codec for codec in document["codecs"]}
    for name, (mean, median) in EARLIER.items():
        changes = [codecs[name]["kl_mean"] / mean - 1, codecs[name]["kl_median"] / median - 1]
        lines.append(f"| `{name}` | {mean} | {median} | {' | '.join(f'{100 * x:+.1f} %' for x in changes)} |")
    return lines


def spread(one_pass: dict[str, Any], chunked: dict[str, Any]) -> list[str]:
    """The lines of the table of the figures of one pass and of chunks, which differ in the order of float32 sums."""
    lines = [
        "| codec | KL mean, one pass | in chunks | KL median, one pass | in chunks |",
        "| --- | --- | --- | --- | --- |",
    ]
    codecs = {codec["name"]: codec for codec in one_pass["codecs"]}
    for other in chunked["codecs"]:
        row = codecs[other["name"]]
        cells = []
        for key, digits in (("kl_mean", 5), ("kl_median", 6)):
            cells += [f"{row[key]:.{digits}f}", f"{100 * (other[key] / row[key] - 1):+.1f} %"]
        lines.append(f"| `{other['name']}` | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    for path in sys.argv[1:]:
        found = json.loads(Path(path).read_text())
        print("\n".join([path, "", *table(found), ""]))
        if found["model"] == "lm-hd128" and found["mode"] == "one pass":
            chunked = json.loads(Path(path).with_stem(Path(path).stem + "-chunks").read_text())
            print("\n".join([*comparison(found), "", *spread(found, chunked), ""]))
