"""Spends bits over layers, keys and values so that a model's predictions suffer least, and writes the recipe.

Two ways to spend them. The multi-rate trellis gives every run of channels of each side's basis (spectrum) the rate that
a common price of damage allows. Codecs from a list are tried on a sample of each side's vectors, what they did to these
is weighed by the same metric (error_metric), and the budget goes up the convex hulls of size and cost.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbocode.codebooks.multirate_codebook import multirate_codebook
from turbocode.codecs import Coder, parse_codec
from turbocode.codecs.multirate_codec import MULTIRATE, MultirateCodec, multirate_codec
from turbocode.dumps import Dump, create_calibration
from turbocode.dumps.atomic import AnyPath, write_text_atomically
from turbocode.errors import OptionError
from turbocode.formats.multirate_format import RUN_CHANNELS
from turbocode.formats.sides import SIDES
from turbocode.policies import resolve_codec
from turbocode.policies.recipe import HeadChoice, LayerChoice, Recipe, recipe_text
from turbocode.provenance import provenance
from turbocode.training.bit_budget import choose_options, remaining_cost, spend_rates
from turbocode.training.error_metric import MetricKind, SideMoments, metric_kind, side_moments
from turbocode.training.spectrum import Spectrum, spectrum_of

Side = tuple[int, str]
Place = tuple[int, str, int | None]  # a side, or one head of it
Advance = Callable[[int], None]
SAMPLE_TOKENS = 512  # of a head, on which a codec's cost is measured
REACH = 4  # contexts of the calibration that a cache is taken to grow to, unless one says how long it gets
LAW, SEARCHES = "whitened", 3  # measured: a first gain by energy, or one search, costs up to twice the divergence


@dataclass(frozen=True)
class TunedSide:
    """What one layer's `keys` or `values` got: codec, bits_per_value (constants counted), and what it costs.

    predicted : of the multi-rate trellis, by its codebook's error on Gaussian channels; None for other codecs
    head : the KV head whose codec this is, None for all
    measured : on a sample of the calibration's own tokens; both in the unit of the metric, see error_metric
    """

    layer: str
    side: str
    codec: str
    bits_per_value: float
    predicted: float | None
    measured: float
    rates: tuple[int, ...] | None
    head: int | None = None


def tune_multirate(
    dumps: Sequence[Dump],
    bits: float,
    advance: Advance | None = None,
    *,
    metric: MetricKind | None = None,
    reach: int | None = None,
) -> TunedMultirate:
    """The multi-rate trellis of every layer and side at `bits` bits a value in all, everything stored counted.

    dumps : of one model, over different texts; every token counts alike
    metric : what errors are weighed by; None: `fisher` where the dumps have it
    reach : the longest context that the cache will hold; None: REACH times that of the dumps
    advance : called with the number of tokens just read of a head
    Raises OptionError for bits that the format cannot have, dumps that do not belong together or say too little.
    """
    kind, moments = metric_kind(dumps, metric), {}
    head_dim = dumps[0].metadata.head_dim
    if reach is None:
        reach = REACH * max(dump.layers[0].n_tokens for dump in dumps)
    if head_dim % RUN_CHANNELS:
        raise OptionError(f"head_dim is {head_dim}; {MULTIRATE} codes runs of {RUN_CHANNELS} channels", hint="--codecs")
    for key in _sides(dumps):
        moments[key] = side_moments(dumps, *key, kind, advance, reach=reach)
    spectra = {key: spectrum_of(found) for key, found in moments.items()}
    nmse = (1.0, *multirate_codebook().nmse)
    costs = {key: spectrum.run_costs(RUN_CHANNELS) for key, spectrum in spectra.items()}
    least = {key: _codec(spectrum, np.ones(len(costs[key]), np.int64)) for key, spectrum in spectra.items()}
    constant_bits = float(np.mean([codec.constant_bits for codec in least.values()]))
    n_bytes = int(np.floor(len(costs) * (head_dim * (bits - constant_bits) / 8 - 1) + 1e-9))
    try:
        rates = spend_rates(costs, nmse, n_bytes)
    except OptionError:
        low, high = (constant_bits + 8 * (1 + n) / head_dim for n in (2, head_dim // RUN_CHANNELS * 8))
        raise OptionError(
            f"{bits:g} bits are asked for; {low:.3f} to {high:.3f} are possible at head_dim {head_dim}"
        ) from None
    codecs = {key: _codec(spectrum, rates[key]) for key, spectrum in spectra.items()}
    rows = []
    for key, codec in codecs.items():
        rows.append(
            TunedSide(
                moments[key].layer,
                key[1],
                MULTIRATE,
                codec.bits_per_value,
                remaining_cost(costs[key], rates[key], nmse),
                measured_cost(codec, _samples(dumps, *key), moments[key]),
                tuple(int(rate) for rate in rates[key]),
            )
        )
    return TunedMultirate(kind, reach, tuple(rows), codecs)


def _codec(spectrum: Spectrum, rates: NDArray[np.int64]) -> MultirateCodec:
    return multirate_codec(spectrum.basis, spectrum.mean, np.sqrt(spectrum.variance), rates, LAW, searches=SEARCHES)


@dataclass(frozen=True, eq=False)
class TunedMultirate:
    """kind : of the metric; reach : positions prepared for; sides : what each got; codecs : by (layer number, side)"""

    kind: MetricKind
    reach: int
    sides: tuple[TunedSide, ...]
    codecs: dict[Side, MultirateCodec]

    def write(self, dumps: Sequence[Dump], bits: float, output: AnyPath, *, force: bool = False) -> Path:
        """Write the recipe to `output` and the calibration beside it; the calibration's path.

        Errors : as `atomic_output`. The calibration is written first: a recipe that is there has its calibration.
        """
        calibration = calibration_path(output)
        digests = [dump.content_sha256() for dump in dumps]
        about = provenance("turbocode tune")
        about["bits"], about["metric"], about["reach"] = bits, self.kind, self.reach
        about["dumps"] = [
            {
                "sha256": digest,
                "source": dump.metadata.source,
                "n_tokens": dump.layers[0].n_seqs * dump.layers[0].n_tokens,
            }
            for digest, dump in zip(digests, dumps, strict=True)
        ]
        metadata = replace(
            dumps[0].metadata, source=", ".join(str(dump.metadata.source) for dump in dumps)[:4096], sha256=None
        )
        inputs = [dump.path for dump in dumps]
        with create_calibration(
            calibration, metadata, provenance=about, dump_sha256=joint_digest(digests), force=force, inputs=inputs
        ) as writer:
            for (number, side), codec in self.codecs.items():
                writer.write(f"{number:03d}", side, MULTIRATE, *codec.calibration_entry())
        with calibration.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        recipe = Recipe(k=MULTIRATE, v=MULTIRATE, calibration=calibration.name, calibration_sha256=sha256)
        write_text_atomically(output, recipe_text(recipe), force=force, inputs=[*inputs, calibration])
        return calibration


def calibration_path(recipe: AnyPath) -> Path:
    """Where the calibration of a recipe is written: beside it, with the suffix .h5."""
    path = Path(recipe)
    if path.suffix == ".h5":
        raise OptionError("a recipe is a YAML file; its calibration gets the suffix .h5", file=path)
    return path.with_suffix(".h5")


def joint_digest(digests: Sequence[str]) -> str:
    """The SHA-256 that stands for several dumps: of one its own, else that of all digests in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def tune_codecs(
    dumps: Sequence[Dump],
    bits: float,
    codecs: Sequence[str],
    advance: Advance | None = None,
    *,
    metric: MetricKind | None = None,
    per_head: bool = False,
) -> tuple[MetricKind, tuple[TunedSide, ...], Recipe]:
    """(kind of the metric, what each side got, the recipe) of codecs from a list at `bits` bits a value in all.

    per_head : choose for every KV head by itself, not for all heads of a side
    Raises OptionError for codecs that do not fit, bits below what the smallest takes, or unsuitable dumps.
    """
    texts = list(dict.fromkeys(str(parse_codec(text)) for text in codecs))
    kind, metadata = metric_kind(dumps, metric), dumps[0].metadata
    tried: dict[Place, list[tuple[float, float]]] = {}
    for number, side in _sides(dumps):
        moments = side_moments(dumps, number, side, kind, advance)
        samples = _samples(dumps, number, side)
        for text in texts:
            codec = resolve_codec(
                parse_codec(text), metadata.head_dim, layer=f"{number:03d}", side=side, n_kv_heads=metadata.n_kv_heads
            )
            costs = head_costs(codec, samples, moments)
            for head, cost in enumerate(costs) if per_head else [(None, sum(costs))]:
                tried.setdefault((number, side, head), []).append((codec.bits_per_value, cost))
    chosen = choose_options(tried, bits * len(tried))
    sides = tuple(
        TunedSide(f"{number:03d}", side, texts[index], *_bits_and_cost(tried[number, side, head][index]), None, head)
        for (number, side, head), index in chosen.items()
    )
    return kind, sides, _recipe_of(sides)


