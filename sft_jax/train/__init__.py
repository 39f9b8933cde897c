"""Training: the step, optimizers, checkpoints, metrics, preemption and the loop."""
