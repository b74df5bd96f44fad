"""What two codecs are to the GPU's attention kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from turbocode.codecs.codec import Codec
from turbocode.codecs.multirate_codec import MultirateCodec
from turbocode.errors import OptionError

if TYPE_CHECKING:
    from turbocode.kernels.attention.gpu_arrays import Side


def gpu_sides(key_codec: Codec | MultirateCodec, value_codec: Codec | MultirateCodec) -> tuple[Side, Side]:
    """The sides of keys and of values. Raises OptionError where their head_dim differ."""
    if key_codec.head_dim != value_codec.head_dim:
        raise OptionError(
            f"{key_codec.name} has head_dim {key_codec.head_dim}, {value_codec.name} {value_codec.head_dim}; "
            "one is needed"
        )
    return _side(key_codec), _side(value_codec)


def _side(codec: Codec | MultirateCodec) -> Side:
    from turbocode.kernels.attention.gpu_arrays import Side
    from turbocode.kernels.fwht import rotation_for

    if isinstance(codec, MultirateCodec):
        form: Any = codec.block_format
        return Side(form, rotation_for(codec.head_dim, "none"), codec.gpu_table())
    tables = [codec.tables(head)[0] for head in range(max(1, len(codec.codebooks)))]
    return Side(codec.block_format, codec.rotation, np.stack(tables))
