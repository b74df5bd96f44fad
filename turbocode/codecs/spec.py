"""A codec as users write it: `turbo3`, `turbo3:norm=mse,rotation=none`, `turbo4:codebook=trained.json`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from turbocode.errors import OptionError
from turbocode.formats import FORMAT_NAMES, block_format
from turbocode.kernels.fwht import ROTATION_KINDS
from turbocode.kernels.scalar import NORM_MODES
from turbocode.kernels.trellis import parse_search

ROTATED_SUFFIX = "_rot"
OPTIONS = ("rotation", "norm", "codebook", "search", "gains")
GAIN_COUNTS = ("1", "2", "3", "4", "5")
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
    "turbo1_tcq": "1-bit trellis of 256 states, as the CUDA forks store it",
    "turbo2_tcq": "2-bit trellis of 256 states, as the CUDA forks store it",
    "turbo3_tcq": "3-bit trellis of 512 states, as the CUDA forks store it",
    **{
        name: f"{layout.bits}-bit tail-biting trellis of {1 << layout.states_log2:,} states"
        for name in FORMAT_NAMES
        if (layout := block_format(name)).is_tail_biting
    },
}
CODEC_NAMES = tuple(_SUMMARIES)
CALIBRATED_CODECS = ("multirate",)  # whose constants are fitted for a layer: a recipe's calibration file has them
# Without the variants of trellises with more states, which differ in the table and in the encoder's work alone.
STANDARD_CODECS = tuple(name for name in CODEC_NAMES if "_l" not in name)


def codec_summary(name: str) -> str:
    """One phrase on what the codec stores."""
    return _SUMMARIES[name]


@dataclass(frozen=True)
class CodecSpec:
    """A codec's name and what deviates from its defaults (None: the default).

    name : one of CODEC_NAMES, or of CALIBRATED_CODECS, which have no options
    rotation : `signed`, `hadamard`, `none`; norm : `l2`, `mse`, `unbiased`, `raw`
    codebook : a shipped codebook's name or the path of a JSON codebook
    search : of trellises, `viterbi` (exact) or, to compare with it, `greedy`, `multistart`, `beam16`
    gains : of trellises, scales of each group that are searched for the best one, `1` to `5`
    """

    name: str
    rotation: str | None = None
    norm: str | None = None
    codebook: str | None = None
    search: str | None = None
    gains: str | None = None

    def __post_init__(self) -> None:
        _require("codec", self.name, (*CODEC_NAMES, *CALIBRATED_CODECS))
        if self.is_calibrated:
            if any(getattr(self, key) is not None for key in OPTIONS):
                raise OptionError(f"{self.name} has no options here: its calibration says how it codes")
            return
        if self.rotation is not None:
            _require("rotation", self.rotation, ROTATION_KINDS)
        if self.norm is not None:
            _require("norm mode", self.norm, tuple(NORM_MODES))
        layout = block_format(self.format_name)
        if not layout.has_codebook and (self.norm or self.codebook):
            raise OptionError(f"{self.name} has no codebook and no norm: norm= and codebook= do not apply to it")
        if not layout.is_trellis and (self.search or self.gains):
            raise OptionError(f"{self.name} has no trellis: search= and gains= do not apply to it")
        if self.search is not None:
            parse_search(self.search)
        if self.gains is not None:
            _require("number of gains", self.gains, GAIN_COUNTS)

    @property
    def is_calibrated(self) -> bool:
        """Whether the codec is one layer's and side's, and comes from a calibration file."""
        return self.name in CALIBRATED_CODECS

    @property
    def format_name(self) -> str:
        """The block format's name: the codec's without the suffix that says its values are rotated."""
        name = self.name.removesuffix(ROTATED_SUFFIX)
        assert name in FORMAT_NAMES
        return name

    def __str__(self) -> str:
        given = ",".join(f"{key}={value}" for key in OPTIONS if (value := getattr(self, key)) is not None)
        return f"{self.name}:{given}" if given else self.name


def parse_codec(text: str) -> CodecSpec:
    """The spec that `text` writes out. Raises OptionError naming the part that is wrong."""
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise OptionError(f"codec {text!r}: {part!r} is not KEY=VALUE", hint="for example turbo3:norm=mse")
        _require(f"option of codec {name}", key, OPTIONS)
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
