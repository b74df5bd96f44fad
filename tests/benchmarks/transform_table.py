"""What each transform and policy gains or loses: attention KL on a dump, and the model's KL, at 2, 3 and 4 bits.

    python tests/benchmarks/transform_table.py MODEL CALIBRATION_TEXT SCORED_TEXT -o transforms-NAME.json
    python tests/benchmarks/transform_table.py ... -o transforms-NAME.json --row "nsn, +0.13 bits" --row ...
    python tests/benchmarks/transform_table.py --print docs/benchmarks/transforms-*.json

Transforms are fitted on a dump of the calibration text; both scores are of the other text. With --row only these rows
are measured, and put among those that the output already has, which must be of the same texts and windows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbocode.conversion import plan_quantize
from turbocode.dumps import open_dump
from turbocode.evaluation.attention_compare import EncodedNow, compare_attention
from turbocode.evaluation.machine import cpu_model
from turbocode.policies import CachePolicy, Recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms

BITS = (2, 3, 4)
PLAIN, BARE, TRELLIS = "turbo{bits}", "turbo{bits}:rotation=none", "trellis{bits}"
MEMORY = 1 << 30
MODEL_FIGURES = ("bits_per_value", "kl_mean", "kl_mean_error", "kl_median", "kl_p999")


@dataclass(frozen=True)
class Row:
    """name : in the table; k, v : chains, empty for none; codec_k, codec_v : with {bits}; recipe : other fields."""

    name: str
    k: str = ""
    v: str = ""
    codec_k: str = PLAIN
    codec_v: str = PLAIN
    layer_mode: int = 0
    sinks: int = 0


ROWS = (
    Row("plain"),
    Row("mean of K", "mean"),
    Row("mean of V", "", "mean"),
    Row("mean", "mean", "mean"),
    Row("innerq", "innerq", "innerq"),
    Row("mean + innerq", "mean+innerq", "mean+innerq"),
    Row("mean + balance (K)", "mean+balance", "mean"),
    Row("mean + balance_diagonal (K)", "mean+balance_diagonal", "mean"),
    Row("mean + balance_pairs (K)", "mean+balance_pairs", "mean"),
    Row("mean + squat (K)", "mean+squat", "mean"),
    Row("mean + klt, then the codec's rotation", "mean+klt", "mean+klt"),
    Row("mean + klt, no rotation", "mean+klt", "mean+klt", BARE, BARE),
    Row("mean, no rotation", "mean", "mean", BARE, BARE),
    Row("mean + walsh for the rotation", "mean+walsh", "mean+walsh", BARE, BARE),
    Row("mean + reorder, no rotation", "mean+reorder", "mean+reorder", BARE, BARE),
    Row("mean + butterfly for the rotation", "mean+butterfly", "mean+butterfly", BARE, BARE),
    Row("kvlinc (K not rotated)", "kvlinc", "mean", BARE, PLAIN),
    Row("mean + lowrank, +0.5 bits", "mean+lowrank", "mean+lowrank"),
    Row("pattern, +0.06 bits", "pattern", "pattern"),
    Row("nsn, +0.13 bits", "nsn", "nsn"),
    Row("nsn, runs of 64, +0.38 bits", "nsn:run=64", "nsn:run=64"),
    Row("kvarn, +0.25 bits", "kvarn", "kvarn"),
    Row("walsh + kvarn, no rotation, +0.25 bits", "walsh+kvarn", "walsh+kvarn", BARE, BARE),
    Row("aqua, +0.09 bits", "aqua", "aqua"),
    Row("trellis for turbo", codec_k=TRELLIS, codec_v=TRELLIS),
    Row("aqua, trellis for turbo, +0.09 bits", "aqua", "aqua", TRELLIS, TRELLIS),
    Row("mean, V norm=mse", "mean", "mean", PLAIN, PLAIN + ":norm=mse"),
    Row("mean, V norm=unbiased", "mean", "mean", PLAIN, PLAIN + ":norm=unbiased"),
    Row("mean, V gain 1.04", "mean", "mean+gain:alpha=1.04"),
    Row("V gain 1.04, no means", "", "gain:alpha=1.04"),
    Row("mean, V gain by context", "mean", "mean+gain:context=2048,bits={formula}"),
    Row("mean, V gain per head", "mean", "mean+gain:codec=" + PLAIN),
    Row("layer mode 3 (last 4)", layer_mode=3),
    Row("layer mode 9 (last 2)", layer_mode=9),
    Row("layer mode 5 (first 2, last 2)", layer_mode=5),
    Row("4 sinks", sinks=4),
    Row("mean, 4 sinks", "mean", "mean", sinks=4),
)
CONTROL = (Row("f16", "", "", "f16", "f16"), Row("f16, V gain 1.04", "", "gain:alpha=1.04", "f16", "f16"))


def filled(text: str, bits: int) -> str:
    return text.format(bits=bits, formula=min(bits, 3))


def recipes(rows: tuple[Row, ...], bits: int, dump: Any, folder: Path) -> Iterator[tuple[Row, Recipe]]:
    """The rows' recipes, each with a calibration file of its own chains."""
    for number, row in enumerate(rows):
        chains = {side: filled(text, bits) for side, text in (("keys", row.k), ("values", row.v)) if text}
        names = {side[0]: [part.partition(":")[0] for part in text.split("+")] for side, text in chains.items()}
        path = folder / f"{bits}-{number}.h5"
        if chains and not path.exists():
            calibrate_dump(dump, path, {side: [parse_transforms(text)] for side, text in chains.items()})
        fields = {"calibration": str(path), "transforms": names} if chains else {}
        yield (
            row,
            Recipe(
                k=filled(row.codec_k, bits),
                v=filled(row.codec_v, bits),
                layer_mode=row.layer_mode,
                sinks=row.sinks,
                **fields,
            ),
        )


