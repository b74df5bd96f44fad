"""A recipe: which codec each layer's keys and values get. Written as YAML or JSON, checked strictly.

    version: 1
    k: turbo3
    v: turbo4:norm=mse
    calibration: calibrated.h5
    transforms: {k: [mean], v: [mean]}
    layers:
      "0-1": {k: q8_0, v: q8_0, transforms: {k: []}}
      "7": {v: f16, heads: {"0": {k: turbo4}, "1-3": {k: turbo2, v: turbo3}}}

Layers are counted as the dump counts them: 0 is the first layer that owns a KV cache; heads are its KV heads. Later
entries win.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from turbocode.codecs import CodecSpec, parse_codec
from turbocode.errors import DataError, OptionError
from turbocode.policies.layer_modes import N_MODES, PROMOTED, promoted_layers
from turbocode.text_input import read_text_input
from turbocode.transforms import check_chain
from turbocode.transforms.aqua import AQUA

MAX_RECIPE_BYTES = 1 << 20
_RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?", re.ASCII)  # a dump numbers its layers with three digits


def parse_layers(text: str, what: str = "layers") -> tuple[int, ...]:
    """The numbers that `0-3,7` names, ascending, without duplicates. Raises OptionError where it names none."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise OptionError(f"{what} {text!r}: {part.strip()!r} is not a number or a range such as 0-3")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


class SideTransforms(BaseModel):
    """Names of transforms of keys and of values, in the order in which vectors pass them; None leaves the recipe's."""

    model_config = ConfigDict(extra="forbid", strict=True)
    k: list[str] | None = None
    v: list[str] | None = None

    @field_validator("k", "v")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        try:
            return None if value is None else list(check_chain(value))
        except OptionError as error:
            raise ValueError(str(error)) from None


class HeadChoice(BaseModel):
    """The codecs of one or more KV heads of a layer; None leaves the layer's own."""

    model_config = ConfigDict(extra="forbid", strict=True)
    k: str | None = None
    v: str | None = None

    @field_validator("k", "v")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            _codec(value)
        return value


class LayerChoice(HeadChoice):
    """The codecs and transforms of one or more layers; None leaves the recipe's own.

    heads : what differs for KV heads, `0`, `0-3` or `0-3,7` to a HeadChoice
    """

    transforms: SideTransforms = Field(default_factory=SideTransforms)
    heads: dict[str, HeadChoice] = Field(default_factory=dict)

    @field_validator("heads")
    @classmethod
    def _ranges(cls, value: dict[str, HeadChoice]) -> dict[str, HeadChoice]:
        for key in value:
            try:
                parse_layers(key, "heads")
            except OptionError as error:
                raise ValueError(str(error)) from None
        return value


