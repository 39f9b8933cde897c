"""Peak speed of the accelerators, from their public datasheets."""

PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bf16 FLOP/s a chip, by the beginning of JAX's device kind."""

DEVICES_A_CHIP = {"TPU v4": 1, "TPU7x": 2}
"""Where JAX shows more than one device a chip."""


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one JAX device, or None for a kind without a datasheet entry (CPUs)."""
    for kind in sorted(PEAK_BF16_FLOPS, key=len, reverse=True):
        if device_kind.startswith(kind):
            return PEAK_BF16_FLOPS[kind] / DEVICES_A_CHIP.get(kind, 1)
    return None
