"""Processes of a run: start-up, agreement, the watchdog, and the TPU lock."""
