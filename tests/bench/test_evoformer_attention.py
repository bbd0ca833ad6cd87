"""``ds4sci bench kernels``: baselines are correct, and the JSON has every figure of the results table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import evoformer_attention, plot, tables
from ds4sci.bench.torch_baselines import torch_baselines
from ds4sci.cli.main import main
from ds4sci.kernels import evoformer_attention as operation


@pytest.mark.parametrize("bias", [True, False])
def test_baselines_agree_with_the_reference(bias: bool) -> None:
    given = evoformer_attention.Shape("x", 5, 12, 2, 8, bias=bias).inputs(torch.float32, torch.device("cpu"))
    want = operation(**given, implementation="reference")
    for name, one in torch_baselines(torch.device("cpu"), compiled=False).items():
        torch.testing.assert_close(one.run(**given), want, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.nightly
def test_quick_run_writes_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "kernels.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["quick"]
    assert saved["machine"]["commit"]
    assert saved["rates"]["gemm float32"] > 0
    assert {row["implementation"] for row in saved["measured"]} >= {"tiled", "naive", "SDPA", "chunked 4"}
    assert len(saved["rows"]) == 4  # one shape, two dtypes, with and without backward
    assert tables.section(saved) in capsys.readouterr().out


def test_wrong_baseline_is_skipped_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = evoformer_attention.Baseline(lambda **given: torch.ones_like(given["q"]))
    monkeypatch.setattr(evoformer_attention, "torch_baselines", lambda device, compiled: {"odd": wrong})
    rows, skipped = evoformer_attention.measure(
        evoformer_attention.QUICK[0], torch.float32, torch.device("cpu"), rounds=1, compiled=False
    )
    assert "odd" not in {row["implementation"] for row in rows}
    assert len(skipped) == 2
    assert "odd skipped (its output differs by" in skipped[0]


@pytest.mark.nightly
def test_growth_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evoformer_attention, "GROWTH_LENGTHS", (16, 32))
    grown = evoformer_attention.growth(torch.device("cpu"))
    assert {row["n"] for row in grown} == {16, 32}
    assert len(grown) == 2 * (1 + len(evoformer_attention.GROWTH_BASELINES))
    measured, _ = evoformer_attention.measure(
        evoformer_attention.QUICK[0], torch.float32, torch.device("cpu"), rounds=1, compiled=False
    )
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"measured": measured, "growth": grown}), encoding="utf-8")
    assert plot.plot(path).stat().st_size > 10_000
