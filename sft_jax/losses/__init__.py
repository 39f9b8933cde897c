"""Training objectives: (trainable, frozen, batch, rng) -> (loss_sum, weight_sum, metric_sums)."""
