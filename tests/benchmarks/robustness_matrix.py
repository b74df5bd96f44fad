"""Which calibration text serves which scored text: tuned recipes against the plain trellis at the same bits.

    python tests/benchmarks/robustness_matrix.py MODEL... --texts DIR --work DIR --out docs/benchmarks/robustness.json

Every cell is calibration x scored text x model x bits; the recipe has no more bits a value than the plain trellis, all
constants counted over 32,768 tokens. Scored texts are never what was calibrated on (calibration_texts.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calibration_texts import WINDOWS, calibration_dump, corpora, scored_windows, text_digest
from benchmarks.tuned_tables import CALIBRATIONS, RECOMMENDED, matrix_summary, matrix_table

from turbocode.codecs import make_codec
from turbocode.dumps import open_dump
from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.integrations.hf_model import open_model
from turbocode.policies import CachePolicy, read_recipe
from turbocode.training.tune import tune_multirate

PLAIN = ("trellis2", "trellis3", "trellis4")
FIGURES = ("kl_mean", "kl_median", "kl_p999")
MAX_MEMORY = 2 << 30


def recipe(dumps: list[Path], bits: float, path: Path, reach: int | None, metric: Any = None) -> Path:
    """The recipe that `turbocode tune` writes for these dumps."""
    with ExitStack() as files:
        sources = [files.enter_context(open_dump(dump)) for dump in dumps]
        tune_multirate(sources, bits, metric=metric, reach=reach).write(sources, bits, path, force=True)
    return path


def cells(folder: Path, texts: Path, work: Path, n_windows: int, only: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of one model: calibration, scored, plain, bits, and each figure with that of the plain trellis."""
    model = open_model(str(folder))
    found = corpora(texts)
    dumps = {name: calibration_dump(model, corpus, work) for name, corpus in found.items()}
    policies, labels = [CachePolicy.of(name, name) for name in PLAIN], []
    for plain in PLAIN:
        bits = make_codec(plain, model.layers[0].key_dim).bits_per_value
        for label in only:
            names = CALIBRATIONS[label]
            path = work / f"{model.label}-{plain}-{len(labels)}.yaml"
            reach = model.max_context if label == RECOMMENDED else 0
            recipe([dumps[name] for name in names], bits, path, reach)
            policies.append(CachePolicy(read_recipe(path), name=label))
            labels.append((plain, label))
    rows = []
    for scored, corpus in found.items():
        windows = scored_windows(model, corpus, n_windows)
        result = evaluate_policies(model, windows, policies, EvaluationMode(), max_memory=MAX_MEMORY)
        of_plain = dict(zip(PLAIN, result["codecs"], strict=False))
        for (plain, label), codec in zip(labels, result["codecs"][len(PLAIN) :], strict=True):
            row = {"model": model.label, "calibration": label, "scored": scored, "plain": plain}
            row["bits_per_value"] = codec["bits_per_value"]
            row["plain_bits_per_value"] = of_plain[plain]["bits_per_value"]
            for key in FIGURES:
                row[key], row[f"plain_{key}"] = codec[key], of_plain[plain][key]
                row[f"ratio_{key}"] = codec[key] / of_plain[plain][key]
            rows.append(row)
        print(model.label, scored, f"{result['seconds']:.0f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for dumps and recipes, kept")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CALIBRATIONS), help="add these to the cells that OUT has")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    found = corpora(given.texts)
    document: dict[str, Any] = {
        "windows_scored": given.windows,
        "windows_calibrated": WINDOWS,
        "context": 2048,
        "texts": {
            name: {"calibrated": text_digest(c.calibrated), "scored": text_digest(c.scored)}
            for name, c in found.items()
        },
        "recommended": RECOMMENDED,
        "cells": [],
    }
    only = tuple(given.only or CALIBRATIONS)
    if given.only:
        before = json.loads(given.out.read_text())["cells"]
        document["cells"] = [cell for cell in before if cell["calibration"] not in only]
    for folder in given.models:
        document["cells"] += cells(folder, given.texts, given.work, given.windows, only)
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join([*matrix_summary(document), "", *matrix_table(document)]))


if __name__ == "__main__":
    main()
