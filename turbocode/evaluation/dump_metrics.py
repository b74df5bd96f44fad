"""What a recipe does to a dump: all figures of techniques section 0, M1 to M10, layer by layer, with intervals.

Calibrated constants must come from other tokens than are scored: a recipe whose calibration saw this very dump is
refused unless that is wanted. The best scalar gain of attention outputs is fitted on one half of the query rows and
scored on the other. Intervals come from a bootstrap over blocks, a block being one query head of one sequence, the same
blocks for every recipe, so that differences between recipes are known better than the recipes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Coder, row_widths
from turbocode.conversion import plan_quantize
from turbocode.conversion.layers_below import LayersBelow
from turbocode.dumps import Dump, DumpLayer
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_metrics import SPARSE_THRESHOLDS, HeadTokens, row_metrics, rows_at_once
from turbocode.evaluation.block_entropy import BlockEntropy
from turbocode.evaluation.coding_error import CodingError
from turbocode.formats.sides import SIDES
from turbocode.policies import Recipe
from turbocode.policies.resolve import calibration_of

Array = NDArray[np.float64]
PERCENTILES = {"median": 50.0, "p99": 99.0, "p999": 99.9}
LAST_TOKENS = 64  # rows at the end of a sequence, which see all of it, are a stratum of their own
RESAMPLES, CONFIDENCE = 1000, 95.0
_SEED = 0


@dataclass
class _Rows:
    """Figures of query rows, one array a name, of one layer or all; block: which head of which sequence a row is of."""

    parts: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, figures: dict[str, Array]) -> None:
        for name, values in figures.items():
            self.parts.setdefault(name, []).append(values)

    def merge(self, other: _Rows) -> None:
        for name, values in other.parts.items():
            self.parts.setdefault(name, []).extend(values)

    def __getitem__(self, name: str) -> Array:
        return np.concatenate(self.parts[name])

    def summary(self) -> dict[str, Any]:
        """The figures of M3 to M7 and M10 as a JSON object."""
        kl, output = self["kl"], float(self["output"].sum())
        found: dict[str, Any] = {"n_rows": len(kl), "kl_mean": float(kl.mean())}
        found |= {f"kl_{name}": float(np.percentile(kl, share)) for name, share in PERCENTILES.items()}
        found["kl_max"] = float(kl.max())
        is_last = self["is_last"] > 0
        found["kl_mean_last"] = float(kl[is_last].mean()) if is_last.any() else None
        found["kl_second_order"] = float(self["logit_variance"].mean() / 2)
        found["logit_error"] = float(np.sqrt(self["logit_square"].mean()))
        found["same_top"] = float(self["same_top"].mean())
        found["top_mass"] = float(self["top_mass"].mean())
        for name, key in (("", "error"), ("_k", "error_k"), ("_v", "error_v")):
            found[f"output_error{name}"] = float(self[key].sum()) / output if output else 0.0
        found |= self._gain(output)
        found["sparse_values"] = self._skipping("skipped", "skip_error", output)
        found["skipped_tiles"] = self._skipping("skipped_tiles", "tile_error", output)
        return found

    def _gain(self, output: float) -> dict[str, float]:
        """alpha fitted on even rows, and what it leaves of the odd ones' error, beside their error without it."""
        dots = self["output_dots"]
        fitted, scored = dots[::2].sum(axis=0), dots[1::2].sum(axis=0)
        alpha = float(fitted[1] / fitted[2]) if fitted[2] else 1.0
        energy = scored[0] or 1.0
        plain, scaled = (float(scored[0] - 2 * a * scored[1] + a * a * scored[2]) / energy for a in (1.0, alpha))
        return {"alpha": alpha, "output_error_alpha_1": plain, "output_error_alpha": scaled}

    def _skipping(self, share: str, error: str, output: float) -> list[dict[str, float]]:
        return [
            {
                "threshold": threshold,
                "skipped": float(self[f"{share}_{threshold:g}"].mean()),
                "output_error": float(self[f"{error}_{threshold:g}"].sum()) / output if output else 0.0,
            }
            for threshold in SPARSE_THRESHOLDS
        ]

    def worst_head(self) -> dict[str, Any]:
        """The query head of the largest mean KL divergence."""
        heads, kl = self["head"], self["kl"]
        means = {int(head): float(kl[heads == head].mean()) for head in np.unique(heads)}
        worst = max(means, key=lambda head: means[head])
        return {"head": worst, "kl_mean": means[worst]}

    def block_means(self) -> Array:
        """Mean KL divergence of every block, in a fixed order."""
        blocks, kl = self["block"], self["kl"]
        return np.array([kl[blocks == block].mean() for block in np.unique(blocks)])


