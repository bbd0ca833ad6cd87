"""Gradient noise scale: the batch size beyond which a larger batch hardly improves a step.

The gradient G of a step is the mean of the gradients gᵢ of its m micro-batches, weighted with their shares wᵢ (Σ wᵢ =
1). If single samples have the covariance Σ, then a micro-batch of wᵢ B samples of the B of a step has

    E |gᵢ|² = |G₀|² + tr Σ / (wᵢ B),      E |G|² = |G₀|² + tr Σ / B,

with G₀ the gradient of all data. With A = Σ wᵢ |gᵢ|² the two unknowns are, without bias and for any shares,

    tr Σ = (A − |G|²) B / (m − 1),        |G₀|² = |G|² − tr Σ / B,

and the noise scale is tr Σ / |G₀|², in samples. Single steps are far too noisy for a ratio; means of both unknowns over
many steps are divided. Source: McCandlish et al., arXiv 1812.06162, appendix A.1, for equal micro-batches.

The cost is one norm of each gradient per micro-batch, and nothing is sent but two numbers per line of metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class NoiseSums:
    """Sums of a rank since the last line of metrics.

    micro_batches  Σ wᵢ |gᵢ|² over the steps and this rank's micro-batches
    whole          Σ |G|² over the steps, the same on all ranks
    count          micro-batches of this rank with a share above 0
    steps          steps, the same on all ranks
    """

    micro_batches: float = 0.0
    whole: float = 0.0
    count: int = 0
    steps: int = 0

    @staticmethod
    def estimate(parts: Sequence[NoiseSums], batch: int) -> dict[str, float] | None:
        """Return ``trace`` (tr Σ), ``squared_norm`` (|G₀|²), ``samples`` (B) and, if the first two are positive,
        ``batch``, their ratio.

        parts  the sums of all ranks
        batch  B, samples of a step

        Returns None without a step, or with fewer than two micro-batches per step.
        """
        steps = parts[0].steps
        m = sum(one.count for one in parts) / max(steps, 1)
        if m <= 1:
            return None
        whole = parts[0].whole / steps
        trace = (sum(one.micro_batches for one in parts) / steps - whole) * batch / (m - 1)
        found = {"trace": trace, "squared_norm": whole - trace / batch, "samples": batch}
        if trace > 0 and found["squared_norm"] > 0:
            found["batch"] = trace / found["squared_norm"]
        return found


class GradientNoise:
    """Hooks on the parameters that add up the squares of the gradient of each micro-batch.

    parameters  trainable parameters
    factor      the gradients of the backward pass are share · factor · gᵢ
    """

    def __init__(self, parameters: Sequence[nn.Parameter], factor: float, device: torch.device) -> None:
        self.factor, self.sums = factor, NoiseSums()
        self._square = torch.zeros((), dtype=torch.float64, device=device)
        self._pending: list[tuple[Tensor, float]] = []
        self._handles = [p.register_hook(self._add) for p in parameters]

    def _add(self, gradient: Tensor) -> None:
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        self._square += torch.linalg.vector_norm(gradient.detach(), dtype=dtype).double().square()

    def end_micro_batch(self, share: float) -> None:
        """Account for the backward pass of a micro-batch with this share of the step."""
        self._pending.append((self._square.clone(), share))
        self._square.zero_()

    def end_step(self, norm: float | None, *, is_finite: bool) -> None:
        """Account for a step whose gradient has this norm, unless it is not finite on some rank."""
        pending, self._pending = self._pending, []
        if not is_finite or norm is None:
            return
        for square, share in pending:
            if share > 0:
                self.sums.micro_batches += float(square) / (share * self.factor**2)
                self.sums.count += 1
        self.sums.whole += norm**2
        self.sums.steps += 1

    def reset(self) -> NoiseSums:
        """Return the sums so far and set them to zero."""
        sums, self.sums = self.sums, NoiseSums()
        return sums

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