def _bits_and_cost(option: tuple[float, float]) -> tuple[float, None, float]:
    return option[0], None, option[1]


def _recipe_of(sides: Sequence[TunedSide]) -> Recipe:
    """The recipe of what sides, or their heads, got: what is usual for a side, and the layers and heads that differ."""
    usual = {side: _commonest(row for row in sides if row.side == side) for side in SIDES}
    layers: dict[str, LayerChoice] = {}
    for name in dict.fromkeys(row.layer for row in sides):
        here = [row for row in sides if row.layer == name]
        most = {side: _commonest(row for row in here if row.side == side) for side in SIDES}
        differing = {side[0]: codec for side, codec in most.items() if codec != usual[side]}
        heads: dict[str, HeadChoice] = {}
        for head in dict.fromkeys(row.head for row in here):
            own = {row.side[0]: row.codec for row in here if row.head == head and row.codec != most[row.side]}
            if own:
                heads[str(head)] = HeadChoice(k=own.get("k"), v=own.get("v"))
        if differing or heads:
            layers[str(int(name))] = LayerChoice(k=differing.get("k"), v=differing.get("v"), heads=heads)
    return Recipe(k=usual["keys"], v=usual["values"], layers=layers)


def _commonest(rows: Iterable[TunedSide]) -> str:
    return Counter(row.codec for row in rows).most_common(1)[0][0]


