import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.model.attention.reference import TokenPositions


@pytest.fixture(scope="session")
def attention_inputs():
    """(time, ...) -> q, k, v float32 [B, T, N, H], and their positions: two rows of five ragged documents."""

    def make(time=150, heads=4, kv_heads=2, head_dim=8, packed=True):
        random = np.random.default_rng(0)
        q, k, v = (
            jnp.asarray(random.normal(size=(2, time, n, head_dim)), jnp.float32) for n in (heads, kv_heads, kv_heads)
        )
        segments, positions = np.ones((2, time), np.int32), np.tile(np.arange(time, dtype=np.int32), (2, 1))
        shares = [[0, 0.27, 0.28, 0.66, 0.87], [0, 0.46, 0.6, 0.8, 0.993]] if packed else []
        for row, starts in enumerate([int(share * time) for share in row] for row in shares):
            for number, (start, end) in enumerate(zip(starts, [*starts[1:], time], strict=True), 1):
                segments[row, start:end] = number if number < len(starts) else 0  # the last stretch is padding
                positions[row, start:end] = np.arange(end - start)
        return q, k, v, TokenPositions(jnp.asarray(positions), jnp.asarray(segments))

    return make
