"""A codec as users write it: `turbo3`, `turbo3:norm=mse,rotation=none`, `turbo4:codebook=trained.json`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from turbocode.errors import OptionError
from turbocode.formats import FORMAT_NAMES
from turbocode.kernels.fwht import ROTATION_KINDS
from turbocode.kernels.scalar import NORM_MODES

ROTATED_SUFFIX = "_rot"
_SUMMARIES = {
    "turbo2": "2-bit scalar codebook, one float16 norm a group",
    "turbo3": "3-bit scalar codebook, one float16 norm a group",
    "turbo4": "4-bit scalar codebook, one float16 norm a group",
    "turbo2_0": "turbo2 in the CUDA forks' blocks of 32",
    "turbo3_0": "turbo3 in the CUDA forks' blocks of 32",
    "turbo4_0": "turbo4 as the CUDA forks store it",
    "q8_0": "ggml's 8-bit blocks of 32",
    "q4_0": "ggml's 4-bit blocks of 32",
    "q8_0_rot": "q8_0 of rotated values",
    "q4_0_rot": "q4_0 of rotated values",
    "f16": "float16, unrotated",
}
CODEC_NAMES = tuple(_SUMMARIES)


def codec_summary(name: str) -> str:
    """One phrase on what the codec stores."""
    return _SUMMARIES[name]


@dataclass(frozen=True)
class CodecSpec:
    """A codec's name and what deviates from its defaults (None: the default).

    name : one of CODEC_NAMES; rotation : `signed`, `hadamard`, `none`; norm : `l2`, `mse`, `unbiased`, `raw`
    codebook : a shipped codebook's name or the path of a JSON codebook
    """

    name: str
    rotation: str | None = None
    norm: str | None = None
    codebook: str | None = None

    def __post_init__(self) -> None:
        _require("codec", self.name, CODEC_NAMES)
        if self.rotation is not None:
            _require("rotation", self.rotation, ROTATION_KINDS)
        if self.norm is not None:
            _require("norm mode", self.norm, tuple(NORM_MODES))
        if not self.format_name.startswith("turbo") and (self.norm or self.codebook):
            raise OptionError(f"{self.name} has no codebook and no norm: norm= and codebook= do not apply to it")

    @property
    def format_name(self) -> str:
        """The block format's name: the codec's without the suffix that says its values are rotated."""
        name = self.name.removesuffix(ROTATED_SUFFIX)
        assert name in FORMAT_NAMES
        return name

    def __str__(self) -> str:
        options = {"rotation": self.rotation, "norm": self.norm, "codebook": self.codebook}
        given = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
        return f"{self.name}:{given}" if given else self.name


def parse_codec(text: str) -> CodecSpec:
    """The spec that `text` writes out. Raises OptionError naming the part that is wrong."""
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise OptionError(f"codec {text!r}: {part!r} is not KEY=VALUE", hint="for example turbo3:norm=mse")
        _require(f"option of codec {name}", key, ("rotation", "norm", "codebook"))
        if key in options:
            raise OptionError(f"codec {text!r}: {key} is given twice")
        options[key] = value
    return CodecSpec(name, **options)


def _require(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        near = difflib.get_close_matches(given, allowed, n=1)
        raise OptionError(
            f"unknown {what} {given!r}; allowed: {', '.join(allowed)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