def measured_cost(coder: Coder, samples: Sequence[NDArray[np.float32]], moments: SideMoments) -> float:
    """1/2 e^T M e, summed over the heads, averaged over a sample of vectors (n, D) of each."""
    return sum(head_costs(coder, samples, moments))


def head_costs(coder: Coder, samples: Sequence[NDArray[np.float32]], moments: SideMoments) -> list[float]:
    """What `measured_cost` sums: of each head."""
    costs = []
    for head, vectors in enumerate(samples):
        error = coder.decode(coder.encode(vectors, head)[0], head).astype(np.float64) - vectors
        costs.append(0.5 * float(np.einsum("nd,de,ne->", error, moments.metric[head], error)) / len(vectors))
    return costs


def _sides(dumps: Sequence[Dump]) -> list[Side]:
    return [(number, side) for number in range(dumps[0].metadata.n_layers) for side in SIDES]


def _samples(dumps: Sequence[Dump], number: int, side: str) -> list[NDArray[np.float32]]:
    """Evenly spaced vectors float32 (n, D) of each KV head, about SAMPLE_TOKENS over all dumps."""
    total = sum(dump.layers[number].n_seqs * dump.layers[number].n_tokens for dump in dumps)
    stride = max(1, total // SAMPLE_TOKENS)
    found = []
    for head in range(dumps[0].metadata.n_kv_heads):
        parts = []
        for dump in dumps:
            layer = dump.layers[number]
            for seq in range(layer.n_seqs):
                parts.append(layer.read(side, seq, head)[seq % stride :: stride].astype(np.float32))
        found.append(np.concatenate(parts))
    return found
