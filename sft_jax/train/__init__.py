"""The step over an objective, optimizer, checkpoints, metrics, and the loop that reads like a page of prose."""
