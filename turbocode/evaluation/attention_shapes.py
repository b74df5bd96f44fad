"""Shapes of decode attention that benchmarks time: one's own, the ones that the project is measured by, and a sweep."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from turbocode.errors import OptionError

FLOAT16_BYTES = 2


@dataclass(frozen=True)
class AttentionShape:
    """One new token over a cache: `batch` sequences of `tokens`, `q_heads` query and `kv_heads` KV heads."""

    batch: int = 1
    tokens: int = 32768
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise OptionError(f"{name.replace('_', '-')} {value} is not allowed; 1 and more are")
        if self.q_heads % self.kv_heads:
            raise OptionError(f"{self.q_heads} query heads cannot share {self.kv_heads} KV heads evenly")

    @property
    def n_vectors(self) -> int:
        """Key vectors, and as many value vectors."""
        return self.batch * self.kv_heads * self.tokens

    @property
    def float16_bytes(self) -> int:
        """Bytes of keys and values in float16."""
        return 2 * self.n_vectors * self.head_dim * FLOAT16_BYTES

    @property
    def row_bytes(self) -> int:
        """Bytes of float16 queries and outputs and float32 log-sum-exps, which every attention reads and writes."""
        return self.batch * self.q_heads * (2 * self.head_dim * FLOAT16_BYTES + 4)

    @property
    def flops(self) -> int:
        """Multiplications and additions of one attention, two for each query channel and token, for K and for V."""
        return 4 * self.batch * self.q_heads * self.tokens * self.head_dim

    @property
    def working_bytes(self) -> int:
        """Bytes that the CPU's benchmark holds at once.

        K and V in float16, float32 and blocks; the keys decoded or encoded once more, with 40 bytes of moments and
        scratch a vector; NumPy's logits; one head in float64.
        """
        cache = self.n_vectors * (self.head_dim * (2 * (2 + 4 + 2) + 4 + 2) + 40)
        return cache + self.batch * self.q_heads * self.tokens * 4 * 2 + self.tokens * self.head_dim * 8 * 4

    def __str__(self) -> str:
        return (
            f"{self.batch} x {self.tokens:,} tokens, {self.q_heads} query heads, {self.kv_heads} KV heads, "
            f"head_dim {self.head_dim}"
        )


# One long sequence, batches, wide groups of query heads, wide heads: what today's models are served at.
TARGET_SHAPES = {
    "long": AttentionShape(1, 131072, 32, 8, 128),
    "single": AttentionShape(1, 32768, 32, 8, 128),
    "batch-16": AttentionShape(16, 8192, 32, 8, 128),
    "batch-64": AttentionShape(64, 4096, 32, 8, 128),
    "wide-groups": AttentionShape(8, 32768, 32, 4, 128),
    "wide-heads": AttentionShape(8, 16384, 24, 4, 256),
}
SWEEP_TOKENS = (2048, 8192, 32768, 131072, 524288, 1048576)
SWEEP_BATCHES = (1, 4, 16, 64, 256)


def sweep_shapes(base: AttentionShape) -> dict[str, AttentionShape]:
    """Shapes of SWEEP_TOKENS by SWEEP_BATCHES with the heads of `base`, named like `16x8192`."""
    return {
        f"{batch}x{tokens}": AttentionShape(batch, tokens, base.q_heads, base.kv_heads, base.head_dim)
        for batch in SWEEP_BATCHES
        for tokens in SWEEP_TOKENS
    }
