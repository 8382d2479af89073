"""Sizes that the CUDA kernels agree on."""

THREADS = 512
WARPS = THREADS // 32
ZERO_ROWS = 8
LANES = 32
COLUMNS = 64
"""Samples of a tile in global memory."""
STATIC_SHARED = 1792
"""Shared memory that kernels declare themselves, and the driver's own, in bytes, at most."""
