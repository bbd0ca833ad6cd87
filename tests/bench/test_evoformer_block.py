"""``ds4sci bench kernels --op evoformer_block``: figures and plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import evoformer_block, plot
from ds4sci.cli.main import main
from ds4sci.models.fold import EvoformerConfig
from ds4sci.nn.evoformer import BlockConfig


@pytest.mark.nightly
def test_quick_block_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "block.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--op", "evoformer_block", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert {r["method"] for r in saved["measured"]} == {"ds4sci", "plain", "plain, checkpointed"}
    assert {r["flops"] for r in saved["measured"]} == {saved["measured"][0]["flops"]}
    assert all(0 < float(line[-1].rstrip("%")) < 100 for line in saved["rows"] if line[-1] != "–")

    def one(config: object, device: object, n: int, name: str) -> dict[str, object]:
        return {"method": name, "n": n, "seconds": n**3.0, "memory_mb": n**2 / (4 if name == "ds4sci" else 1)}

    monkeypatch.setattr(evoformer_block, "_measure_length", one)
    grown = evoformer_block.growth(None, torch.device("cpu"), 1e4)  # type: ignore[arg-type]
    for name, longest in (("plain", 96), ("ds4sci", 192)):  # 100 and 200, in steps of 32
        lengths = [r["n"] for r in grown if r["method"] == name]
        assert lengths == sorted(lengths)
        assert lengths[-2:] == [longest, longest + 32]
        assert any(f"{name}: the longest n in 8 GB is" in note for note in evoformer_block._longest_notes(grown))
    out.write_text(json.dumps(saved | {"growth": grown}), encoding="utf-8")
    assert plot.plot(out).stat().st_size > 10_000


def test_product_flops_of_a_block() -> None:
    sizes = EvoformerConfig().model_dump(exclude={"blocks"})
    rows, n, c_m, c_z, hidden = 4, 16, 256, 128, 32
    msa, pairs = rows * n, n * n
    # q, k, v, gate, output; scores and values
    multiply_adds = 5 * 2 * (msa * c_m * c_m + pairs * c_z * c_z) + 2 * (msa * (n + rows) * c_m + 2 * pairs * n * c_z)
    multiply_adds += pairs * c_z * (8 + 4 + 4)  # pair biases
    multiply_adds += 2 * 4 * (msa * c_m * c_m + pairs * c_z * c_z)  # transitions
    multiply_adds += 2 * msa * c_m * hidden + pairs * hidden * hidden * (rows + c_z)  # outer product mean
    multiply_adds += 2 * (6 * pairs * c_z * c_z + pairs * n * c_z)  # triangle multiplications
    flops = evoformer_block.product_flops(BlockConfig(c_m=c_m, c_z=c_z, **sizes), n, rows)
    assert flops == pytest.approx(3 * 2 * multiply_adds, rel=0.01)
