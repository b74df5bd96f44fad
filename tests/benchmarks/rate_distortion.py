"""NMSE of every codec on groups that no training saw: Gaussian ones, and the keys and values of a dump.

    python tests/benchmarks/rate_distortion.py [--dump DUMP] [-o docs/benchmarks/rate-distortion.json] [--groups 65536]

Everything that is stored counts: NMSE is that of decoded blocks, bits per value include the norm. Also measured: what
the two-pass search around a ring loses against a search from every overlap, what more gains and cheaper searches do,
and the autocorrelation of the error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from turbocode.codecs import make_codec
from turbocode.conversion import plan_quantize
from turbocode.dumps import open_dump
from turbocode.evaluation.attention_compare import EncodedNow, compare_attention
from turbocode.evaluation.environment import memory_limit
from turbocode.evaluation.error_autocorrelation import error_autocorrelation
from turbocode.evaluation.machine import cpu_model, usable_cores
from turbocode.kernels.trellis import Trellis, cpu, reference
from turbocode.policies import Recipe

SEED = 20261124  # trainings draw from seeds (0 | 1 | 2, ...), never from this
GROUP = 128
SCALAR = ("turbo2", "turbo3", "turbo4")
FORKS = ("turbo1_tcq", "turbo2_tcq", "turbo3_tcq")
RINGS = ("trellis1", "trellis2", "trellis3", "trellis4")
LARGEST = tuple(f"{name}_l12" for name in RINGS)
GGML = ("q4_0", "q4_0_rot", "q8_0")
MUST = {
    **{"turbo2": 0.1195, "turbo3": 0.0341, "turbo4": 0.0093, "q8_0": 2.9e-5, "q4_0": 0.0074, "q4_0_rot": 0.0074},
    **{"turbo1_tcq": 0.271, "turbo2_tcq": 0.0741, "turbo3_tcq": 0.0196},
    **{"trellis1": 0.285, "trellis2": 0.0772, "trellis3": 0.0203, "trellis4": 0.00525},
}
AIM = {
    **{"turbo1_tcq": 0.2677, "turbo2_tcq": 0.0733, "turbo3_tcq": 0.0193},
    **{"trellis1": 0.2821, "trellis2": 0.0764, "trellis3": 0.0201, "trellis4": 0.00517},
    **{"trellis1_l12": 0.2733, "trellis2_l12": 0.0711, "trellis3_l12": 0.0185, "trellis4_l12": 0.00483},
}
VARIANTS = ("gains=3", "gains=5", "norm=l2", "search=beam64", "search=beam16", "search=multistart", "search=greedy")
SLOW_GROUPS = 1024  # for searches that are much slower than Viterbi's
ATTENTION_FIGURES = ("kl_mean", "kl_p999", "same_top", "output_error", "output_error_k", "output_error_v")


def gaussian_rows(n_groups: int) -> list[dict[str, Any]]:
    """NMSE on n_groups groups of N(0, 1), in float32."""
    x = np.random.default_rng(SEED).standard_normal((n_groups, GROUP), dtype=np.float32)
    rows = []
    for name in (*SCALAR, *GGML, *FORKS, *RINGS, *LARGEST):
        codec = make_codec(name, GROUP)
        nmse = codec.encode(x)[1].nmse
        rows.append({"codec": name, "bits_per_value": codec.bits_per_value, "nmse": nmse})
        must, aim = MUST.get(name), AIM.get(name)
        rows[-1] |= {
            "must": must,
            "aim": aim,
            "is_met": (must is None or nmse <= must) and (aim is None or nmse <= aim),
        }
    return rows


def dump_rows(path: Path) -> list[dict[str, Any]]:
    """What coding all keys and all values of a dump does to them and to attention (packed kernels)."""
    rows = []
    with open_dump(path) as dump:
        for name in (*SCALAR, *FORKS, *RINGS):
            source = EncodedNow(plan_quantize(dump, Recipe(k=name, v=name)))
            result = compare_attention(dump, source, max_memory=memory_limit() // 4)
            layers, total = result["layers"], result["total"]
            row: dict[str, Any] = {"codec": name, "bits_per_value": total["bits_per_value"]}
            for side in ("nmse_k", "nmse_v"):
                row[side] = sum(layer[side] for layer in layers) / len(layers)
                row[f"{side}_worst_layer"] = max(layer[side] for layer in layers)
            rows.append(row | {key: total[key] for key in ATTENTION_FIGURES})
    return rows


def variant_rows() -> list[dict[str, Any]]:
    """NMSE of the options of trellis codecs, on the same SLOW_GROUPS groups."""
    x = np.random.default_rng(SEED).standard_normal((SLOW_GROUPS, GROUP), dtype=np.float32)
    names = [*FORKS, *RINGS]
    return [
        {
            "codec": f"{name}:{option}" if option else name,
            "nmse": make_codec(f"{name}:{option}" if option else name, GROUP).encode(x)[1].nmse,
        }
        for name in names
        for option in ("", *VARIANTS)
    ]


def ring_rows(n_groups: int = 512) -> list[dict[str, Any]]:
    """NMSE (gain 1) of the two-pass search, of a first pass over the whole ring, and from every overlap, by trellis."""
    x = np.random.default_rng(SEED).standard_normal((n_groups, GROUP))
    u = (x * np.sqrt(GROUP) / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    rows = []
    for name in RINGS:
        codec = make_codec(name, GROUP)
        trellis = Trellis.of_format(codec.block_format)
        table = codec.codebooks[0].for_group(1)[0]
        costs = {
            "two_pass": cpu.viterbi(u, table, trellis)[1],
            "training_approach": cpu.viterbi(u, table, trellis, approach=trellis.approach(GROUP, 8))[1],
            "whole_ring_first": cpu.viterbi(u, table, trellis, approach=GROUP)[1],
        }
        count = 64 if trellis.overlap_bits > 6 else n_groups
        exact = reference.tail_biting_exhaustive(u[:count], table, trellis)[1]
        row = {"codec": name, "approach": trellis.approach(GROUP), "groups_exhaustive": count}
        row |= {key: float(cost.mean() / GROUP) for key, cost in costs.items()}
        row["loss_of_two_pass"] = float(costs["two_pass"][:count].mean() / exact.mean() - 1)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path, help="HDF5 dump whose keys and values are coded too")
    parser.add_argument("--groups", type=int, default=65_536, help="Gaussian groups (default 65,536)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    x = np.random.default_rng(SEED).standard_normal((8192, GROUP), dtype=np.float32)
    result: dict[str, Any] = {
        "machine": {"cpu": cpu_model(), "cores": usable_cores()},
        "n_groups": arguments.groups,
        "gaussian": gaussian_rows(arguments.groups),
        "variants": variant_rows(),
        "ring": ring_rows(),
        "error_autocorrelation": {
            name: error_autocorrelation(make_codec(name, GROUP), x, 4).tolist() for name in (*SCALAR, *FORKS, *RINGS)
        },
        "dump": dump_rows(arguments.dump) if arguments.dump else [],
    }
    show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    """Print the tables of a result."""
    print(f"{result['n_groups']:,} Gaussian groups of {GROUP}")
    print(f"{'codec':14} {'bits':>6} {'NMSE':>10} {'must':>8} {'aim':>8}")
    for row in result["gaussian"]:
        limits = [f"{row[key]:8.5f}" if row[key] else " " * 8 for key in ("must", "aim")]
        verdict = "ok" if row["is_met"] else "NOT MET"
        print(f"{row['codec']:14} {row['bits_per_value']:6.3f} {row['nmse']:10.6f} {' '.join(limits)} {verdict}")
    print(f"\nof which {SLOW_GROUPS:,} groups with options")
    for row in result["variants"]:
        print(f"{row['codec']:30} {row['nmse']:10.6f}")
    print("\nsearch around the ring, NMSE at gain 1")
    for row in result["ring"]:
        print(
            f"{row['codec']:10} approach {row['approach']:3}: {row['two_pass']:.6f}, whole ring first "
            f"{row['whole_ring_first']:.6f}, loss against every overlap {row['loss_of_two_pass']:.2%}"
        )
    print("\nautocorrelation of the error at lags 1 to 4")
    for name, r in result["error_autocorrelation"].items():
        print(f"{name:12} " + " ".join(f"{value:+.4f}" for value in r[1:]))
    columns = ("nmse_k", "nmse_v", *ATTENTION_FIGURES)
    if result["dump"]:
        print(f"\n{'dump':14} {'bits':>6} " + " ".join(f"{key:>14}" for key in columns))
    for row in result["dump"]:
        figures = " ".join(f"{row[key]:14.5f}" for key in columns)
        print(f"{row['codec']:14} {row['bits_per_value']:6.3f} {figures}")


if __name__ == "__main__":
    main()
