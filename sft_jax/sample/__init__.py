"""Generation with a KV cache, and per-token log-probabilities."""
