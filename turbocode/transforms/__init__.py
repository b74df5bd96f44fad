"""Transforms (floor 2): what is done to keys and values before they are coded, fitted on a dump."""

from turbocode.transforms.aqua import Predictor
from turbocode.transforms.catalog import TOKEN_TRANSFORMS, TRANSFORM_NAMES, TRANSFORMS, check_chain, parse_transform
from turbocode.transforms.chain import CONSTANT_TOKENS, FittedChain, chain_key, fit_chain, load_chain
from turbocode.transforms.fitted import FittedTransform, Transform
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics, collect_statistics

__all__ = [
    "CONSTANT_TOKENS",
    "TOKEN_TRANSFORMS",
    "TRANSFORMS",
    "TRANSFORM_NAMES",
    "FittedChain",
    "FittedTransform",
    "HeadMap",
    "Predictor",
    "SideStatistics",
    "Transform",
    "chain_key",
    "check_chain",
    "collect_statistics",
    "fit_chain",
    "load_chain",
    "parse_transform",
]
