"""Text in, numpy batches out: readers -> formats -> chat -> prepare -> packing -> batches. Calls no jax."""