def measure(arguments: argparse.Namespace) -> None:
    from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
    from turbocode.integrations.hf_capture import CaptureSpec, capture_dump
    from turbocode.integrations.hf_model import open_model
    from turbocode.integrations.hf_text import TextTokens, read_text

    model = open_model(arguments.model, device="cpu")
    texts = [TextTokens(model, path, read_text(path)) for path in (arguments.calibration, arguments.scored)]
    wanted = set(arguments.rows or [])
    known = [row for row in (*ROWS, *CONTROL) if not wanted or row.name in wanted]
    if unknown := wanted - {row.name for row in known}:
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}")
    document: dict[str, Any] = {
        "model": model.label,
        "calibration": texts[0].name,
        "scored": texts[1].name,
        "calibration_windows": arguments.windows,
        "scored_windows": arguments.scored_windows,
        "context": arguments.context,
        "cpu": cpu_model(),
    }
    old = json.loads(arguments.output.read_text()) if wanted else {**document, "rows": []}
    if differing := [key for key in document if key != "cpu" and document[key] != old[key]]:
        raise SystemExit(f"{arguments.output} was made with another {differing[0]}")
    document = old
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text, file, count in (
            (texts[0], "fit.h5", arguments.windows),
            (texts[1], "score.h5", arguments.scored_windows),
        ):
            capture_dump(model, text, folder / file, CaptureSpec(context=arguments.context, n_windows=count, n_rows=64))
        windows = texts[1].windows(arguments.scored_windows, arguments.context)
        with open_dump(folder / "fit.h5") as fit, open_dump(folder / "score.h5") as score:
            for bits, all_rows in [*((bits, ROWS) for bits in BITS), (16, CONTROL)]:
                started, rows = time.monotonic(), tuple(row for row in all_rows if row in known)
                again = {(bits, row.name) for row in rows}
                document["rows"] = [row for row in document["rows"] if (row["bits"], row["name"]) not in again]
                if not rows:
                    continue
                chosen = [
                    (row, recipe, compare_attention(score, EncodedNow(plan_quantize(score, recipe)), max_memory=MEMORY))
                    for row, recipe in recipes(rows, bits, fit, folder)
                ]
                policies = [CachePolicy.of_recipe(recipe, name=row.name) for row, recipe, _ in chosen]
                found = evaluate_policies(model, windows, policies, EvaluationMode(), max_memory=MEMORY)
                for (row, _, attention), codec in zip(chosen, found["codecs"], strict=True):
                    # Files code every token, so that sinks are the running cache's alone.
                    total = {} if row.sinks else attention["total"]
                    document["rows"].append(
                        {
                            "name": row.name,
                            "bits": bits,
                            **{key: codec[key] for key in MODEL_FIGURES},
                            **{f"attention_{key}": total.get(key) for key in ("kl_mean", "kl_median", "output_error")},
                        }
                    )
                print(f"{bits} bits: {time.monotonic() - started:.0f} s", flush=True)
                arguments.output.write_text(json.dumps(document, indent=1) + "\n")


def table(documents: list[dict[str, Any]]) -> list[str]:
    """A line a row: change of the model's mean KL and, behind it, of the attention's, against the plain codec."""
    columns = [f"{document['model']}, {bits} bits" for document in documents for bits in BITS]
    found = {(d["model"], row["bits"], row["name"]): row for d in documents for row in d["rows"]}
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for row in ROWS:
        cells = []
        for document in documents:
            for bits in BITS:
                here = found.get((document["model"], bits, row.name))
                plain = found.get((document["model"], bits, "plain"))
                cells.append("-" if here is None or plain is None else _cell(here, plain))
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return lines


def _cell(here: dict[str, Any], plain: dict[str, Any]) -> str:
    if here is plain:
        return f"{here['kl_mean']:.5f} / {here['attention_kl_mean']:.5f}"
    change = f"{100 * (here['kl_mean'] / plain['kl_mean'] - 1):+.0f} %"
    if here["attention_kl_mean"] is None:
        return change
    return f"{change} / {100 * (here['attention_kl_mean'] / plain['attention_kl_mean'] - 1):+.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("calibration", nargs="?", type=Path)
    parser.add_argument("scored", nargs="?", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--scored-windows", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--row", action="append", dest="rows")
    parser.add_argument("--print", nargs="+", type=Path, dest="documents")
    arguments = parser.parse_args()
    if arguments.documents:
        print("\n".join(table([json.loads(path.read_text()) for path in arguments.documents])))
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
