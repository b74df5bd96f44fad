"""Prints the tables of docs/fidelity.md from the documents that `turbocode evaluate --json` wrote.

python tests/benchmarks/fidelity_table.py docs/benchmarks/fidelity-lm-hd128.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print("\n".join([path, "", *table(json.loads(Path(path).read_text())), ""]))
