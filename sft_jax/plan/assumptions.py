"""The planner's fitted constants: fractions of datasheet peaks that programs reach, the same for every chip.

All fitted numbers are in this file. `docs/planner.md` says what each was fitted to, and how far the estimates are from
published throughput that was not used for fitting.
"""

MATMUL = 0.88
"""Fraction of peak FLOP/s, for large products whose sides are multiples of the matrix unit's."""

ATTENTION = 0.6
"""Fraction of peak FLOP/s, for attention kernels with heads as wide as the matrix unit; exponentials limit it."""

MEMORY = 0.9
"""Fraction of HBM bandwidth, for operations that only read and write."""

LINK = 0.8
"""Fraction of the bandwidth between chips."""

NETWORK = 0.8
"""Fraction of the bandwidth between TPU slices, or GPU nodes."""

HOST = 0.8
"""Fraction of the bandwidth between a chip and its host."""