def measure_dump(
    dump: Dump,
    recipes: Sequence[tuple[str, Recipe]],
    *,
    max_memory: int,
    allows_same_tokens: bool = False,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """M1 to M10 of each (name, recipe) on `dump`, and each beside the first with an interval; a JSON object.

    advance : called with the number of tokens just compared of a KV head
    Raises DataError for a dump without queries, OptionError where a recipe was calibrated on it, or does not fit.
    """
    if not all(layer.n_rows for layer in dump.layers):
        raise DataError("the dump holds no queries, so it has no attention to compare", file=dump.path)
    if not recipes:
        raise OptionError("no codec is given", hint="for example --codec turbo3, or --recipe FILE")
    if not allows_same_tokens:
        for name, recipe in recipes:
            _check_held_out(dump, name, recipe)
    measured, blocks = [], []
    for name, recipe in recipes:
        row, block_means = _measure(dump, recipe, max_memory, advance)
        measured.append({"name": name, **row})
        blocks.append(block_means)
    pick = np.random.default_rng(_SEED).integers(0, len(blocks[0]), (RESAMPLES, len(blocks[0])))
    for row, found in zip(measured, blocks, strict=True):
        row["total"]["kl_mean_interval"] = _interval(found[pick].mean(axis=1))
        ratio = found[pick].mean(axis=1) / np.maximum(blocks[0][pick].mean(axis=1), np.finfo(np.float64).tiny)
        row["ratio_to_first"] = float(found.mean() / blocks[0].mean()) if blocks[0].mean() else None
        row["ratio_to_first_interval"] = _interval(ratio) if blocks[0].mean() else None
    return {"dump": dump.path, "confidence": CONFIDENCE, "n_blocks": len(blocks[0]), "codecs": measured}


def _check_held_out(dump: Dump, name: str, recipe: Recipe) -> None:
    if recipe.calibration is None:
        return
    calibration = calibration_of(recipe)
    seen = {calibration.dump_sha256, *(one.get("sha256") for one in calibration.provenance.get("dumps", []))}
    if dump.content_sha256() in seen:
        raise OptionError(
            f"{name} was calibrated on {dump.path}: what it does to the same tokens says little about others",
            hint="give another dump, or --same-tokens",
        )


def _interval(values: Array) -> list[float]:
    tail = (100.0 - CONFIDENCE) / 2
    return [float(x) for x in np.percentile(values, [tail, 100.0 - tail])]


def _measure(
    dump: Dump, recipe: Recipe, max_memory: int, advance: Callable[[int], None] | None
) -> tuple[dict[str, Any], Array]:
    plan = plan_quantize(dump, recipe)
    total, errors = _Rows(), {side: CodingError(dump.metadata.head_dim) for side in SIDES}
    layers, entropies = [], []
    below = LayersBelow(dump.layers, plan.codecs, dump.metadata.n_kv_heads, dump.metadata.head_dim)
    for layer in dump.layers:

        def blocks(coder: Coder, side: str, seq: int, head: int, start: int, stop: int) -> NDArray[np.uint8]:
            return coder.encode(layer.read(side, seq, head, start, stop), head)[0]  # noqa: B023 called in the same turn

        below.fill(layer.name, blocks, max_memory)
        rows, coding, entropy = _measure_layer(dump, layer, below, max_memory, advance)
        layers.append(
            {
                "layer": layer.name,
                **{side: {"codec": plan.codecs[layer.name, side].name, **coding[side].to_json()} for side in SIDES},
                **rows.summary(),
                "worst_head": rows.worst_head(),
            }
        )
        total.merge(rows)
        for side in SIDES:
            errors[side].merge(coding[side])
        entropies += entropy
    counts = [entropy.n_blocks for entropy in entropies]
    coded = float(np.average([entropy.bits_per_value() for entropy in entropies], weights=counts))
    rans = float(np.average([entropy.rans_bits_per_value() for entropy in entropies], weights=counts))
    summary = {
        "bits_per_value": plan.bits_per_value,
        "entropy_bits_per_value": coded,
        "rans_bits_per_value": rans,
        **{side: errors[side].to_json() for side in SIDES},
        **total.summary(),
    }
    return {"layers": layers, "total": summary}, total.block_means()


def _measure_layer(
    dump: Dump,
    layer: DumpLayer,
    below: LayersBelow,
    max_memory: int,
    advance: Callable[[int], None] | None,
) -> tuple[_Rows, dict[str, CodingError], list[BlockEntropy]]:
    metadata = dump.metadata
    q_per_kv = metadata.n_query_heads // metadata.n_kv_heads
    rows, coding = _Rows(), {side: CodingError(metadata.head_dim) for side in SIDES}
    entropy: dict[tuple[str, int], BlockEntropy] = {}
    positions = layer.query_positions()
    at_once = rows_at_once(layer.n_tokens, max_memory)
    for seq in range(layer.n_seqs):
        for head in range(metadata.n_kv_heads):
            exact, decoded = {}, {}
            for side in SIDES:
                codec, vectors = below.coder(layer.name, side, seq, 0, layer.n_tokens), layer.read(side, seq, head)
                blocks = codec.encode(vectors, head)[0]
                exact[side], decoded[side] = (x.astype(np.float64) for x in (vectors, codec.decode(blocks, head)))
                coding[side].add(exact[side], decoded[side])
                place = side, head if row_widths(codec) else 0  # blocks alike are counted together
                entropy.setdefault(place, BlockEntropy(metadata.head_dim)).add(blocks)
            tokens = HeadTokens(
                exact["keys"],
                exact["values"],
                decoded["keys"],
                decoded["values"],
                metadata.attention_scale,
                layer.window,
                layer.softcap,
            )
            for query_head in range(head * q_per_kv, (head + 1) * q_per_kv):
                queries = layer.read("queries", seq, query_head).astype(np.float64)
                for start in range(0, layer.n_rows, at_once):
                    part = slice(start, start + at_once)
                    last = positions[seq, part]
                    figures = row_metrics(tokens, queries[part], last)
                    n = len(last)
                    figures["is_last"] = (last >= layer.n_tokens - LAST_TOKENS).astype(np.float64)
                    figures["head"] = np.full(n, float(query_head))
                    block = (int(layer.name) * layer.n_seqs + seq) * metadata.n_query_heads + query_head
                    figures["block"] = np.full(n, float(block))
                    rows.add(figures)
            if advance:
                advance(layer.n_tokens)
    return rows, coding, list(entropy.values())
