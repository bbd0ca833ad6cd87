"""``ds4sci bench esmfold``: patched and unpatched trunks agree, and the JSON has every figure of the results table."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import esmfold, tables
from ds4sci.cli.main import main
from ds4sci.integrations import patch, patching

pytest.importorskip("transformers.models.esm.modeling_esmfold")
SMALL = {"sequence_state_dim": 32, "pairwise_state_dim": 16, "sequence_head_width": 16, "pairwise_head_width": 8}


@pytest.mark.nightly
def test_quick_run_writes_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "esmfold.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "esmfold", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["quick"]
    assert saved["machine"]["commit"]
    assert saved["command"] == "ds4sci bench esmfold --blocks 1 --device cpu --quick --json esmfold.json"
    assert [row[:3] for row in saved["rows"]] == [
        [16, dtype, direction] for dtype in ("float32", "bfloat16") for direction in ("forward", "forward + backward")
    ]
    assert all(len(row) == len(saved["columns"]) for row in saved["rows"])
    assert {(row["method"], row["backward"]) for row in saved["measured"]} == {
        (method, backward) for method in ("unpatched", "patched") for backward in (True, False)
    }
    assert all(
        row["seconds"] > 0 and row["memory_mb"] is not None and row["difference"] > 0 for row in saved["measured"]
    )
    assert tables.section(saved) in capsys.readouterr().out


def test_only_the_patched_trunk_is_patched() -> None:
    unpatched = esmfold.Trunk(1, **SMALL)
    patched = copy.deepcopy(unpatched)
    patch(patched, verbose=False)
    measured = esmfold.compare(unpatched, patched, 9, backward=True, rounds=1)
    assert [row["method"] for row in measured] == ["unpatched", "patched"]
    assert 0 < measured[0]["difference"] < esmfold.MAX_DIFFERENCE["float32"]
    assert not any("forward" in module.__dict__ for module in unpatched.modules())
    assert any(isinstance(module.__dict__.get("forward"), patching.PatchedMethod) for module in patched.modules())


def test_step_returns_all_gradients() -> None:
    trunk = esmfold.Trunk(1, **SMALL)
    s, z, mask = trunk.inputs(5)
    found = esmfold.step(trunk, (s, z, mask), backward=True)
    s, z = s.requires_grad_(), z.requires_grad_()
    (sum(x.square().sum() for x in trunk(s, z, mask)) / 2).backward()
    for got, want in zip(found[2:], [s.grad, z.grad, *(p.grad for p in trunk.parameters())], strict=True):
        torch.testing.assert_close(got, want)


def test_wrong_outputs_are_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Small(esmfold.Trunk):
        def __init__(self, blocks: int) -> None:
            super().__init__(blocks, **SMALL)

    def damage(model: torch.nn.Module, **kwargs: object) -> None:
        next(model.parameters()).data += 1

    monkeypatch.setattr(esmfold, "Trunk", Small)
    monkeypatch.setattr(esmfold, "patch", damage)
    with pytest.raises(ValueError, match="n 16, float32: the outputs of the patched and the unpatched trunk differ by"):
        esmfold.run((), ("float32",), out=tmp_path / "x.json", quick=True)


def test_unknown_dtype_is_rejected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "esmfold", "--dtype", "float8", "--json", str(tmp_path / "x.json")])
    assert "--dtype float8: unknown dtype; expected one of: float32, bfloat16" in capsys.readouterr().err
