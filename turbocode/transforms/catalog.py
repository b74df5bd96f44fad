"""Transforms by name, with options as codecs have them: `mean`, `innerq:strength=0.2`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields

from turbocode.errors import OptionError
from turbocode.transforms.aqua import AQUA, Aqua
from turbocode.transforms.balance import Balance, BalanceDiagonal, BalancePairs
from turbocode.transforms.butterfly import Butterfly
from turbocode.transforms.fitted import Transform
from turbocode.transforms.gain import Gain
from turbocode.transforms.innerq import InnerQ
from turbocode.transforms.klt import KLT
from turbocode.transforms.kvarn import KVarN
from turbocode.transforms.kvlinc import KVLinC
from turbocode.transforms.lowrank import LowRank
from turbocode.transforms.mean import Mean
from turbocode.transforms.nsn import NSN
from turbocode.transforms.pattern import Pattern
from turbocode.transforms.per_token import TokenTransform
from turbocode.transforms.reorder import Reorder
from turbocode.transforms.squat import SQuat
from turbocode.transforms.walsh import Walsh

_CLASSES: tuple[type[Transform], ...] = (
    Mean,
    InnerQ,
    Balance,
    BalanceDiagonal,
    BalancePairs,
    SQuat,
    KLT,
    Walsh,
    Reorder,
    Butterfly,
    KVLinC,
    Gain,
    LowRank,
    Pattern,
    NSN,
    KVarN,
    Aqua,
)
TRANSFORMS: dict[str, type[Transform]] = {kind.name: kind for kind in _CLASSES}
TRANSFORM_NAMES = tuple(TRANSFORMS)
TOKEN_TRANSFORMS: dict[str, type[TokenTransform]] = {kind.name: kind for kind in (LowRank, Pattern, NSN, KVarN)}
MAX_CHAIN = 8


def parse_transform(text: str) -> Transform:
    """The transform that `text` writes out. Raises OptionError naming the part that is wrong."""
    name, _, rest = text.partition(":")
    kind = TRANSFORMS[known_name(name)]
    defaults = kind()
    allowed: dict[str, type] = {
        field.name: type(getattr(defaults, field.name))
        for field in fields(kind)  # type: ignore[arg-type]
        if isinstance(getattr(defaults, field.name), int | float | str)
    }
    options = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if key not in allowed or not equals:
            raise OptionError(
                f"transform {text!r}: {part!r} is not an option of {name}; allowed: {', '.join(allowed) or 'none'}"
            )
        try:
            options[key] = allowed[key](value)
        except ValueError:
            raise OptionError(f"transform {text!r}: {key} must be a number") from None
    return kind(**options)


def known_name(name: str) -> str:
    """The name, if a transform has it. Raises OptionError."""
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORM_NAMES, n=1)
        raise OptionError(
            f"unknown transform {name!r}; allowed: {', '.join(TRANSFORM_NAMES)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return name


def check_chain(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if they make a chain. Raises OptionError for an unknown one, one that is given twice, or too many."""
    for name in names:
        known_name(name)
    if len(set(names)) != len(names) or len(names) > MAX_CHAIN:
        raise OptionError(f"transforms {', '.join(names)}: each is allowed once, and {MAX_CHAIN} in all")
    early = [name for name in names[:-1] if name in TOKEN_TRANSFORMS]
    if early:
        raise OptionError(
            f"transforms {', '.join(names)}: {early[0]} keeps bytes of every token and has to be the last"
        )
    if AQUA in names[1:]:
        raise OptionError(
            f"transforms {', '.join(names)}: aqua takes away what another layer tells, and has to be the first"
        )
    return tuple(names)
