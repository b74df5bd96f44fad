"""Codecs (floor 2): transform, rotation, codebook and format as one object with two verbs, encode and decode."""

from turbocode.codecs.attention import decode_attention, merge_attention
from turbocode.codecs.catalog import make_codec
from turbocode.codecs.codec import Codec, codec_from_description
from turbocode.codecs.coder import (
    Coder,
    coder_from_description,
    decode_heads,
    encode_heads,
    has_packed_attention,
    head_blocks,
    plain_codec,
    predicting,
    row_bytes,
    row_widths,
    run_tokens,
)
from turbocode.codecs.multirate_codec import MultirateCodec, multirate_codec, multirate_from_calibration
from turbocode.codecs.per_head import PerHeadCodec
from turbocode.codecs.report import EncodeReport
from turbocode.codecs.spec import CODEC_NAMES, STANDARD_CODECS, CodecSpec, codec_summary, parse_codec
from turbocode.codecs.transformed import TransformedCodec

__all__ = [
    "CODEC_NAMES",
    "STANDARD_CODECS",
    "Codec",
    "CodecSpec",
    "Coder",
    "EncodeReport",
    "MultirateCodec",
    "PerHeadCodec",
    "TransformedCodec",
    "codec_from_description",
    "codec_summary",
    "coder_from_description",
    "decode_attention",
    "decode_heads",
    "encode_heads",
    "has_packed_attention",
    "head_blocks",
    "make_codec",
    "merge_attention",
    "multirate_codec",
    "multirate_from_calibration",
    "parse_codec",
    "plain_codec",
    "predicting",
    "row_bytes",
    "row_widths",
    "run_tokens",
]
