"""Processes: start, agree, watch one another, and who has the TPU."""
