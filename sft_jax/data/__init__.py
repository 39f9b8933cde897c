"""Text in, numpy batches out: records -> chat -> prepare -> packing -> batches. Calls no jax."""
