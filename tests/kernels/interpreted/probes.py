"""Memory accesses of the evoformer attention kernels: within bounds, without races, and as many bytes as modelled.

Counts the bytes that unmasked lanes request; caches may reduce the memory traffic.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from ds4sci.kernels.evoformer_attention import triton as host
from ds4sci.kernels.evoformer_attention import triton_configs
from ds4sci.kernels.evoformer_attention.triton_configs import Config
from tests.support.triton_interpreter import Accesses, Probe, watch, watched

B, S, N, KEYS, H, D = 1, 5, 37, 45, 2, 10
WIDTH = 48  # of the rows of the pair bias: KEYS rounded up to a multiple of 16
ROWS, M, K = 2, 16, 32
"""Config: rows that share a bias, queries and keys per tile."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def launched(
    monkeypatch: pytest.MonkeyPatch, *, rows: int = ROWS, groups: int = 2, mask: torch.Tensor | None = None
) -> list[Accesses]:
    """Forward and backward of one case, all inputs given and all gradients computed. The bool mask keeps every row's
    last key."""
    monkeypatch.setattr(triton_configs, "choose", lambda *args: Config(rows, M, K, 4, 1))
    monkeypatch.setattr(host, "SCRATCH_BYTES", groups * 4 * B * H * N * WIDTH)
    monkeypatch.setattr(host, "MAX_PROGRAMS", 2**20)
    seen = watch(monkeypatch)
    q, gate = normal(B, N, S, H, D).transpose(1, 2), normal(B, S, N, H, D, seed=1)
    k, v = normal(B, S, KEYS, H, D, seed=2), normal(B, S, KEYS, H, D, seed=3)
    if mask is None:
        mask = normal(B, S, KEYS) > -0.5
        mask[..., -1] = True
    bias = normal(B, H, N, KEYS, seed=4).float()
    out, lse, lse_low = host.forward(q, k, v, mask, bias, gate, 0.3)
    needs_grad = [True, True, True, mask.is_floating_point(), True, True]
    grad = normal(*out.shape, seed=5)
    host.backward(grad, torch.ones_like(lse), q, k, v, mask, bias, gate, out, lse, lse_low, 0.3, needs_grad)
    return seen


