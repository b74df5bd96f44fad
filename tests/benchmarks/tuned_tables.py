"""The tables of tuned recipes in docs/fidelity.md, from what fidelity_targets.py and robustness_matrix.py wrote."""

from __future__ import annotations

from typing import Any

BITS = (2.2, 3.2, 4.2)
PLAIN = ("trellis2", "trellis3", "trellis4", "trellis2:norm=unbiased", "trellis3:norm=unbiased", "turbo4")
MUST = {2.2: 0.0150, 3.2: 0.0033, 4.2: 0.0009}  # median KL divergence on lm-hd128, issue 6
AIM = {2.2: 0.0105, 3.2: 0.0022, 4.2: 0.00055}
RECOMMENDED = "all three, with reach"
CALIBRATIONS = {
    RECOMMENDED: ("prose", "code", "fiction"),  # tuned for the longest context of the model, the others for the dumps'
    "all three": ("prose", "code", "fiction"),
    "prose": ("prose",),
    "code": ("code",),
    "fiction": ("fiction",),
    "prose + code": ("prose", "code"),
    "prose + fiction": ("prose", "fiction"),
    "code + fiction": ("code", "fiction"),
}


def contexts_table(document: dict[str, Any]) -> list[str]:
    """The lines of the table of context lengths: KL mean and its ratio to the plain trellis of the same rate."""
    lines = [
        "| context | "
        + " | ".join(f"tuned {bits} | of `{plain}`" for bits, plain in zip(BITS, PLAIN, strict=False))
        + " |"
    ]
    lines[0] += " tuned 3.2, reach 0 | of `trellis3` |"
    lines.append("| --- " * (3 + 2 * len(BITS)) + "|")
    for row in document["contexts"]:
        kl = {codec["name"]: codec["kl_mean"] for codec in row["codecs"]}
        cells = [
            f"{kl[f'tuned {bits}']:.5f} | {kl[f'tuned {bits}'] / kl[plain]:.3f}"
            for bits, plain in zip(BITS, PLAIN, strict=False)
        ]
        near = kl["tuned 3.2, reach 0"]
        cells.append(f"{near:.5f} | {near / kl['trellis3']:.3f}")
        lines.append(f"| {row['context']:,} | {' | '.join(cells)} |")
    return lines


def positions_table(document: dict[str, Any]) -> list[str]:
    """The lines of the table of KL mean by position in the window."""
    codecs = [codec for codec in document["codecs"] if codec["name"] in ("tuned 3.2", "trellis3")]
    lines = ["| positions | " + " | ".join(f"`{codec['name']}`" for codec in codecs) + " |", "| --- " * 3 + "|"]
    for buckets in zip(*(codec["by_position"] for codec in codecs), strict=True):
        cells = " | ".join(f"{bucket['kl_mean']:.5f} ± {bucket['kl_mean_error']:.5f}" for bucket in buckets)
        lines.append(f"| {buckets[0]['first']:,} to {buckets[0]['last']:,} | {cells} |")
    return lines


def matrix_table(document: dict[str, Any]) -> list[str]:
    """The lines of docs/fidelity.md: ratios of KL means to the plain trellis, the worst first."""
    lines = [
        "| calibrated on | scored on | model | 2.1 bits | 3.1 bits | 4.1 bits | worst of 99.9 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in document["cells"]:
        rows.setdefault((cell["calibration"], cell["scored"], cell["model"]), []).append(cell)
    for names, found in sorted(rows.items(), key=lambda row: -max(cell["ratio_kl_mean"] for cell in row[1])):
        means = [f"{cell['ratio_kl_mean']:.3f}" for cell in sorted(found, key=lambda cell: cell["bits_per_value"])]
        tail = max(cell["ratio_kl_p999"] for cell in found)
        lines.append(f"| {' | '.join((*names, *means))} | {tail:.3f} |")
    return lines


def matrix_summary(document: dict[str, Any]) -> list[str]:
    """The lines of the short table: each calibration's worst and mean ratio over texts, models and bits."""
    lines = [
        "| calibrated on | worst ratio of the mean | average | worst of the median | worst of 99.9 % | cells |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label in CALIBRATIONS:
        rows = [row for row in document["cells"] if row["calibration"] == label]
        means = [row["ratio_kl_mean"] for row in rows]
        worst = [max(row[f"ratio_{key}"] for row in rows) for key in ("kl_median", "kl_p999")]
        figures = " | ".join(f"{x:.3f}" for x in (max(means), sum(means) / len(means), *worst))
        lines.append(f"| {label} | {figures} | {len(rows)} |")
    return lines
