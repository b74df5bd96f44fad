"""Decode attention on a GPU at the six shapes that the project is measured by; writes the JSON of record.

    python tests/benchmarks/attention_targets.py FILE.json [--codec NAME ...] [--shape NAME ...] [--repeats N]
    python tests/benchmarks/attention_targets.py FILE.json --draw FILE.png
    python tests/benchmarks/attention_targets.py FILE.json --table

Kernels are compiled first, on all cores. FILE.json is written anew after each shape. Drawings and tables need no GPU;
the rest needs NumPy and numba-cuda, torch for float16's times, and of turbocode's other dependencies none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

CODECS = ("turbo4", "turbo3", "turbo2", "trellis4", "trellis3", "trellis2", "turbo3_tcq", "turbo2_tcq", "q8_0", "q4_0")
PLAIN = ("turbo3", "trellis3")
# Times faster than the best float16: what it must be and what it should be; two thirds of it at the shape `single`.
TARGETS = {
    "turbo4": (2.5, 3.3),
    "turbo3": (3.0, 4.2),
    "turbo2": (3.5, 5.5),
    "trellis3": (2.0, 3.5),
    "turbo3_tcq": (2.0, 3.5),
    "trellis2": (2.5, 4.5),
    "turbo2_tcq": (2.5, 4.5),
}
EASED, EASING = "single", 2 / 3


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file at once, so that a run that is cut off leaves the shapes that it finished."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def target_of(codec: str, shape: str) -> tuple[float, float] | None:
    """(must, aim) for a codec at a shape."""
    found = TARGETS.get(codec)
    factor = EASING if shape == EASED else 1.0
    return None if found is None else (factor * found[0], factor * found[1])


def lines_of(shape: dict[str, Any]) -> list[str]:
    """What to print of a shape."""
    if shape["problem"]:
        return [f"{shape['name']}: {shape['problem']}"]
    lines = [f"{shape['name']}: {shape['shape']}"]
    for row in (*shape["float16"], *shape["rivals"]):
        best = " best" if row["name"] == shape["best_float16"] else ""
        if row["problem"]:
            lines.append(f"  {row['name']:28s} {row['problem']}")
        else:
            lines.append(
                f"  {row['name']:28s} {1e6 * row['seconds']:9.1f} us {row['gb_per_s']:6.0f} GB/s "
                f"{1e6 * row['host_seconds']:5.1f} us host{best}"
            )
    for row in shape["codecs"]:
        if row["problem"]:
            lines.append(f"  {row['k']:12s} {row['problem']}")
            continue
        ratio, goal = row["ratio"] or 0.0, target_of(row["k"], shape["name"])
        verdict = "" if goal is None else f" must {goal[0]:.2f} {'met' if ratio >= goal[0] else 'MISSED'}"
        verdict += (
            "" if goal is None else f", aim {goal[1]:.2f} {'met' if ratio >= goal[1] else f'{ratio / goal[1]:.0%}'}"
        )
        others = [("plain", row["plain_seconds"]), ("decode", row["decode_seconds"])]
        others.append(("decode+attend", row["decoded_attention_seconds"]))
        slow = " ".join(f"{name} {1e6 * s:.0f}" for name, s in others if s is not None)
        lines.append(
            f"  {row['k']:12s} {1e6 * row['seconds']:8.1f} us {row['gb_per_s']:6.0f} GB/s "
            f"{row['share_of_copy']:4.0%} of copy {ratio:5.2f}x of {row['bytes_allow']:4.2f}x"
            f"{verdict} | error {row['relative_error']:.1e} {'ok' if row['is_within_bound'] else 'TOO LARGE'}"
            f" | host {1e6 * row['host_seconds']:.1f} us | {slow} us"
        )
    return lines


def table_of(result: dict[str, Any]) -> list[str]:
    """Markdown: a codec a row, microseconds and ratio to the best float16 at each shape."""
    shapes = [shape for shape in result["shapes"] if not shape["problem"]]
    best = {shape["name"]: min(row["seconds"] for row in shape["float16"] if row["seconds"]) for shape in shapes}
    head = ["codec", *best, "must / aim", "error at most"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    lines.append(f"| best float16 | {' | '.join(f'{1e6 * seconds:.1f}' for seconds in best.values())} | | |")
    for number, codec in enumerate(row["k"] for row in shapes[0]["codecs"]):
        rows = {shape["name"]: shape["codecs"][number] for shape in shapes}
        cells = []
        for name, row in rows.items():
            goal = target_of(codec, name)
            mark = "**" if goal is not None and row["ratio"] < goal[0] else ""
            cells.append(f"{1e6 * row['seconds']:.1f}: {mark}{row['ratio']:.2f}x{mark}")
        goal, error = TARGETS.get(codec), max(row["relative_error"] for row in rows.values())
        wanted = f"{goal[0]:.1f} / {goal[1]:.1f}" if goal else "-"
        lines.append(f"| `{codec}` | {' | '.join(cells)} | {wanted} | {error:.1e} |")
    return lines


def measure(args: argparse.Namespace) -> None:
    """Compile, measure, print and write."""
    from turbocode.evaluation.attention_shapes import TARGET_SHAPES
    from turbocode.evaluation.attention_warmup import compile_for, jobs_for
    from turbocode.evaluation.gpu_attention_benchmark import benchmark_attention_on_gpu

    start = time.perf_counter()
    shapes = {name: TARGET_SHAPES[name] for name in args.shape or TARGET_SHAPES}
    pairs = [(name, name) for name in args.codec or CODECS]
    jobs = jobs_for(shapes.values(), pairs, PLAIN)
    try:
        compile_for(jobs, args.device)
    except Exception as failure:  # what else was compiled can be measured all the same
        print(f"not all kernels were compiled: {type(failure).__name__}: {failure}", flush=True)
    print(f"{len(jobs)} calls compiled in {time.perf_counter() - start:.0f} s", flush=True)

    def keep(result: dict[str, Any]) -> None:
        write(args.file, result)
        print("\n".join(lines_of(result["shapes"][-1])), f"[{time.perf_counter() - start:.0f} s]", flush=True)

    result = benchmark_attention_on_gpu(args.device, shapes, pairs, repeats=args.repeats, plain=PLAIN, keep=keep)
    print(f"{result['device']['name']}: copy {result['copy_gb_per_s']:,.0f} GB/s; {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--draw", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--codec", action="append")
    parser.add_argument("--shape", action="append")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if args.draw:
        from turbocode.evaluation.attention_plots import plot_attention

        plot_attention(args.draw, json.loads(args.file.read_text()), force=True)
    elif args.table:
        print("\n".join(table_of(json.loads(args.file.read_text()))))
    else:
        measure(args)


if __name__ == "__main__":
    main()
