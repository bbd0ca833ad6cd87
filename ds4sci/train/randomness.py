"""The random generators of one process: seeded, captured, put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch, differently on every rank (dropout must differ between ranks)."""
    entropy = np.random.SeedSequence([seed, rank]).generate_state(3, dtype=np.uint64)
    random.seed(int(entropy[0]))
    np.random.seed(int(entropy[1] % 2**32))  # noqa: NPY002  (libraries that we call may use the global generator)
    torch.manual_seed(int(entropy[2] % 2**63))


def capture(device: torch.device) -> dict[str, np.ndarray]:
    """The state of every global generator, as plain arrays."""
    version, words, gauss = random.getstate()
    assert version == 3, "CPython's Mersenne Twister"
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    assert kind == "MT19937"
    state = {
        "python": np.array(words, dtype=np.uint64),
        "python_gauss": np.array(np.nan if gauss is None else gauss),
        "numpy": np.asarray(keys),
        "numpy_rest": np.array([position, has_gauss, cached]),
        "torch": torch.get_rng_state().numpy(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy()
    return state


def apply(state: dict[str, np.ndarray], device: torch.device) -> None:
    """Put back what ``capture`` gave."""
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(int(x) for x in state["python"]), None if np.isnan(gauss) else gauss))
    position, has_gauss, cached = state["numpy_rest"]
    np.random.set_state(("MT19937", state["numpy"], int(position), int(has_gauss), float(cached)))  # noqa: NPY002
    torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(torch.from_numpy(state["cuda"].copy()), device)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Whatever the block draws, the generators stand afterwards where they stood before."""
    state = capture(device)
    try:
        yield
    finally:
        apply(state, device)
