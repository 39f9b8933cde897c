"""Evaluation on held-out rows: likelihood, checks on completions, and behaviour before and after training."""
