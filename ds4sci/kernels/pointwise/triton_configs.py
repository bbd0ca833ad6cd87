"""Which tiles the Triton kernels between matrix products are launched with: a look-up, no search at run time.

All these kernels wait for memory. A tile is so large that every thread has 32 to 64 bytes of each tensor under way, and
so small that nothing spills: ``tests/kernels/test_triton_pointwise_aot.py``. No tile has fewer elements than a program
has threads (of AMD's 64-wide warps): with fewer, threads would share elements, and one of them might read a place that
another has written already where a kernel works in place.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHANNELS = 8192
"""Channels of a row whose norm is taken."""
MAX_COLUMN_CHANNELS = 1024
"""Channels of a column whose norm is taken: a tile has some columns of all channels, to be read along them."""

FULL_WIDTH: dict[str, dict[int, tuple[tuple[int, int, int], ...]]] = {
    "norm": {16: ((4096, 4096, 4), (8192, 8192, 8)), 32: ((2048, 2048, 4), (4096, 4096, 8), (8192, 8192, 16))},
    "norm_backward": {
        16: ((2048, 2048, 4), (4096, 4096, 8), (8192, 8192, 16)),
        32: ((2048, 2048, 4), (4096, 4096, 8), (8192, 8192, 16)),
    },
    "norm_columns": {16: ((512, 8192, 8), (1024, 16384, 16)), 32: ((512, 4096, 8), (1024, 8192, 16))},
    "norm_columns_backward": {16: ((256, 4096, 8), (1024, 8192, 16)), 32: ((256, 4096, 8), (1024, 8192, 16))},
}
"""Kernels whose tiles have all channels → bits of an element → (channels up to, elements, warps), fewest first."""

BLOCKED: dict[str, dict[int, tuple[int, int, int]]] = {
    "rows": {16: (128, 4096, 4), 32: (128, 2048, 4)},
    "rows_backward": {16: (128, 2048, 4), 32: (128, 2048, 4)},
    "columns": {16: (8, 4096, 4), 32: (8, 2048, 4)},
    "columns_backward": {16: (8, 2048, 4), 32: (8, 2048, 4)},
}
"""Kinds of the other kernels → bits of an element → (channels at most, elements, warps)."""


@dataclass(frozen=True)
class Config:
    """A tile of ``channels`` by ``others`` (rows or columns), both powers of 2."""

    channels: int
    others: int
    warps: int


def choose(purpose: str, channels: int, bits: int) -> Config:
    """For a kernel of ``FULL_WIDTH`` or a kind of ``BLOCKED``."""
    padded = 1 << (channels - 1).bit_length()
    if purpose in BLOCKED:
        most, elements, warps = BLOCKED[purpose][bits]
        padded = min(padded, most)
    else:
        padded = max(16, padded)
        elements, warps = next((e, w) for widest, e, w in FULL_WIDTH[purpose][bits] if padded <= widest)
    return Config(padded, elements // padded, warps)
