"""``ds4sci bench kernels --op evoformer_block``: figures and plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import evoformer_block, plot
from ds4sci.cli.main import main


@pytest.mark.nightly
def test_quick_block_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "block.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--op", "evoformer_block", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert {r["method"] for r in saved["measured"]} == {"ds4sci", "plain", "plain, checkpointed"}
    for parts in saved["shares"]:
        assert sum(parts[kind] for kind in ("matrix products", "fused attention", "outside")) == pytest.approx(1)
        assert parts["matrix products"] > 0.1

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