class Recipe(BaseModel):
    """k, v : codec of every layer not named in `layers`, which maps `3`, `0-3` or `0-3,7` to a LayerChoice.

    transforms : what keys and values pass before they are coded, stored in the file `calibration`, whose bytes have the
        SHA-256 calibration_sha256 (None: any)
    layer_mode : 0 to 18, which layers' keys and values are coded by `promoted`, without transforms; `layers` win
    sinks, residual : first and latest tokens of a running cache that stay in 16 bits (a quantized file has none)
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    version: Literal[1] = 1
    k: str = "turbo3"
    v: str = "turbo3"
    transforms: SideTransforms = Field(default_factory=SideTransforms)
    calibration: str | None = None
    calibration_sha256: str | None = None
    layer_mode: int = Field(default=0, ge=0, lt=N_MODES)
    promoted: str = PROMOTED
    sinks: int = Field(default=0, ge=0)
    residual: int = Field(default=0, ge=0)
    layers: dict[str, LayerChoice] = Field(default_factory=dict)

    @field_validator("k", "v", "promoted")
    @classmethod
    def _known(cls, value: str) -> str:
        _codec(value)
        return value

    @field_validator("layers")
    @classmethod
    def _ranges(cls, value: dict[str, LayerChoice]) -> dict[str, LayerChoice]:
        for key in value:
            try:
                parse_layers(key)
            except OptionError as error:
                raise ValueError(str(error)) from None
        return value

    def codec_for(self, layer: int, side: str, head: int | None = None) -> CodecSpec:
        """The codec of one layer's keys or values, of KV head `head`; None: of heads that are not named."""
        if self.layer_mode:
            raise OptionError(f"layer mode {self.layer_mode} needs the layers that there are: Recipe.for_layers")
        letter = {"keys": "k", "values": "v"}[side]
        text: str = getattr(self, letter)
        for key, choice in self.layers.items():
            if layer not in parse_layers(key):
                continue
            text = getattr(choice, letter) or text
            for heads, own in choice.heads.items():
                if head is not None and head in parse_layers(heads, "heads"):
                    text = getattr(own, letter) or text
        return parse_codec(text)

    def codecs_for(self, layer: int, side: str, n_kv_heads: int) -> tuple[CodecSpec, ...]:
        """The codec of each KV head of one layer's keys or values. Raises OptionError for a head that is not there."""
        for key, choice in self.layers.items():
            for heads in choice.heads:
                if layer in parse_layers(key) and parse_layers(heads, "heads")[-1] >= n_kv_heads:
                    raise OptionError(f"heads {heads!r} of layer {layer}: there are KV heads 0 to {n_kv_heads - 1}")
        return tuple(self.codec_for(layer, side, head) for head in range(n_kv_heads))

    def transforms_for(self, layer: int, side: str) -> tuple[str, ...]:
        """The transforms of one layer's keys or values, first to last."""
        letter = {"keys": "k", "values": "v"}[side]
        names: list[str] = getattr(self.transforms, letter) or []
        for key, choice in self.layers.items():
            chosen = getattr(choice.transforms, letter)
            if chosen is not None and layer in parse_layers(key):
                names = chosen
        return tuple(names)

    def predicts(self, layer: int, side: str) -> bool:
        """Whether one layer's keys or values are predicted from the layer below, or from the keys of their own."""
        return self.transforms_for(layer, side)[:1] == (AQUA,)

    def for_layers(self, windows: Sequence[int]) -> Recipe:
        """The recipe for layers with these windows (0: full attention), its layer mode written out as layers.

        Raises OptionError for layers that are not there and a mode that makes no sense for them.
        """
        self.check_layers(len(windows))
        if not self.layer_mode:
            return self
        chosen, sides = promoted_layers(self.layer_mode, windows)
        better = LayerChoice(
            k=self.promoted if "k" in sides else None,
            v=self.promoted if "v" in sides else None,
            transforms=SideTransforms(**{side: [] for side in sides}),
        )
        # A name that parse_layers reads and no one writes, so that it cannot take the place of an entry below.
        name = ",".join(f"{layer:03d}" for layer in chosen)
        layers = {name: better, **self.layers} if chosen else self.layers
        return self.model_copy(update={"layer_mode": 0, "layers": layers})

    def check_layers(self, n_layers: int) -> None:
        """Raise OptionError if the recipe names a layer that a cache of n_layers does not have."""
        for key in self.layers:
            if parse_layers(key)[-1] >= n_layers:
                raise OptionError(f"layers {key!r}: there are layers 0 to {n_layers - 1}")


def restricted(recipe: Recipe, layers: Iterable[int], n_layers: int) -> Recipe:
    """The recipe applied to `layers` only; every other layer is kept in float16."""
    kept = sorted(set(range(n_layers)) - set(layers))
    plain = SideTransforms(k=[], v=[])
    last = {",".join(map(str, kept)): LayerChoice(k="f16", v="f16", transforms=plain)} if kept else {}
    # A key that is there already would keep its place, and a later entry would win over it.
    before = {key: choice for key, choice in recipe.layers.items() if key not in last}
    return recipe.model_copy(update={"layers": {**before, **last}})


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a YAML or JSON file. Raises NoInputError, or DataError naming the key that is wrong."""
    text = read_text_input(path, max_bytes=MAX_RECIPE_BYTES)
    try:
        document = _load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or "not valid YAML"
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise DataError(f"{problem}{where}", file=path) from None
    recipe = parse_recipe(document, file=os.fspath(path))
    if recipe.calibration is None:
        return recipe
    # Relative to the recipe, so that both can be moved together.
    return recipe.model_copy(update={"calibration": os.fspath(Path(path).parent / recipe.calibration)})


def parse_recipe(document: Any, *, file: str | None = None) -> Recipe:
    """The recipe of a YAML or JSON document. Raises DataError naming the key that is wrong."""
    if not isinstance(document, dict):
        raise DataError("a recipe is a mapping with the keys " + ", ".join(Recipe.model_fields), file=file)
    if type(document.get("version", 1)) is not int:
        raise DataError(f"must be the number 1, not {document['version']!r}", file=file, object="version")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), Recipe.model_fields, n=1)
        is_unknown = first["type"] == "extra_forbidden"
        message = "unknown key" if is_unknown else first["msg"].removeprefix("Value error, ")
        hint = f"did you mean {near[0]}?" if near and is_unknown else None
        raise DataError(message, file=file, object=key, hint=hint) from None


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML that `read_recipe` reads back: only what is not the default."""
    document = {"version": recipe.version, "k": recipe.k, "v": recipe.v}
    document |= recipe.model_dump(exclude_defaults=True)
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can make a small file very large; keys are text as written, once each."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not plain text", problem_mark=key_node.start_mark)
            if key_node.value in mapping:
                problem = f"key {key_node.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            mapping[key_node.value] = self.construct_object(value_node, deep=True)
        return mapping

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a recipe")
        return super().compose_node(parent, index)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _codec(text: str) -> CodecSpec:
    try:
        return parse_codec(text)
    except OptionError as error:
        raise ValueError(str(error)) from None
