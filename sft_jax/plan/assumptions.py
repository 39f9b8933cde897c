"""What the planner assumes beyond datasheets: fractions of the peaks that programs reach, the same for every chip.

Everything that is fitted stands here and nowhere else. `docs/planner.md` says what each number was fitted to, and how
far the estimates are from published throughput that was not used for it.
"""

MATMUL = 0.88
"""Of the peak, for large products whose sides are multiples of the matrix unit's."""

ATTENTION = 0.6
"""Of the peak, for attention kernels whose heads are as wide as the matrix unit: the scores wait for exponentials."""

MEMORY = 0.9
"""Of HBM's bandwidth, for operations that do nothing but read and write."""

LINK = 0.8
"""Of the bandwidth between chips."""

NETWORK = 0.8
"""Of the bandwidth between slices of TPUs, or nodes of GPUs."""

HOST = 0.8
"""Of the bandwidth between a chip and its host."""
