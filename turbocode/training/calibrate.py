"""Transforms fitted on a dump, chain by chain, into a calibration file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from turbocode.codecs import TransformedCodec, make_codec
from turbocode.dumps import Dump, DumpLayer, create_calibration
from turbocode.errors import OptionError
from turbocode.formats.sides import SIDES
from turbocode.provenance import provenance
from turbocode.training.layer_prediction import with_prediction
from turbocode.training.value_gain import value_gains
from turbocode.transforms import (
    SideStatistics,
    Transform,
    chain_key,
    check_chain,
    collect_statistics,
    fit_chain,
    parse_transform,
)
from turbocode.transforms.aqua import AQUA, Aqua
from turbocode.transforms.gain import Gain

CHAIN_SEPARATOR = "+"


def _measured(
    chain: Sequence[Transform], statistics: SideStatistics, dump: Dump, layer: DumpLayer, stop: int | None
) -> list[Transform]:
    """The chain with gains that are to be found by a codec found on the dump's attention, behind what comes before."""
    found: list[Transform] = []
    for step in chain:
        if isinstance(step, Gain) and step.codec:
            if any(before.name == AQUA for before in found):
                raise OptionError("gain by a codec is measured on one layer, and does not go behind aqua")
            before = fit_chain(found, statistics)
            coder = TransformedCodec(make_codec(step.codec, statistics.head_dim), before)
            gains = value_gains(dump, layer, coder, shift=before.head_map.backward_shift, stop=stop)
            step = replace(step, measured=tuple(gains.tolist()))
        found.append(step)
    return found


def parse_transforms(text: str) -> tuple[Transform, ...]:
    """The transforms of a chain such as `mean+balance`, in the order in which vectors pass them.

    Raises OptionError naming the part that is wrong.
    """
    chain = tuple(parse_transform(part) for part in text.split(CHAIN_SEPARATOR))
    names = [transform.name for transform in chain]
    check_chain(names)
    return chain


def calibrate_dump(
    dump: Dump,
    output: str | os.PathLike[str],
    chains: Mapping[str, Sequence[Sequence[Transform]]],
    *,
    stop: int | None = None,
    force: bool = False,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Fit chains of transforms on every layer of `dump` and write them to `output`; a JSON object about them.

    chains : for `keys` and `values`; a transform that several chains begin with is stored once
    stop : use only the first tokens of each sequence; advance : called with the number of tokens just read of a head
    Raises OptionError for too short a dump or a transform that does not suit a side, OutputError, DataError.
    """
    if not any(chains.values()):
        raise OptionError("no transform is given", hint="for example --k mean --v mean")
    rows = []
    about = provenance("turbocode calibrate")
    about["chains"] = {side: [[str(step) for step in chain] for chain in chains.get(side, ())] for side in SIDES}
    about["stop"] = stop
    with create_calibration(
        output,
        dump.metadata,
        provenance=about,
        dump_sha256=dump.content_sha256(),
        force=force,
        inputs=[dump.path],
    ) as writer:
        for number, layer in enumerate(dump.layers):
            for side in SIDES:
                if not chains.get(side):
                    continue
                statistics = collect_statistics(dump, layer, side, stop=stop, advance=advance)
                written: set[str] = set()
                for chain in chains[side]:
                    found = statistics
                    if isinstance(chain[0], Aqua):
                        chain, found = with_prediction(chain, dump, number, side, stop)
                    fitted = fit_chain(_measured(chain, found, dump, layer, stop), found)
                    for n, step in enumerate(fitted.steps):
                        key = chain_key(fitted.names[: n + 1])
                        if key in written:
                            continue
                        written.add(key)
                        writer.write(layer.name, side, key, step.about, step.arrays)
                        rows.append(
                            {"layer": layer.name, "side": side, "name": key, "n_bytes": step.n_bytes, **step.about}
                        )
    return {"output": os.fspath(output), "n_tokens": statistics.n_tokens, "entries": rows}