def model(kernel: str, *, rows: int = ROWS, done: int = 0, taken: int = S, float_mask: bool = False) -> tuple[Any, Any]:
    """Bytes read and written by argument in half precision.

    Keys and values are read once for each tile of queries and queries once for each tile of keys; the bias once for
    each group of rows. With a bias lse is two numbers, for 16 bits up to ``prepare``.
    """
    half, single, mask = 2, 4, 2 if float_mask else 1
    key_ends = 0 if float_mask else B * S * H * single
    lines, tiles_q, tiles_k, sharing = B * S * H, -(-N // M), -(-KEYS // K), -(-taken // rows)
    query, key, plane = lines * N * D * half, lines * KEYS * D * half, B * H * N * WIDTH * single
    queries = ("lse_log2", "delta")
    if kernel == "attend":
        read = {"q": query, "gate": query, "k": key * tiles_q, "v": key * tiles_q, "bias": plane * sharing}
        read |= {"mask": lines * KEYS * tiles_q * mask, "key_ends": key_ends * tiles_q}
        return read, {"out": query} | dict.fromkeys(("lse", "lse_low"), lines * N * single)
    if kernel == "prepare":
        read = dict.fromkeys(("out", "grad_out", "gate"), query)
        read |= dict.fromkeys(("lse", "grad_lse", "lse_low"), lines * N * single)
        return read, {"d_out": query, "grad_gate": query} | dict.fromkeys(queries, lines * N * single)
    if kernel == "grad_keys":
        read = {"k": key, "v": key, "q": query * tiles_k, "d_out": query * tiles_k, "bias": plane * sharing}
        read |= dict.fromkeys(queries, lines * N * single * tiles_k)
        read |= {"mask": lines * KEYS * mask, "key_ends": key_ends * tiles_k}
        return read, {"grad_k": key, "grad_v": key} | ({"grad_mask": lines * KEYS * single} if float_mask else {})
    share = taken / S
    read = {"q": query * share, "d_out": query * share, "k": key * tiles_q * share, "v": key * tiles_q * share}
    read |= dict.fromkeys(queries, lines * N * single * share) | {"bias": plane * sharing}
    read |= {
        "mask": lines * KEYS * tiles_q * mask * share,
        "key_ends": key_ends * tiles_q * share,
        "partial": plane * sharing if done else 0,
    }
    return read, {"grad_q": query * share, "partial": plane * sharing}


@pytest.mark.parametrize("float_mask", [False, True])
def test_bytes_match_the_model(float_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 rows, 2 per program, 2 groups: the first launch for the bias gradient has rows 0 to 3, the second row 4."""
    expected = [
        ("attend", {}),
        ("prepare", {}),
        ("grad_keys", {}),
        ("grad_queries", {"taken": 4}),
        ("grad_queries", {"done": 4, "taken": 1}),
    ]
    seen = launched(monkeypatch, mask=normal(B, S, KEYS) if float_mask else None)
    assert [x.kernel for x in seen] == [kernel for kernel, _ in expected]
    for x, (kernel, part) in zip(seen, expected, strict=True):
        read, written = model(kernel, float_mask=float_mask, **part)
        assert +x.read == +Counter(read), f"{kernel} {part} reads"
        assert +x.written == +Counter(written), f"{kernel} {part} writes"


def test_an_unshared_bias_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = launched(monkeypatch, rows=1)
    assert seen[0].read["bias"] == model("attend", rows=1)[0]["bias"] > model("attend", rows=2)[0]["bias"]


def test_accesses_are_within_bounds_and_without_races(monkeypatch: pytest.MonkeyPatch) -> None:
    first_keys = torch.zeros(B, S, KEYS, dtype=torch.bool)
    first_keys[:, 0, :5] = True
    for mask in (normal(B, S, KEYS), None, first_keys):
        for x in launched(monkeypatch, rows=3, groups=1, mask=mask):
            assert not +x.outside, f"{x.kernel}: {x.outside}"
            assert not +x.races, f"{x.kernel}: {x.races}"


def test_keys_masked_by_all_rows_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 and 1 attend to the first tile of keys, the others to no key."""
    mask = torch.zeros(B, S, KEYS, dtype=torch.bool)
    mask[:, :2, :K] = True
    tile, tiles_q = B * 2 * H * K * D * 2, -(-N // M)
    for x in launched(monkeypatch, groups=3, mask=mask):
        if x.kernel == "grad_keys":
            assert x.read["q"] == B * 2 * H * N * D * 2
        elif x.kernel != "prepare":
            assert x.read["k"] == x.read["v"] == tile * tiles_q
        if x.kernel == "grad_queries":
            assert x.written["partial"] == 3 * B * H * N * WIDTH * 4, "a skipped tile has gradient 0"


@pytest.mark.parametrize("kernel", ["attend", "prepare", "grad_keys", "grad_queries"])
def test_a_length_too_long_by_one_is_detected(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe can fail: each kernel gets one query more than exists."""
    run = host.run

    def lying(launches: Any, device: torch.device) -> None:
        for launch in launches:
            if launch.kernel == kernel:
                launch.arguments["queries"] += 1
            run([launch], device)

    monkeypatch.setattr(host, "run", lying)
    seen = launched(monkeypatch)
    assert any(+x.outside for x in seen if x.kernel == kernel)


@triton.jit
def clash(x, y):
    """All programs add to the same element, which a sum without atomics must not do."""
    tl.store(x, tl.load(x) + tl.program_id(0))
    tl.store(y + tl.program_id(0), 1.0)


def test_a_race_is_detected() -> None:
    x, y = torch.zeros(1), torch.zeros(3)
    probe = Probe("clash", {"x": x, "y": y})
    with watched(probe):
        clash[(3,)](x, y)
    assert probe.seen.races["x"] == 4  # programs 1 and 2 each read and write an element that another wrote
    assert not probe.seen.races["y"]
    assert probe.seen.read["x"] == probe.seen.written["x"] == 12


def test_a_store_out_of_bounds_is_detected_and_suppressed() -> None:
    y = torch.zeros(4)
    probe = Probe("clash", {"x": torch.zeros(1), "y": y[:2]})
    with watched(probe):
        clash[(3,)](torch.zeros(1), y)
    assert probe.seen.outside == {"load": 3, "store": 4}
    assert y.tolist() == [1, 1, 0, 0]
