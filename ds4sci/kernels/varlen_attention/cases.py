"""Named inputs of varlen_attention: odd lengths, padding, grouped queries, views, scores that overflow."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ds4sci.kernels.spec import Case, SizeSweep

Layout = Literal["tokens", "heads", "fused"]
"""Memory layout of q, k and v: [t, h, d]; views of [h, t, d]; views of one [t, h + 2·g, d]."""


def _case(
    name: str, lengths: tuple[int, ...], h: int, g: int, d: int, *, causal: bool, layout: Layout = "tokens",
    spread: float = 1.0, scale: float | None = None,
) -> Case:  # fmt: skip
    """``lengths``: tokens of consecutive documents; a negative number is padding."""

    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        tokens = sum(map(abs, lengths))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        if layout == "fused":
            q, k, v = normal(tokens, h + 2 * g, d).split([h, g, g], 1)
        elif layout == "heads":
            q, k, v = (normal(heads, tokens, d).transpose(0, 1) for heads in (h, g, g))
        else:
            q, k, v = (normal(tokens, heads, d) for heads in (h, g, g))
        doc_spans, start = [], 0
        for length in lengths:
            if length > 0:
                doc_spans.append((start, start + length))
            start += abs(length)
        inputs = {"q": q * spread if spread != 1.0 else q, "k": k, "v": v}
        return inputs | {"doc_spans": torch.tensor(doc_spans).reshape(-1, 2), "causal": causal, "scale": scale}

    return Case(name, make)


CASES = (
    _case("packed proteins", (63, 17, 1, 120, 40), 4, 4, 32, causal=False),
    _case("packed, causal", (63, 17, 1, 120, 40), 4, 4, 32, causal=True),
    _case("padding between", (-3, 17, -2, 63, 1, -40, 33, -5), 2, 2, 16, causal=False, layout="heads"),
    _case("padding between, causal", (-3, 17, -2, 63, 1, -40, 33, -5), 2, 2, 16, causal=True, layout="fused"),
    _case("one of 191", (191,), 2, 2, 64, causal=False, layout="fused"),
    _case("one of 191, causal", (191,), 2, 2, 64, causal=True, layout="heads"),
    _case("past the tiles by one", (257, 129), 1, 1, 24, causal=True),
    _case("several tiles of keys", (517,), 2, 2, 8, causal=True),
    _case("grouped queries", (70, 31), 6, 2, 20, causal=False),
    _case("grouped queries, causal", (31, 140), 6, 2, 32, causal=True, layout="heads"),
    _case("one key for all heads", (65, -7, 5), 5, 1, 10, causal=True, layout="fused"),
    _case("one token", (1,), 1, 1, 16, causal=True),
    _case("wide heads", (50,), 2, 1, 128, causal=True, scale=0.02),
    _case("sharp", (40, 90), 2, 2, 16, causal=False, spread=30.0),
    _case("sharp, causal", (40, 90), 2, 2, 16, causal=True, spread=30.0),
)

SIZE_SWEEPS = (
    SizeSweep("tokens", lambda n: _case(f"{n} tokens", (n,), 1, 1, 16, causal=False), (32, 1_024, 4_096)),
    SizeSweep("tokens, causal", lambda n: _case(f"{n} tokens", (n,), 1, 1, 16, causal=True), (32, 1_024, 4_096)),
)
